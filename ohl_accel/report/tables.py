"""Comparisons and sweeps in a folder: `NAME.json` with rows, and `NAME.png`."""

import base64
from dataclasses import dataclass
from pathlib import Path

from ohl_accel.errors import UserError
from ohl_accel.plain_json import read_object

_TITLES = {"comparison": "Comparison", "sweep": "Sweep"}
_PNG = b"\x89PNG\r\n\x1a\n"

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """Rows of values with named columns, notes about them, and possibly a figure (a data URI)."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[Scalar]]
    about: list[tuple[str, str]]
    figure: str | None


def read_tables(folder: Path) -> list[Table]:
    """The comparison and the sweep of a folder, if there are any.

    A file is `{"rows": [{column: value, ...}, ...], ...}`. A value is a scalar or an interval of two numbers;
    others are omitted. Other text in the file, such as the command, is shown below the rows.

    Raises:
        UserError: for a file of a different form.
    """
    return [_read(folder / f"{name}.json") for name in _TITLES if (folder / f"{name}.json").exists()]


def _read(path: Path) -> Table:
    try:
        document = read_object(path)
        rows = [{key: _cell(value) for key, value in row.items()} for row in document.pop("rows")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged or of a different version ({type(error).__name__}: {error}): it must be "
            '{"rows": [...]}; recreate it, or move it away to continue without it'
        ) from None
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if value is not None))
    about = [(key, text) for key, text in document.items() if isinstance(text, str) and key != "format"]
    cells = [[row.get(column) for column in columns] for row in rows]
    return Table(path.stem, _TITLES[path.stem], columns, cells, about, _figure(path.with_suffix(".png")))


def _cell(value: object) -> Scalar:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(end, int | float) for end in value):
        return f"{value[0]:.4g} to {value[1]:.4g}"
    return value if isinstance(value, Scalar) else None


def _figure(path: Path) -> str | None:
    if not path.is_file():
        return None
    content = path.read_bytes()
    if not content.startswith(_PNG):
        raise UserError(f"{path} is not a PNG image: recreate it, or move it away to continue without it")
    return "data:image/png;base64," + base64.b64encode(content).decode()
