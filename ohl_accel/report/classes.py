"""Test scores by class, with their uncertainty, and the confusions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ohl_accel.report.read import Classes

_SHOWN = 40
"""Classes in the table, at most."""
_MATRIX = 26
"""Classes of a confusion matrix, at most: more do not fit on the page."""
_CONFUSIONS = 20
"""Confusions in the list, at most, if there are too many classes for a matrix."""
_FRACTIONS = {"top1", "top5", "average_precision"}
_HEADINGS = {"top1": "top-1", "top5": "top-5"}
_Z = 1.959964
"""Standard deviations of a 95 % interval."""


@dataclass(frozen=True)
class ClassTable:
    """What the page shows of the classes; all cells are text."""

    columns: list[str]
    rows: list[list[str]]
    """Those with the lowest score first, if that is known."""
    omitted: int
    """Classes with higher scores that are not in the table."""
    matrix: list[tuple[str, list[tuple[int, int]]]]
    """(class, [(images, per cent of the class) taken for each class]); empty if there are too many classes, or no
    confusions."""
    confusions: list[tuple[str, str, int]]
    """The most frequent ones: (class, class it was taken for, images); empty if there is a matrix."""


def wilson(fraction: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a fraction of n images, within 0..1."""
    middle = (fraction + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(fraction * (1 - fraction) / n + _Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def class_table(classes: Classes) -> ClassTable:
    """Lay out the results of all classes."""
    hidden = {"class", "images", "mistaken"}
    scores = [name for name in classes.classes[0] if name not in hidden]
    rows = list(classes.classes)
    main = next((name for name in scores if name in _FRACTIONS), None)
    if main is not None:
        rows.sort(key=lambda row: (row[main] is None, row[main] if row[main] is not None else 0.0))
    columns = ["class", "images"]
    for name in scores:
        heading = _HEADINGS.get(name, name.replace("_", " "))
        columns.append(f"{heading}, %" if name in _FRACTIONS else heading)
        if name == "top1":
            columns.append("95 % interval")
    return ClassTable(
        columns,
        [_row(row, scores) for row in rows[:_SHOWN]],
        max(0, len(rows) - _SHOWN),
        _matrix(classes) if classes.confusions and len(rows) <= _MATRIX else [],
        _most_frequent(classes) if len(rows) > _MATRIX else [],
    )


def _row(row: dict[str, float | int | str | None], scores: Sequence[str]) -> list[str]:
    cells = [str(row["class"]), f"{row['images']}"]
    for name in scores:
        value = row[name]
        if name == "most_often_taken_for" and value is not None:
            cells.append(f"{value} ({row.get('mistaken')})")
        elif isinstance(value, float):
            cells.append(f"{100 * value:.2f}" if name in _FRACTIONS else f"{value:.4f}")
        else:
            cells.append("" if value is None else str(value))
        if name == "top1":
            n = row["images"]
            known = isinstance(value, float) and isinstance(n, int) and n > 0 and 0 <= value <= 1
            low, high = wilson(float(value or 0), int(n or 1))
            cells.append(f"{100 * low:.0f} to {100 * high:.0f}" if known else "")
    return cells


def _matrix(classes: Classes) -> list[tuple[str, list[tuple[int, int]]]]:
    taken = {(true, predicted): count for true, predicted, count in classes.confusions}
    rows = []
    for true, row in enumerate(classes.classes):
        images = int(row["images"] or 0)
        wrong = sum(count for (number, _), count in taken.items() if number == true)
        counts = [
            images - wrong if predicted == true else taken.get((true, predicted), 0)
            for predicted in range(len(classes.classes))
        ]
        rows.append((str(row["class"]), [(count, round(100 * count / (images or 1))) for count in counts]))
    return rows


def _most_frequent(classes: Classes) -> list[tuple[str, str, int]]:
    names = classes.names
    ranked = sorted(classes.confusions, key=lambda pair: -pair[2])[:_CONFUSIONS]
    return [(names[true], names[predicted], count) for true, predicted, count in ranked]
