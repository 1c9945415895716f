"""`metrics.jsonl`: one line for each outer step."""

import json
import math
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from ohl_accel.errors import UserError
from ohl_accel.run_folder.atomic import append_text, write_text

_MAX_LINE_BYTES = 1024 * 1024


def keep_lines_before(path: Path, outer_step: int, without: Container[str] = ()) -> list[int]:
    """Drop lines that a resumed run will write again, those after its checkpoint, and those that are damaged.

    Args:
        path: of the file.
        outer_step: the first one that will be written again.
        without: names of values to drop from the lines that stay: those of a result that is no longer the last.

    Returns:
        Outer steps before `outer_step` that have no line.
    """
    kept = [
        {name: value for name, value in line.items() if name not in without or name == "outer_step"}
        for line in lines_before(path, outer_step)
    ]
    if path.exists():
        write_text(path, "".join(map(json_line, kept)))
    present = {line["outer_step"] for line in kept}
    return [step for step in range(outer_step) if step not in present]


def lines_before(path: Path, outer_step: int) -> list[dict[str, Any]]:
    """The lines of the outer steps before one, without those that are damaged or torn."""
    lines = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step = values.get("outer_step") if isinstance(values, dict) else None
        if isinstance(step, int) and 0 <= step < outer_step:
            lines.append(values)
    return lines


def append_line(path: Path, *lines: Mapping[str, Any]) -> None:
    """Write the line of an outer step, or several, all or none; on the disk when this returns, before a checkpoint."""
    append_text(path, "".join(map(json_line, lines)))


def amend_last_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add values known only at the end of the run to the last line; values already there are kept."""
    lines = read_metrics(path)
    if not lines:
        return
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
            if len(line) > _MAX_LINE_BYTES:
                raise ValueError(f"it has more than {_MAX_LINE_BYTES} bytes")
            values = json.loads(line)
            if not isinstance(values, dict) or type(values.get("outer_step")) is not int:
                raise ValueError("it must be an object with the number of its outer_step")
            lines.append(values)
        except (ValueError, RecursionError) as error:
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
