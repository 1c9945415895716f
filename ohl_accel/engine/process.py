"""This process: its launch, device, precision, threads and kernels."""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, InitProcessGroupKwargs

from ohl_accel.distributed.launch import check_launch, choose_interface, ending_in_time
from ohl_accel.errors import UserError
from ohl_accel.recipe import RunSection


def start_accelerator(section: RunSection | None) -> Accelerator:
    """Join the launch: device, precision, process group. Without a run section, with defaults.

    Raises:
        UserError: for processes that cannot see each other, or an unsupported precision.
    """
    timeout = timedelta(seconds=section.timeout if section else 1800)
    choose_interface()
    try:
        with ending_in_time(timeout):
            accelerator = Accelerator(
                cpu=not torch.cuda.is_available(),
                mixed_precision=section.mixed_precision if section else None,
                step_scheduler_with_optimizer=False,
                # each weight is used once per forward pass: a cache would only keep a bf16 copy of all of them
                kwargs_handlers=[
                    InitProcessGroupKwargs(timeout=timeout),
                    AutocastKwargs(cache_enabled=False),
                ],
            )
    except ValueError as error:
        raise UserError(f"Accelerate cannot start: {error}") from error
    check_launch(accelerator.num_processes)
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(
            f"mixed precision {accelerator.mixed_precision!r} is not supported (all trajectories would share its loss "
            "scale): use bf16 or no, in run.mixed_precision or in Accelerate's config"
        )
    return accelerator


def configure_torch(section: RunSection, device: torch.device) -> None:
    """Set the number of CPU threads, or the choice of CUDA kernels, as in the recipe."""
    if device.type == "cpu":
        torch.set_num_threads(section.cpu_threads)
    elif section.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    else:
        torch.backends.cudnn.benchmark = True
