"""Comparisons and sweeps that lie in a folder: `NAME.json` with rows, and `NAME.png` beside it."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from ohl_accel.errors import UserError

_TITLES = {"comparison": "Comparison", "sweep": "Sweep"}
_PNG = b"\x89PNG\r\n\x1a\n"

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """Rows of scalars under named columns, and perhaps a figure (a data URI) of them."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[Scalar]]
    figure: str | None


def read_tables(folder: Path) -> list[Table]:
    """The comparison and the sweep of a folder, as far as there are.

    A file is `{"rows": [{column: value, ...}, ...]}`; values that are no scalars are left out.

    Raises:
        UserError: for a file that is not so.
    """
    return [_read(folder / f"{name}.json") for name in _TITLES if (folder / f"{name}.json").exists()]


def _read(path: Path) -> Table:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = document["rows"]
        columns = [key for row in found for key, value in row.items() if isinstance(value, Scalar)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{path} is damaged or of another version ({type(error).__name__}: {error}): it must be {{"rows": [...]}}; '
            "make it anew, or move it away to do without"
        ) from None
    columns = list(dict.fromkeys(columns))
    rows = [[_scalar(row.get(column)) for column in columns] for row in found]
    return Table(path.stem, _TITLES[path.stem], columns, rows, _figure(path.with_suffix(".png")))


def _scalar(value: object) -> Scalar:
    return value if isinstance(value, Scalar) else None


def _figure(path: Path) -> str | None:
    if not path.is_file():
        return None
    content = path.read_bytes()
    if not content.startswith(_PNG):
        raise UserError(f"{path} is no PNG image: make it anew, or move it away to do without")
    return "data:image/png;base64," + base64.b64encode(content).decode()
