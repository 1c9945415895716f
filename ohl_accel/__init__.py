"""OHL-Auto-Aug: learn the augmentation policy while the network trains.

Everything here is imported on first use: `Policy` needs torch, `PolicyTransform` torchvision as well, the rest what
`pip install 'ohl-accel[train]'` adds.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ohl_accel.errors import missing_extra

if TYPE_CHECKING:
    from ohl_accel.comparison import compare  # type: ignore[no-redef]  # the command has a module of this name
    from ohl_accel.engine.evaluate import evaluate
    from ohl_accel.engine.search import search
    from ohl_accel.engine.train import train
    from ohl_accel.policy import Policy
    from ohl_accel.policy.transform import PolicyTransform
    from ohl_accel.recipe import Recipe

__all__ = ["Policy", "PolicyTransform", "Recipe", "compare", "evaluate", "search", "train"]
__version__ = "0.1.0"

_MODULES = {
    "Policy": "ohl_accel.policy",
    "PolicyTransform": "ohl_accel.policy.transform",
    "Recipe": "ohl_accel.recipe",
    "compare": "ohl_accel.comparison",
    "evaluate": "ohl_accel.engine.evaluate",
    "search": "ohl_accel.engine.search",
    "train": "ohl_accel.engine.train",
}
"""Where each name is defined."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        needed = missing_extra(error)
        if needed is None:
            raise
        raise ModuleNotFoundError(needed, name=error.name) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `import ohl_accel.search`, the command's module, from replacing the function `ohl_accel.search`."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
