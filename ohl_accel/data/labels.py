"""Labels: one class per image, or several (multi-label), as tensors of indices into the list of classes.

Shapes: n images of a split, C classes.
"""

from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

import datasets
import torch
from torch import Tensor

from ohl_accel.errors import UserError

_CLASS_TYPES = ("string", "bool", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)))


def is_list(feature: Any) -> bool:
    """Whether each row of a column is a list, as multi-label data has it."""
    return isinstance(feature, datasets.List | datasets.LargeList)


def class_feature(feature: Any) -> Any:
    """The feature of a single class: of a list's items, or the feature itself."""
    return feature.feature if is_list(feature) else feature


def class_names(rows: datasets.Dataset, column: str) -> tuple[str, ...]:
    """Names of the classes: those of a ClassLabel, or the sorted values of a column of numbers or text.

    Raises:
        UserError: if the column does not hold labels, or a row has none.
    """
    feature = class_feature(rows.features[column])
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    if getattr(feature, "dtype", None) not in _CLASS_TYPES:
        raise UserError(
            f"column {column!r} does not hold labels: it is {rows.features[column]}, not classes, whole numbers or "
            "text, or lists of them"
        )
    values = _values(rows, column) if is_list(rows.features[column]) else rows.unique(column)
    if None in values:
        raise UserError(f"column {column!r} has rows without a label")
    if is_list(rows.features[column]):
        values = list(set(chain.from_iterable(values)))
        if None in values:
            raise UserError(f"column {column!r} has lists with an empty label")
    return tuple(str(value) for value in sorted(values))


def labels_of(rows: datasets.Dataset, column: str, classes: Sequence[str], description: str) -> Tensor:
    """The labels of a split: int64 [n], or for a column of lists uint8 [n, C], 1 for each class of an image.

    Args:
        rows: of the split.
        column: of its labels.
        classes: of the training split.
        description: the split's name in messages.

    Raises:
        UserError: for a label that is not among the classes, or a row without one.
    """
    feature = class_feature(rows.features[column])
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    index = multi_hot if is_list(rows.features[column]) else class_index
    return index(_values(rows, column), names, classes, description, column)


def class_index(
    values: Sequence[Any],
    names: Sequence[str] | None,
    classes: Sequence[str],
    description: str,
    column: str | None = None,
) -> Tensor:
    """The index of each label in the list of classes: int64 [n].

    Args:
        values: labels as in the data.
        names: of the classes, if the values are indices of a ClassLabel.
        classes: of the training split.
        description: the split's name in messages.
        column: of the labels, if there are columns.

    Raises:
        UserError: for a label that is not among the classes.
    """
    index_of = _index_of(set(values), names, classes, description, column)
    return torch.tensor([index_of[value] for value in values], dtype=torch.int64)


def multi_hot(
    values: Sequence[Collection[Any] | None],
    names: Sequence[str] | None,
    classes: Sequence[str],
    description: str,
    column: str | None = None,
) -> Tensor:
    """1 for each class of an image, else 0: uint8 [n, C]. Arguments and errors are those of `class_index`."""
    if None in values:
        raise UserError(
            f"{description} has rows without a list of labels (an image of no class has an empty list)"
        )
    lists = [list(several or ()) for several in values]
    index_of = _index_of(set(chain.from_iterable(lists)), names, classes, description, column)
    rows = [row for row, several in enumerate(lists) for _ in several]
    columns = [index_of[value] for several in lists for value in several]
    labels_nC = torch.zeros(len(lists), len(classes), dtype=torch.uint8)
    labels_nC[rows, columns] = 1
    return labels_nC


def _index_of(
    values: Collection[Any],
    names: Sequence[str] | None,
    classes: Sequence[str],
    description: str,
    column: str | None,
) -> dict[Any, int]:
    """Index in the list of classes, by label."""
    known = {name: index for index, name in enumerate(classes)}
    index_of = {}
    for value in values:
        is_number = names is not None and value is not None and 0 <= value < len(names)
        name = str(value) if names is None else names[value] if is_number else None
        if name is None or name not in known:
            where = "" if column is None else f" in column {column!r}"
            raise UserError(
                f"{description} has the label {value!r}{where}, which is not one of the {len(classes)} training classes"
            )
        index_of[value] = known[name]
    return index_of


def _values(rows: datasets.Dataset, column: str) -> list[Any]:
    """A column as Python values: from Arrow, which is faster, if the rows are not reordered."""
    if rows._indices is None:
        values: list[Any] = rows.data.column(column).to_pylist()
        return values
    return list(rows[column][:])
