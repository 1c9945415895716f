"""Images of one split, decoded to uint8 tensors of one size, with their labels.

Shapes: n requested images, C channels, H rows, W columns.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ohl_accel.data.crops import centre
from ohl_accel.data.identity import hashes_of_rows, path_of_row
from ohl_accel.errors import UserError, first_line
from ohl_accel.operations.depth import DEEP_GREY, eight_bits
from ohl_accel.rng import keyed_generator

_IN_MEMORY_BYTES = 2**30
_REPLACEMENTS_TRIED = 100
_GREY = ("1", "L", *DEEP_GREY)
_LOOKED_AT = 256
Opened = Image.Image | str
"""A PIL image, or the reason why it cannot be decoded."""
Crop = Callable[[Image.Image, int], Image.Image]
"""Crops an image, given its index among the requested ones."""


class Source(Protocol):
    """Where the images of a split come from; an image is identified by its number in the split."""

    @property
    def blocks(self) -> Tensor | None:
        """int64 [images], the block of each; the images of a block are read together. None: each is read alone."""

    @property
    def bytes_per_block(self) -> float:
        """Mean size of a block."""

    def __len__(self) -> int: ...

    def open(self, numbers: Iterable[int]) -> Iterator[Opened]:
        """The images with the given numbers, in their order."""

    def planned(self, numbers: Tensor) -> AbstractContextManager[Callable[[Iterable[int]], Iterator[Opened]]]:
        """An `open` for images that will be requested in the given order, each once; it may read ahead."""

    def name(self, number: int) -> str:
        """The name of an image in messages."""

    def hashes(self) -> NDArray[np.uint64] | None:
        """Of the content of each image, uint64 [images]: those of copies are equal. None: it would take too long."""


@dataclass(frozen=True)
class Decoding:
    """How the images of a run are decoded.

    `size` (H, W) and `channels` are those of the tensors. `squash` says how to resize images of another
    size: True changes the aspect ratio, False fills the size and crops the centre (keeping `crop_pct` of each side),
    None rejects them. `replace`: whether an image that cannot be decoded is replaced by another one.
    """

    size: tuple[int, int]
    channels: int
    squash: bool | None
    crop_pct: float = 1.0
    replace: bool = False


@dataclass(frozen=True)
class Replaced:
    """An image that cannot be decoded, the one that replaced it, and why."""

    image: str
    by: str
    why: str


@dataclass
class Tally:
    """How many images were decoded, and which of them were replaced."""

    decoded: int = 0
    replaced: list[Replaced] = field(default_factory=list)
    decoded_before: int = 0
    """In the outer steps that are done, as `replaced_before`."""
    replaced_before: int = 0

    def add(self, decoded: int, replaced: Sequence[Replaced]) -> None:
        """Count a batch."""
        self.decoded += decoded
        self.replaced += replaced

    def following(self) -> "Tally":
        """That of the next outer step."""
        return Tally(
            decoded_before=self.decoded_before + self.decoded,
            replaced_before=self.replaced_before + len(self.replaced),
        )


class Images:
    """Decodes images on demand, or all of them once, by `keep`.

    Args:
        source: of the split.
        labels: int64 [images], indices into the list of classes; for multi-label data uint8 [images, classes],
            1 for each class of an image.
        decoding: size and channels of the tensors.
        description: the split's name in messages.
    """

    def __init__(self, source: Source, labels: Tensor, decoding: Decoding, description: str) -> None:
        self.source = source
        self.labels = labels
        self.decoding = decoding
        self.description = description
        self.tally = Tally()
        self.numbers = torch.arange(len(labels))
        """int64 [images]: their numbers in the source."""
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pixels, uint8 [n, C, H, W], and labels, int64 [n] or multi-hot float32 [n, classes], of some images.

        Raises:
            UserError: if an image cannot be decoded and is not to be replaced, or has a different size and
                `data.image_size` is not set.
        """
        images_nCHW = self.empty(len(indices))
        labels, replaced = self.decode(indices, images_nCHW)
        if not self.kept:
            self.tally.add(len(labels), replaced)
        return images_nCHW, labels

    def empty(self, images: int) -> Tensor:
        """An uninitialized tensor for a number of images: uint8 [images, C, H, W]."""
        return torch.empty(images, self.decoding.channels, *self.decoding.size, dtype=torch.uint8)

    def decode(
        self,
        indices: Sequence[int],
        images_nCHW: Tensor,
        crop: Crop | None = None,
        opener: Callable[[Iterable[int]], Iterator[Opened]] | None = None,
    ) -> tuple[Tensor, list[Replaced]]:
        """Decode some images into a given tensor; returns their labels and which were replaced (not yet counted).

        Labels are int64 [n], or multi-hot float32 [n, classes].

        Args:
            indices: of the images, in this split.
            images_nCHW: uint8, filled with their pixels.
            crop: how they are cropped; None: as `decoding` says.
            opener: from the source's `planned`.

        Raises:
            UserError: as `__getitems__`.
        """
        index_n = torch.tensor(indices, dtype=torch.int64)
        replaced: list[Replaced] = []
        labels, numbers = self.labels[index_n], self.numbers[index_n].tolist()
        if self._kept is not None:
            torch.index_select(self._kept, 0, index_n, out=images_nCHW)
            return _for_loss(labels), replaced
        for i, opened in enumerate((opener or self.source.open)(numbers)):
            number = numbers[i]
            if isinstance(opened, str):
                opened, index, because = self._replacement(number, opened)
                number = int(self.numbers[index])
                labels[i] = self.labels[index]
                replaced.append(because)
            images_nCHW[i] = self._pixels(opened, number, i, crop)
        return _for_loss(labels), replaced

    @property
    def kept(self) -> bool:
        """Whether the pixels are in memory."""
        return self._kept is not None

    @property
    def blocks(self) -> Tensor | None:
        """int64 [images], the block of each; the images of a block are read together. None: each is read alone."""
        return None if self.source.blocks is None else self.source.blocks[self.numbers]

    @property
    def fits_in_memory(self) -> bool:
        """Whether decoded images take up to 1 GiB."""
        total = len(self) * self.decoding.channels * self.decoding.size[0] * self.decoding.size[1]
        return total <= _IN_MEMORY_BYTES

    def subset(self, indices: Sequence[int] | Tensor) -> "Images":
        """The given images, in the given order; decoded ones are copied."""
        chosen = copy.copy(self)
        chosen.tally = Tally()
        index_n = torch.as_tensor(indices, dtype=torch.int64)
        chosen.numbers, chosen.labels = self.numbers[index_n], self.labels[index_n]
        chosen._kept = None if self._kept is None else self._kept[index_n]
        return chosen

    def keep(self, in_memory: bool | str) -> None:
        """Decode everything now if `in_memory` is True, or "auto" and it takes at most 1 GiB."""
        if in_memory is True or (in_memory == "auto" and self.fits_in_memory):
            kept, labels = self.empty(len(self)), self.labels.clone()
            with self.source.planned(self.numbers) as opener:
                for first in range(0, len(self), 1000):
                    part = slice(first, first + 1000)
                    indices = range(first, min(first + 1000, len(self)))
                    labels[part], replaced = self.decode(indices, kept[part], opener=opener)
                    self.tally.add(len(labels[part]), replaced)
            self._kept, self.labels = kept, labels

    def _replacement(self, number: int, why: str) -> tuple[Image.Image, int, Replaced]:
        """Another image of this split to replace one that cannot be decoded, and its index.

        The choice depends only on the bad image's number in the source.
        """
        name = self.source.name(number)
        if not self.decoding.replace:
            raise UserError(f"{name} cannot be decoded: {why} (data.max_corrupt replaces such images)")
        generator = keyed_generator(0, "replacement", number)
        for _ in range(_REPLACEMENTS_TRIED):
            index = int(torch.randint(len(self), (1,), generator=generator))
            (opened,) = self.source.open([int(self.numbers[index])])
            if not isinstance(opened, str):
                return opened, index, Replaced(name, self.source.name(int(self.numbers[index])), why)
        raise UserError(
            f"{name} cannot be decoded: {why}; neither can {_REPLACEMENTS_TRIED} others of {self.description}"
        )

    def _pixels(self, image: Image.Image, number: int, index: int, crop: Crop | None) -> Tensor:
        decoding = self.decoding
        mode = "L" if decoding.channels == 1 else "RGB"
        if image.mode != mode:  # convert always copies
            try:
                image = eight_bits(image).convert(mode)
            except ValueError as error:
                raise UserError(f"{self.source.name(number)} cannot be used: {error}") from error
        height, width = decoding.size
        if crop is not None:
            image = crop(image, index)
        elif image.size != (width, height) or decoding.crop_pct != 1:
            if decoding.squash is None:
                raise UserError(
                    f"{self.source.name(number)} has {image.height} x {image.width} pixels, others "
                    f"{height} x {width}: set data.image_size to resize them"
                )
            if decoding.squash:
                image = image.resize((width, height), Image.Resampling.BICUBIC)
            else:
                image = centre(image, (height, width), decoding.crop_pct)
        levels = torch.from_numpy(np.array(image))
        return levels[None] if decoding.channels == 1 else levels.permute(2, 0, 1)


