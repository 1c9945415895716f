"""Spaces by name, or from the user's own YAML file:

    name: rotations                # optional; default: the file's name without its ending
    arity: 2                       # optional: elements of an operation, 1 to 3; default: 2
    combine: distinct              # optional: ordered (default) or distinct
    import: my_transforms.py       # optional, relative to this file: registers your own transforms
    elements:
      - {transform: Rotate, magnitudes: [10, 20, 30]}
      - {transform: Identity}      # has no magnitude

`import` executes that file. A `policy.json` also describes its space, but is data: nothing in it is executed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ohl_accel.errors import UserError, did_you_mean

if TYPE_CHECKING:  # reading a file needs no torch
    from ohl_accel.operations.space import Space

FIELDS = ("name", "arity", "combine", "import", "elements")
_PROBLEMS_SHOWN = 5
_YAML_ENDINGS = (".yaml", ".yml")


def open_space(source: str | Mapping[str, Any]) -> "Space":
    """The space that a recipe names.

    Args:
        source: `paper`, `paper-identity`, a YAML file, or the result of `read_space_file`.

    Raises:
        UserError: if there is no such space, or the description is wrong; the message says where.
    """
    from ohl_accel.extensions import import_extension
    from ohl_accel.operations.space import BUILT_IN, Space

    if isinstance(source, str) and source in BUILT_IN:
        return BUILT_IN[source]
    if isinstance(source, str) and not source.endswith(_YAML_ENDINGS):
        hint = did_you_mean(source, BUILT_IN, 1)
        known = f"{', '.join(BUILT_IN)}, or your own YAML file"
        raise UserError(f"no space {source!r}; {f'{hint} Known' if hint else 'known'}: {known}")
    document = dict(read_space_file(source) if isinstance(source, str) else expanded(source, "space"))
    where = source if isinstance(source, str) else f"space {document.get('name')}"
    imported = document.pop("import", None)
    try:
        if imported is not None:
            import_extension("import", imported)
        return Space.from_document(document, imported)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def read_space_file(path: str) -> dict[str, Any]:
    """A space's YAML file as plain data, with every field and one magnitude for each element.

    The values are checked by `open_space`.

    Raises:
        UserError: if it cannot be read, or does not describe a space.
    """
    from ohl_accel.plain_yaml import parse, read_text, text_problems

    try:
        text = read_text(Path(path))
    except FileNotFoundError as error:
        raise UserError(f"space {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"space {path} cannot be read: {error}") from None
    try:
        content, duplicates = parse(text)
    except ValueError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if problems := [*duplicates, *text_problems(content)]:
        raise UserError(f"{path}: {'; '.join(problems[:_PROBLEMS_SHOWN])}")
    if not isinstance(content, dict):
        raise UserError(f"{path}: a space must be a mapping with elements, got {type(content).__name__}")
    if isinstance(content.get("import"), str):
        content["import"] = str(Path(path).parent / content["import"])
    return {"name": Path(path).stem, **expanded(content, path)}


def expanded(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A space's description with defaults filled in, and one element for each magnitude of a row.

    Raises:
        UserError: for unknown fields, or elements that are not a list of mappings.
    """
    for field in content:
        if field not in FIELDS:
            hint = did_you_mean(str(field), FIELDS, 1, f"known: {', '.join(FIELDS)}")
            raise UserError(f"{where}: unknown field {field!r}; {hint}")
    rows = content.get("elements")
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise UserError(
            f"{where}: elements must be a list, such as [{{transform: Rotate, magnitudes: [10, 20]}}]"
        )
    if not isinstance(content.get("import"), str | None):
        raise UserError(f"{where}: import must be a Python file, got {content['import']!r}")
    elements: list[dict[str, Any]] = []
    for row in rows:
        others = {key: value for key, value in row.items() if key != "magnitudes"}
        magnitudes = row.get("magnitudes", [row.get("magnitude")])
        if not isinstance(magnitudes, list) or not magnitudes or {"magnitude", "magnitudes"} <= row.keys():
            raise UserError(f"{where}: magnitudes must be a list of numbers, got {row!r}")
        elements += [{**others, "magnitude": magnitude} for magnitude in magnitudes]
    return {"arity": 2, "combine": "ordered", **content, "elements": elements}
