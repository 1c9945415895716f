"""Kernels that need a compiler: numba for the CPU, which is optional; Triton for GPUs, which comes with torch there."""

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np


@cache
def compiled_kernels(module: str) -> ModuleType | None:
    """A module of kernels, imported only when it is needed; None without its compiler.

    Args:
        module: `compiled` or `compiled_around` (numba), or `gpu` (Triton).
    """
    try:
        return import_module(f"{__package__}.{module}")
    except ImportError:
        return None


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A view that cannot be written: one type of arguments, thus one compilation."""
    view = array.view()
    view.flags.writeable = False
    return view
