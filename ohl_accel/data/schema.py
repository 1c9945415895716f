"""What all splits have in common, as found in the training split: columns, classes, size and channels."""

from dataclasses import dataclass

import datasets
from torch import Tensor

from ohl_accel.data.images import Decoding, Images, Rows, Source, first_image, is_grey
from ohl_accel.data.labels import class_feature, class_names, is_list, labels_of
from ohl_accel.errors import UserError, first_line
from ohl_accel.recipe import DataSection


@dataclass(frozen=True)
class Schema:
    """What all splits have in common, as found in the training split: columns, classes, size (H, W) and channels.

    `multi_label`: whether an image may have several classes, or none (labels uint8 [n, C]), rather than exactly
    one (int64 [n]).
    """

    image_column: str
    label_column: str
    class_names: tuple[str, ...]
    size: tuple[int, int]
    channels: int
    multi_label: bool = False

    @classmethod
    def of(cls, rows: datasets.Dataset, data: DataSection, description: str) -> "Schema":
        """From the recipe, or else from the features and the first images.

        Raises:
            UserError: if there is no such column, or it does not hold images or labels.
        """
        image_column = image_column_of(rows, data, description)
        label_column = label_column_of(rows, data, description)
        source = Rows(_with_images(rows, image_column), image_column, description)
        return cls.found(
            source,
            data,
            description,
            image_column=image_column,
            label_column=label_column,
            class_names=class_names(rows, label_column),
            multi_label=is_list(rows.features[label_column]),
        )

    @classmethod
    def found(
        cls,
        source: Source,
        data: DataSection,
        description: str,
        *,
        image_column: str,
        label_column: str,
        class_names: tuple[str, ...],
        multi_label: bool = False,
    ) -> "Schema":
        """With the recipe's size and channels, or else those of the first images."""
        size, channels = data.image_size, data.channels
        if not (size and channels):
            first = first_image(source, description)
            channels = channels or (1 if is_grey(source) else 3)
            size = size or (first.height, first.width)
        return cls(image_column, label_column, class_names, size, channels, multi_label)

    def decoding(self, data: DataSection) -> Decoding:
        """How the images are decoded."""
        squash = data.crop_mode == "squash" if data.image_size else None
        return Decoding(self.size, self.channels, squash, data.crop_pct, data.corrupt_fraction > 0)

    def images(self, rows: datasets.Dataset, data: DataSection, description: str) -> Images:
        """The images of a split.

        Raises:
            UserError: if a column is missing or labels are unknown.
        """
        for column in (self.image_column, self.label_column):
            if column not in rows.column_names:
                raise UserError(
                    f"{description} has no column {column!r}; it has: {', '.join(rows.column_names)}"
                )
        self.check_labels(is_list(rows.features[self.label_column]), description)
        labels = labels_of(rows, self.label_column, self.class_names, description)
        source = Rows(_with_images(rows, self.image_column), self.image_column, description)
        return Images(source, labels, self.decoding(data), description)

    def check_labels(self, multi_label: bool, description: str) -> None:
        """Reject a split whose images have lists of classes if those of the training split have one, or vice versa.

        Raises:
            UserError: naming the split.
        """
        if multi_label != self.multi_label:
            own, others = (
                ("a list of labels", "one label") if multi_label else ("one label", "a list of labels")
            )
            raise UserError(f"{description} has {own} per image, but the training split has {others}")

    def label_text(self, label: Tensor) -> str:
        """The class of an image by name; for multi-label data all of them, separated by commas.

        Args:
            label: of one image: int64 [], or uint8 or float [C].
        """
        if not self.multi_label:
            return self.class_names[int(label)]
        return ", ".join(self.class_names[index] for index in label.nonzero().flatten().tolist()) or "none"


def image_column_of(rows: datasets.Dataset, data: DataSection, description: str) -> str:
    """The image column: as named, or the only one.

    Args:
        rows: of a split.
        data: the recipe's data section.
        description: the split's name in messages.

    Raises:
        UserError: if there is none, or several.
    """
    if data.image_column is not None:
        return _named_column(rows, "data.image_column", data.image_column)
    found = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if len(found) != 1:
        raise UserError(
            f"{description} has {'several' if found else 'no'} image columns; set data.image_column to one of: "
            f"{', '.join(found or rows.column_names)}"
        )
    return str(found[0])


def label_column_of(rows: datasets.Dataset, data: DataSection, description: str) -> str:
    """The label column: as named, or the only one of classes, or the one named `label`, or the only one of lists.

    Args:
        rows: of a split.
        data: the recipe's data section.
        description: the split's name in messages.

    Raises:
        UserError: if there is none, or several.
    """
    if data.label_column is not None:
        return _named_column(rows, "data.label_column", data.label_column)
    columns = rows.features.items()
    one = [name for name, feature in columns if isinstance(feature, datasets.ClassLabel)]
    several = [
        name
        for name, feature in columns
        if is_list(feature) and isinstance(class_feature(feature), datasets.ClassLabel)
    ]
    if len(one) == 1:
        return str(one[0])
    if "label" in rows.column_names:
        return "label"
    if not one and len(several) == 1:
        return str(several[0])
    found = one or several
    raise UserError(
        f"{description} has {'several' if found else 'no'} label columns; set data.label_column to one of: "
        f"{', '.join(found or rows.column_names)}"
    )


def _named_column(rows: datasets.Dataset, key: str, name: str) -> str:
    if name not in rows.column_names:
        raise UserError(f"{key}={name}: there is no such column; columns: {', '.join(rows.column_names)}")
    return name


def _with_images(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """Rows whose image column decodes to PIL images, even if the file holds plain bytes or paths."""
    if isinstance(rows.features[column], datasets.Image):
        return rows
    try:
        cast: datasets.Dataset = rows.cast_column(column, datasets.Image())
        return cast
    except Exception as error:
        raise UserError(f"column {column!r} does not hold images: {first_line(error)}") from error
