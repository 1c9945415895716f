"""`metrics.jsonl`: one line for each outer step."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ohl_accel.errors import UserError
from ohl_accel.run_folder.atomic import write_text


def keep_lines_before(path: Path, outer_step: int) -> None:
    """Remove the lines that a resumed run will rewrite: those after its checkpoint."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path) if line["outer_step"] < outer_step]
    write_text(path, "".join(map(json_line, kept)))


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Write the line of an outer step."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json_line(values))


def amend_last_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add values known only at the end of the run to the last line; values already there are kept."""
    lines = read_metrics(path)
    lines[-1] = {**values, **lines[-1]}
    write_text(path, "".join(map(json_line, lines)))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics file, even while a run writes to it; none if there is no file.

    Raises:
        UserError: naming the first damaged line.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is damaged: {error}; delete the line to continue without it"
            ) from None
    return lines


def json_line(values: Mapping[str, Any]) -> str:
    """One line of JSON, with null for NaN and infinity, which JSON does not have."""
    return json.dumps({key: _finite(value) for key, value in values.items()}, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [_finite(item) for item in value] if isinstance(value, list) else value
