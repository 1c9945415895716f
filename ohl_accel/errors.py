"""Errors whose message is everything the user needs: the commands print it without a traceback."""

import difflib
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """A request that cannot work. Names the value and what would work. Exit code 2."""


class RunFailedError(RuntimeError):
    """A run that had started cannot continue. Names what happened and what is on disk. Exit code 1."""


class ProcessFailedError(RunFailedError):
    """One process cannot continue and the others do not know yet: it prints the message; the launcher ends them."""


def first_line(error: BaseException | None) -> str:
    """The type of an error and the first line of its message; empty for None."""
    if error is None:
        return ""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no details')}"


def did_you_mean(
    name: str, known: Iterable[str], most: int = 3, otherwise: str = "", show: Callable[[str], str] = str
) -> str:
    """A hint for an unknown name.

    Args:
        name: what was given.
        known: the valid names.
        most: maximum number of close names in the hint.
        otherwise: the hint if none is close.
        show: how a name is written in the hint.
    """
    close = difflib.get_close_matches(name, list(known), most)
    return f"did you mean {' or '.join(map(show, close))}?" if close else otherwise


_EXTRAS = {
    "train": (
        "accelerate",
        "datasets",
        "filelock",
        "fsspec",
        "huggingface_hub",
        "jinja2",
        "markupsafe",
        "matplotlib",
        "numpy",
        "psutil",
        "pyarrow",
        "pydantic",
        "rich",
        "safetensors",
        "scipy",
        "tenacity",
        "timm",
        "typer",
        "yaml",
    ),
    "demo": ("sklearn",),
}
"""Which extra of the package installs which modules that it imports."""


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """What to install for a missing module; None if no extra installs it."""
    module = (error.name or "").split(".")[0]
    for extra, modules in _EXTRAS.items():
        if module in modules:
            return f"this needs {module}, which is not installed: pip install 'ohl-accel[{extra}]'"
    return None