def _for_loss(labels: Tensor) -> Tensor:
    """Indices stay as they are; multi-hot labels become float32."""
    return labels.float() if labels.ndim == 2 else labels


class Rows:
    """A source: rows of a local dataset, decoded by datasets.

    Args:
        rows: with an undecoded image column.
        column: name of the image column.
        description: the split's name in messages.
    """

    blocks = None
    bytes_per_block = 0.0

    def __init__(self, rows: datasets.Dataset, column: str, description: str) -> None:
        self._rows, self._column, self._description = rows, column, description

    def __len__(self) -> int:
        return len(self._rows)

    def open(self, numbers: Iterable[int]) -> Iterator[Opened]:
        """PIL images of some rows, or the reason why one cannot be decoded."""
        numbers = list(numbers)
        try:
            images = self._rows[numbers][self._column]
        except Exception as error:
            if len(numbers) > 1:
                for number in numbers:
                    yield from self.open([number])
            else:
                yield why_not(error)
            return
        for image in images:
            yield f"no image in column {self._column!r}" if image is None else image

    def planned(self, numbers: Tensor) -> AbstractContextManager[Callable[[Iterable[int]], Iterator[Opened]]]:
        """Nothing is read ahead."""
        return nullcontext(self.open)

    def name(self, number: int) -> str:
        """What messages call a row: its file, or its number and, where it is known, what its file was called."""
        path = path_of_row(self._rows, self._column, number)
        if path is not None and ("://" in path or Path(path).is_file()):
            return path
        return f"row {number} of {self._description}" + (f" ({path})" if path else "")

    def hashes(self) -> NDArray[np.uint64]:
        """Of the undecoded bytes of each row's image."""
        return hashes_of_rows(self._rows, self._column)


