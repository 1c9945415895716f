"""JSON files as plain data: of bounded size and depth, with finite numbers, and no key twice in one object.

A file may come from anywhere, or be damaged.
"""

import json
import math
from pathlib import Path
from typing import Any

from ohl_accel.errors import shown

MAX_BYTES = 4 * 1024 * 1024
"""Of a file, unless its reader says otherwise."""


def read_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: if it is missing, too large, nested too deeply, not JSON, contains NaN, infinity or a duplicate key,
            or is not an object; says what, but does not name the file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if len(content) > max_bytes:
        raise ValueError(f"it is too large: more than {max_bytes} bytes")
    return parse_object(content)


def parse_object(content: bytes) -> dict[str, Any]:
    """The values of a JSON object.

    Raises:
        ValueError: as `read_object`.
    """
    try:
        document = json.loads(
            content.decode(),
            parse_constant=_finite_number,
            parse_float=_finite_number,
            object_pairs_hook=_with_unique_keys,
        )
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, got {type(document).__name__}")
    return document


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it contains {text[:60]}; all numbers must be finite")
    return number


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"it has the key {shown(key)} twice in one object")
        document[key] = value
    return document
