"""What the training split tells about every split: columns, classes, size and channels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor

from ohl_accel.data.images import Decoding, Images, Rows, Source, first_image, is_grey
from ohl_accel.errors import UserError
from ohl_accel.recipe import DataSection


@dataclass(frozen=True)
class Schema:
    """What the training split tells about every split: columns, classes, size and channels."""

    image_column: str
    label_column: str
    class_names: tuple[str, ...]
    size: tuple[int, int]
    channels: int

    @classmethod
    def of(cls, rows: datasets.Dataset, data: DataSection, description: str) -> "Schema":
        """Found in the features and the first images, where the recipe does not say it.

        Raises:
            UserError: if there is no such column, or no label or image can be made of it.
        """
        image_column, label_column = image_column_of(rows, data), label_column_of(rows, data)
        class_names = _class_names(rows, label_column)
        source = Rows(_with_images(rows, image_column), image_column, description)
        return cls.found(source, image_column, label_column, class_names, data, description)

    @classmethod
    def found(
        cls,
        source: Source,
        image_column: str,
        label_column: str,
        class_names: tuple[str, ...],
        data: DataSection,
        description: str,
    ) -> "Schema":
        """With the size and channels of the first images, where the recipe does not say them."""
        if data.channels and data.image_size:
            return cls(image_column, label_column, class_names, data.image_size, data.channels)
        first = first_image(source, description)
        channels = data.channels or (1 if is_grey(source) else 3)
        size = data.image_size or (first.height, first.width)
        return cls(image_column, label_column, class_names, size, channels)

    def decoding(self, data: DataSection) -> Decoding:
        """What becomes of the images."""
        squash = data.crop_mode == "squash" if data.image_size else None
        return Decoding(self.size, self.channels, squash, data.crop_pct, data.corrupt_fraction > 0)

    def images(self, rows: datasets.Dataset, data: DataSection, description: str) -> Images:
        """The images of a split.

        Raises:
            UserError: if it lacks a column or has other labels.
        """
        for column in (self.image_column, self.label_column):
            if column not in rows.column_names:
                raise UserError(
                    f"{description} has no column {column!r}; it has: {', '.join(rows.column_names)}"
                )
        labels = _labels(rows, self, description)
        source = Rows(_with_images(rows, self.image_column), self.image_column, description)
        return Images(source, labels, self.decoding(data), description)


def image_column_of(rows: datasets.Dataset, data: DataSection) -> str:
    """The image column: as named, or the only one.

    Raises:
        UserError: if there is none, or several.
    """
    if data.image_column is not None:
        return _named_column(rows, "data.image_column", data.image_column)
    found = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if len(found) != 1:
        raise UserError(
            f"{data.path} has {'several' if found else 'no'} image columns; set data.image_column to one of: "
            f"{', '.join(found or rows.column_names)}"
        )
    return str(found[0])


def label_column_of(rows: datasets.Dataset, data: DataSection) -> str:
    """The label column: as named, or the only one, or the one named `label`.

    Raises:
        UserError: if there is none, or several.
    """
    if data.label_column is not None:
        return _named_column(rows, "data.label_column", data.label_column)
    found = [name for name, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(found) == 1:
        return str(found[0])
    if "label" in rows.column_names:
        return "label"
    raise UserError(
        f"{data.path} has {'several' if found else 'no'} label columns; set data.label_column to one of: "
        f"{', '.join(found or rows.column_names)}"
    )


def _named_column(rows: datasets.Dataset, key: str, name: str) -> str:
    if name not in rows.column_names:
        raise UserError(f"{key}={name}: there is no such column; there are: {', '.join(rows.column_names)}")
    return name


def _with_images(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """Rows whose image column decodes to PIL images, also where the file holds plain bytes or paths."""
    if isinstance(rows.features[column], datasets.Image):
        return rows
    try:
        return rows.cast_column(column, datasets.Image())
    except Exception as error:
        raise UserError(f"column {column!r} holds no images: {error}") from error


def _class_names(rows: datasets.Dataset, column: str) -> tuple[str, ...]:
    """Names of the classes: of the ClassLabel, or the sorted values of a column of numbers or text."""
    feature = rows.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    kinds = ("string", "bool", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)))
    if getattr(feature, "dtype", None) not in kinds:
        raise UserError(
            f"column {column!r} holds no labels: it is {feature}, not classes, whole numbers or text"
        )
    values = rows.unique(column)
    if None in values:
        raise UserError(f"column {column!r} holds rows without a label")
    return tuple(str(value) for value in sorted(values))


def _labels(rows: datasets.Dataset, schema: Schema, description: str) -> Tensor:
    feature = rows.features[schema.label_column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    column = schema.label_column
    values = rows.data.column(column).to_pylist() if rows._indices is None else rows[column][:]
    known = list(set(values))
    place_of = dict(zip(known, class_places(known, names, schema, description), strict=True))
    return torch.tensor([place_of[value] for value in values], dtype=torch.int64)


def class_places(
    values: Sequence[Any], names: Sequence[str] | None, schema: Schema, description: str
) -> list[int]:
    """The place of each label in the list of classes.

    Args:
        values: as they stand in the data.
        names: of ClassLabel's numbers, if the values are such.
        schema: has the list.
        description: of the split.

    Raises:
        UserError: for a label that is not in the list.
    """
    place_of = {name: place for place, name in enumerate(schema.class_names)}
    places = []
    for value in values:
        known = names is None or (value is not None and 0 <= value < len(names))
        name = str(value) if names is None else names[value] if known else None
        if name is None or name not in place_of:
            raise UserError(
                f"{description} has the label {value!r} in column {schema.label_column!r}, which is none of the "
                f"{len(schema.class_names)} training classes"
            )
        places.append(place_of[name])
    return places
