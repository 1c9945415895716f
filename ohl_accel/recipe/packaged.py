"""Recipes, ablations and launch configurations that come with the package, and can be named without a path.

In a wheel they lie inside the package; in a checkout, also an editable install, beside it.
"""

from pathlib import Path
from typing import Literal

Kind = Literal["recipes", "recipes/ablations", "accelerate_configs"]
RECIPES: Kind = "recipes"
ABLATIONS: Kind = "recipes/ablations"
LAUNCH_CONFIGS: Kind = "accelerate_configs"
_PACKAGE = Path(__file__).resolve().parent.parent


def packaged(kind: Kind) -> dict[str, Path]:
    """Name -> file of all that come with the package, in the order of their names."""
    for folder in (_PACKAGE / kind, _PACKAGE.parent / kind):
        if folder.is_dir():
            return {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    return {}


def locate(name: str, kind: Kind) -> Path:
    """The file that a path or a name means: a file if there is one, else what comes with the package."""
    path = Path(name)
    return path if path.is_file() else packaged(kind).get(name, path)


def first_comment(file: Path) -> str:
    """What a file says about itself in its first line."""
    return file.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("#").strip()
