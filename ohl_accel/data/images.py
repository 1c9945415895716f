"""Images of one split: rows decoded to uint8 tensors of one size, with the labels beside them.

Shapes: n images asked for, C channels, H rows, W columns.
"""

import copy
from collections.abc import Sequence

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from ohl_accel.errors import UserError

_IN_MEMORY_BYTES = 2**30


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Decodes rows on demand, or once for all after `keep`.

    Args:
        rows: the split, with an undecoded image column.
        column: name of the image column.
        labels: int64 [rows], places in the list of classes.
        size: (H, W) of every image.
        channels: 1 or 3.
        squash: how to resize images of another size: True changes the aspect ratio, False fills the
            size and cuts what is over in the centre, None refuses them.
        description: what messages call this split.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        column: str,
        labels: Tensor,
        size: tuple[int, int],
        channels: int,
        squash: bool | None,
        description: str,
    ) -> None:
        self.rows = rows
        self.column = column
        self.labels = labels
        self.size = size
        self.channels = channels
        self.description = description
        self._squash = squash
        self._numbers: Sequence[int] = range(len(labels))
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(uint8 [n, C, H, W], int64 [n]) of the rows asked for; DataLoader calls it for a whole batch.

        Raises:
            UserError: if an image cannot be decoded, or has another size and none is set.
        """
        labels_n = self.labels[list(indices)]
        if self._kept is not None:
            return self._kept[list(indices)], labels_n
        return self._decode(indices), labels_n

    @property
    def kept(self) -> bool:
        """Whether the pixels are in memory."""
        return self._kept is not None

    def subset(self, indices: Sequence[int]) -> "Images":
        """The given rows, in the given order; to be taken before pixels are kept."""
        assert self._kept is None
        chosen = copy.copy(self)
        chosen._numbers = [self._numbers[index] for index in indices]
        chosen.labels = self.labels[list(indices)]
        return chosen

    def keep(self, in_memory: bool | str) -> None:
        """Decode everything now, if asked to or (`auto`) if it takes up to 1 GiB."""
        total = len(self) * self.channels * self.size[0] * self.size[1]
        if in_memory is True or (in_memory == "auto" and total <= _IN_MEMORY_BYTES):
            kept = torch.empty(len(self), self.channels, *self.size, dtype=torch.uint8)
            for first in range(0, len(self), 1000):
                part = range(first, min(first + 1000, len(self)))
                kept[first : part.stop] = self._decode(part)
            self._kept = kept

    def _decode(self, indices: Sequence[int]) -> Tensor:
        batch = torch.empty(len(indices), self.channels, *self.size, dtype=torch.uint8)
        rows = [self._numbers[index] for index in indices]
        opened = _open_images(self.rows, self.column, rows, self.description)
        for place, (row, image) in enumerate(zip(rows, opened, strict=True)):
            batch[place] = self._pixels(image, row)
        return batch

    def _pixels(self, image: Image.Image | None, row: int) -> Tensor:
        if image is None:
            raise UserError(f"row {row} of {self.description} has no image in column {self.column!r}")
        image = image.convert("L" if self.channels == 1 else "RGB")
        height, width = self.size
        if image.size != (width, height):
            if self._squash is None:
                raise UserError(
                    f"image {row} of {self.description} has {image.height} x {image.width} pixels, others "
                    f"{height} x {width}: set data.image_size to resize them"
                )
            if self._squash:
                image = image.resize((width, height), Image.Resampling.BICUBIC)
            else:
                image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        levels = torch.from_numpy(np.array(image))
        return levels[None] if self.channels == 1 else levels.permute(2, 0, 1)


def first_image(rows: datasets.Dataset, column: str, description: str) -> Image.Image:
    """The first image of a split.

    Raises:
        UserError: if the split is empty or the image is missing.
    """
    if len(rows) == 0:
        raise UserError(f"{description} is empty")
    image = _open_images(rows, column, [0], description)[0]
    if image is None:
        raise UserError(f"row 0 of {description} has no image in column {column!r}")
    return image


def is_grey(rows: datasets.Dataset, column: str, description: str) -> bool:
    """Whether all of the first 256 images are grey."""
    some = _open_images(rows, column, range(min(256, len(rows))), description)
    return all(image is None or image.mode in ("1", "L") for image in some)


def _open_images(
    rows: datasets.Dataset, column: str, indices: Sequence[int], description: str
) -> list[Image.Image | None]:
    """PIL images of some rows.

    Raises:
        UserError: naming the first row that cannot be decoded.
    """
    try:
        images: list[Image.Image | None] = rows[list(indices)][column]
    except Exception as error:
        if len(indices) > 1:
            return [image for row in indices for image in _open_images(rows, column, [row], description)]
        raise UserError(f"image {indices[0]} of {description} cannot be decoded: {error}") from error
    return images
