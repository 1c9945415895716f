"""Plain values of a recipe: from YAML, in which no key may be repeated, and from dotted overrides."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ohl_accel import plain_yaml
from ohl_accel.errors import UserError, did_you_mean, shown
from ohl_accel.recipe.packaged import RECIPES, locate, packaged
from ohl_accel.run_folder.files import RECIPE_FILE

_OTHERS_SHOWN = 10


def read_yaml(path: str) -> tuple[dict[str, Any], list[str]]:
    """Read a recipe file: (values, messages about keys that are given twice).

    Args:
        path: of the file, of a run folder (its recipe), or the name of a recipe that comes with the package.

    Raises:
        UserError: if the file cannot be read or is not a YAML mapping.
    """
    try:
        file = locate(path, RECIPES)
        if file.is_dir() and not (file / RECIPE_FILE).is_file():
            raise UserError(
                f"recipe {path} is a folder without a {RECIPE_FILE}: give a file, or a run folder"
            )
        text = plain_yaml.read_text(file / RECIPE_FILE if file.is_dir() else file)
    except FileNotFoundError:
        file, known = Path(path), packaged(RECIPES)
        if file.suffix or file.parent != Path():
            others = [str(other) for other in sorted(file.parent.glob("[!.]*.y*ml"))]
            more = ", ..." if others[_OTHERS_SHOWN:] else ""
            hint = f"; that folder has: {', '.join(others[:_OTHERS_SHOWN])}{more}" if others else ""
        else:
            near = did_you_mean(path, known)
            hint = f"; {f'{near} ' if near else ''}recipes that need no path: {', '.join(known)}"
        raise UserError(f"recipe {path} does not exist{hint}") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"recipe {path} cannot be read: {error}") from None
    try:
        values, duplicates = plain_yaml.parse(text)
    except ValueError as error:
        raise UserError(f"recipe {path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"recipe {path} must be a mapping of sections, got {type(values).__name__}")
    return values, duplicates


def override(values: dict[str, Any], text: str) -> list[str]:
    """Apply `section.key=value` in place; returns problems instead of raising."""
    dotted, equals, right = text.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        return [f"override {shown(text)}: must look like section.key=value"]
    try:
        value, problems = plain_yaml.parse(right)
    except ValueError:
        return [f"override {shown(text)}: {shown(right)} is not valid YAML; quote it"]
    target = values
    for depth, key in enumerate(keys[:-1]):
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            return [f"override {shown(text)}: {'.'.join(keys[: depth + 1])} is not a section"]
    target[keys[-1]] = value
    return problems


def checked_overrides(overrides: object) -> list[str]:
    """Overrides given in Python as a list.

    Raises:
        UserError: if they are not a list of texts.
    """
    if isinstance(overrides, str | Mapping) or not isinstance(overrides, Iterable):
        raise UserError(f'overrides must be a list such as ["outer.steps=3"], got {overrides!r}')
    return [str(text) for text in overrides]