def why_not(error: Exception) -> str:
    """Why an image cannot be decoded, in words; the same for all sources."""
    if isinstance(error, UnidentifiedImageError):
        return "not a recognized image"
    return first_line(error)


def first_image(source: Source, description: str) -> Image.Image:
    """The first image of a split that can be decoded.

    Raises:
        UserError: if the split is empty, or none of the first 256 images can be decoded.
    """
    if len(source) == 0:
        raise UserError(f"{description} is empty")
    for image in _first_images(source):
        if not isinstance(image, str):
            return image
    raise UserError(f"{source.name(0)} cannot be decoded, nor can the following ones: {image}")


def is_grey(source: Source) -> bool:
    """Whether all of the first 256 images are grey."""
    return all(isinstance(image, str) or image.mode in _GREY for image in _first_images(source))


def _first_images(source: Source) -> Iterator[Opened]:
    return source.open(range(min(_LOOKED_AT, len(source))))


def check_not_constant(images: Images) -> None:
    """Refuse images that show nothing; looks at images spread over the split until a pixel differs from the first.

    Raises:
        UserError: if all pixels of up to 256 images have one colour.
    """
    number = min(len(images), _LOOKED_AT)
    image_1CHW, colour_1C11 = images.empty(1), None
    for index in torch.linspace(0, len(images) - 1, number, dtype=torch.float64).long().tolist():
        images.decode([index], image_1CHW)  # not counted: it is decoded again when it is used
        colour_1C11 = image_1CHW[..., :1, :1].clone() if colour_1C11 is None else colour_1C11
        if bool((image_1CHW != colour_1C11).any()):
            return
    if colour_1C11 is not None and number > 1:
        levels = ", ".join(map(str, colour_1C11.flatten().tolist()))
        raise UserError(
            f"{images.description}: every image is of one and the same colour ({levels} of 255; {number} of "
            f"{len(images)} were looked at), so there is nothing to learn: look at the files"
        )
