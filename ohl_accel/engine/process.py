"""This process: its launch, device, precision, threads and kernels."""

import os
import platform
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


def why_bf16_is_slow(precision: str, device: torch.device) -> str | None:
    """What to tell the user of a CPU that computes in bf16 without instructions for it; None: nothing.

    Args:
        precision: mixed precision, as Accelerate resolved it.
        device: of this process.
    """
    if precision != "bf16" or device.type != "cpu" or _cpu_has_bf16():
        return None
    return (
        "run.mixed_precision=bf16: this CPU has no instructions for bf16, so training is several times slower in it "
        "than in float32; run.mixed_precision=no is the faster choice here"
    )


def _cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX on x86; elsewhere what oneDNN says (on x86 it also counts what it emulates)."""
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def configure_torch(section: RunSection, device: torch.device) -> None:
    """Set the number of CPU threads, or the choice of CUDA kernels, as in the recipe."""
    if device.type == "cpu":
        torch.set_num_threads(section.cpu_threads)
    elif section.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    else:
        torch.backends.cudnn.benchmark = True
