"""`policy.json`: writing, reading and validation.

A policy file may come from an untrusted source. It is data: nothing in it is executed, its size is bounded, and
anything wrong with it raises a ValueError.

Schema 2 is an object of `format`, `schema_version`, `space` (`Space.document`), `theta` (a number for each operation)
and `provenance` (any object). Schema 1, of version 0.1.0, has `elements`, those of the paper, instead of `space`.

Shapes: K operations of the space.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ohl_accel.operations.space import PAPER, Space
from ohl_accel.plain_json import read_object

FORMAT = "ohl_accel.policy"
SCHEMA_VERSION = 2
MAX_FILE_BYTES = 4 * 1024 * 1024


class Contents(NamedTuple):
    """The contents of a policy file."""

    space: Space
    theta_K: Tensor
    """float64."""
    provenance: dict[str, Any]


def to_text(contents: Contents) -> str:
    """The text of a `policy.json`.

    Raises:
        ValueError: if the provenance contains NaN or infinity.
        TypeError: if it contains anything that is not valid in JSON.
    """
    document = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "space": contents.space.document(),
        "theta": contents.theta_K.tolist(),
        "provenance": contents.provenance,
    }
    return json.dumps(document, allow_nan=False)


def read(path: Path) -> Contents:
    """Read a `policy.json` of this or an older schema.

    Raises:
        ValueError: if it is missing, malformed, of an unknown version, or inconsistent.
    """
    try:
        return _contents_of(read_object(path, MAX_FILE_BYTES))
    except RecursionError:  # where a message would show it
        raise ValueError("it is nested too deeply") from None


def _contents_of(document: Mapping[str, Any]) -> Contents:
    """Check a parsed file against its schema."""
    if document.get("format") != FORMAT:
        raise ValueError(f'"format" must be "{FORMAT}", got {short(document.get("format"))}')
    version = document.get("schema_version")
    if type(version) is not int or version not in (1, SCHEMA_VERSION):
        raise ValueError(
            f"schema_version {short(version)} is unknown; this version reads 1 and {SCHEMA_VERSION}"
        )
    space = _space_1(document) if version == 1 else _space_2(document)
    theta = document.get("theta")
    if not isinstance(theta, list) or len(theta) != space.num_operations:
        found = f"{len(theta)}" if isinstance(theta, list) else short(theta)
        raise ValueError(f'"theta" must list {space.num_operations} numbers, got {found}')
    for index, value in enumerate(theta):
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise ValueError(f"theta[{index}] must be a finite number, got {short(value)}")
    provenance = document.get("provenance", {})
    if not isinstance(provenance, dict):
        raise ValueError(f'"provenance" must be an object, got {short(provenance)}')
    return Contents(space, torch.tensor(theta, dtype=torch.float64), provenance)


def _space_2(document: Mapping[str, Any]) -> Space:
    try:
        return Space.from_document(document.get("space"))
    except ValueError as error:
        raise ValueError(f'"space": {error}') from None


def _space_1(document: Mapping[str, Any]) -> Space:
    """The paper's space, if the elements are those of Table 1."""
    elements, known = document.get("elements"), PAPER.document()["elements"]
    if not isinstance(elements, list) or len(elements) != len(known):
        found = f"{len(elements)}" if isinstance(elements, list) else short(elements)
        raise ValueError(f'"elements" must list the {len(known)} elements of Table 1, got {found}')
    for index, (found, wanted) in enumerate(zip(elements, known, strict=True)):
        if found != wanted:
            raise ValueError(f"element {index} must be {PAPER.elements[index].name}, got {short(found)}")
    return PAPER


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def short(value: object) -> str:
    """A value of unknown origin, shortened for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
