"""Several processes from one command."""

import importlib.util
import os
from collections.abc import Sequence
from typing import NoReturn

from ohl_accel.errors import UserError, did_you_mean
from ohl_accel.recipe.packaged import LAUNCH_CONFIGS, locate, packaged


def launch(command: str, arguments: Sequence[str], processes: int | None, config: str | None) -> NoReturn:
    """Run a command in several processes, and end as they do.

    Args:
        command: search or train.
        arguments: of the command.
        processes: on this machine; None: as the configuration says.
        config: Accelerate's configuration, a file or a name; None: one for several GPUs if CUDA is available, else
            for several CPU processes.

    Raises:
        SystemExit: when they have ended.
        RunFailedError: if one of them was killed.
        UserError: if there is no such configuration, or this process was itself started by a launcher.
        ModuleNotFoundError: without accelerate.
    """
    if "WORLD_SIZE" in os.environ:
        raise UserError(
            "--processes, --config: this process was started by a launcher already; leave them out"
        )
    if importlib.util.find_spec("accelerate") is None:
        raise ModuleNotFoundError(name="accelerate")
    if config is None:
        import torch

        config = "node_8gpu" if torch.cuda.is_available() else "cpu_processes"
    file = locate(config, LAUNCH_CONFIGS)
    if not file.is_file():
        known = packaged(LAUNCH_CONFIGS)
        hint = did_you_mean(config, known, otherwise="give a file")
        raise UserError(f"--config {config} does not exist; {hint} (names: {', '.join(known)})")
    from ohl_accel.distributed.launcher import run_launcher

    number = [] if processes is None else ["--num_processes", str(processes)]
    run_launcher(["--config_file", str(file), *number, "-m", f"ohl_accel.{command}", *arguments])
