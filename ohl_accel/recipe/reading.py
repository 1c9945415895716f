"""Plain values of a recipe: from YAML, in which no key may be repeated, and from dotted overrides."""

from pathlib import Path
from typing import Any

import yaml

from ohl_accel.errors import UserError, did_you_mean
from ohl_accel.recipe.packaged import RECIPES, locate, packaged


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key that is given twice is recorded instead of silently replaced."""

    duplicates: list[str]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML does, after recording the keys."""
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in seen:
                self.duplicates.append(f"{key}: given twice, in lines {seen[key]} and {line}")
            seen[key] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: str) -> tuple[dict[str, Any], list[str]]:
    """Read a recipe file: (values, messages about keys that are given twice).

    Args:
        path: the file, or the name of a recipe that comes with the package.

    Raises:
        UserError: if the file cannot be read or is not a YAML mapping.
    """
    try:
        text = locate(path, RECIPES).read_text(encoding="utf-8")
    except FileNotFoundError:
        file, known = Path(path), packaged(RECIPES)
        if file.suffix or file.parent != Path():
            others = [str(other) for other in sorted(file.parent.glob("[!.]*.y*ml"))]
            hint = f"; that folder has: {', '.join(others)}" if others else ""
        else:
            near = did_you_mean(path, known)
            hint = f"; {f'{near} ' if near else ''}recipes that need no path: {', '.join(known)}"
        raise UserError(f"recipe {path} does not exist{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} cannot be read: {error}") from None
    loader = _Loader(text)
    loader.duplicates = []
    try:
        values = loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not valid YAML: {error}") from None
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise UserError(f"recipe {path} must be a mapping of sections, got {type(values).__name__}")
    return values, loader.duplicates


def override(values: dict[str, Any], text: str) -> list[str]:
    """Apply `section.key=value` in place; returns problems instead of raising."""
    dotted, equals, right = text.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        return [f"override {text!r}: must look like section.key=value"]
    try:
        value = yaml.safe_load(right)
    except yaml.YAMLError:
        return [f"override {text!r}: {right!r} is not valid YAML; quote it"]
    target = values
    for depth, key in enumerate(keys[:-1]):
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            return [f"override {text!r}: {'.'.join(keys[: depth + 1])} is not a section"]
    target[keys[-1]] = value
    return []
