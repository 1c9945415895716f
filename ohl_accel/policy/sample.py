"""What belongs together in a call of `PolicyTransform`: images, and the annotations that move with them.

A call is one sample: all its images get the same operation. Two things hold several samples: a list, whose items are
samples (of a dict of lists, the items at one index are), and a batch tensor.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils._pytree import (  # as torchvision does
    GetAttrKey,
    MappingKey,
    SequenceKey,
    TreeSpec,
    tree_flatten_with_path,
    tree_structure,
    tree_unflatten,
)
from torchvision import tv_tensors

from ohl_accel.operations.formats import looks_like_images, number_of_images

Kind = Literal["image", "mask", "boxes", "key points"]
_KINDS: dict[type, Kind] = {
    Image.Image: "image",
    tv_tensors.Image: "image",
    tv_tensors.Video: "image",
    tv_tensors.Mask: "mask",
    tv_tensors.BoundingBoxes: "boxes",
    tv_tensors.KeyPoints: "key points",
}


@dataclass
class Part:
    """An image or an annotation of a call."""

    index: int
    """Among all values of the call, in the order of torch's pytree."""
    value: Any
    kind: Kind
    row: int | None
    """Its index in a list; None: it is in none."""


@dataclass
class Sample:
    """Parts that get one operation; or, if they are batches, one for each index."""

    parts: list[Part]
    batch: int | None = None
    """Number of images in each batch; None: they are not batches."""

    @property
    def draws(self) -> int:
        """How many operations it needs."""
        return 1 if self.batch is None else self.batch


@dataclass
class Call:
    """The inputs of a call, taken apart."""

    samples: list[Sample]
    values: list[Any]
    structure: TreeSpec

    def rebuilt(self, replaced: dict[int, Any]) -> Any:
        """The inputs with some of their values replaced, by index."""
        values = [replaced.get(index, value) for index, value in enumerate(self.values)]
        return tree_unflatten(values, self.structure)


def read_call(inputs: tuple[Any, ...], masks: Collection[str | int] | None) -> Call:
    """Take a call apart.

    Args:
        inputs: its arguments.
        masks: of `PolicyTransform`.

    Raises:
        ValueError: if there is no image, or if it is not clear what is an image or what belongs together.
    """
    root = inputs if len(inputs) > 1 else inputs[0]
    if isinstance(root, Image.Image | Tensor) and type(root) in (Tensor, *_KINDS):  # by far the most frequent
        paths: list[Any] = [((), root)]
        structure = tree_structure(root)
    else:
        paths, structure = tree_flatten_with_path(root)
    values = [value for _, value in paths]
    parts = list(_parts(root, paths, masks))
    if not any(part.kind == "image" for part in parts):
        raise ValueError("no image found: give a PIL image, a uint8 tensor or array, or a tv_tensors.Image")
    return Call([_checked(sample, masks) for sample in _samples(parts)], values, structure)


def _parts(root: Any, paths: list[Any], masks: Collection[str | int] | None) -> Iterator[Part]:
    found: list[tuple[int, Any, Kind | None, int | None]] = []
    for index, (path, value) in enumerate(paths):
        if isinstance(value, Image.Image | Tensor | np.ndarray):
            names, row = _names_and_row(root, path)
            kind = "mask" if masks and not names.isdisjoint(masks) else _kind_of(value)
            found.append((index, value, kind, row))
    if not any(kind == "image" for _, _, kind, _ in found):
        plain = next(
            (index for index, value, kind, _ in found if kind is None and _may_be_image(value)), None
        )
        _check_plain([value for _, value, kind, _ in found if kind is None])
        found = [(i, value, "image" if i == plain else kind, row) for i, value, kind, row in found]
    for index, value, kind, row in found:
        if kind is not None:
            yield Part(index, value, kind, row)


def _names_and_row(root: Any, path: tuple[Any, ...]) -> tuple[set[str | int], int | None]:
    """Keys on the way to a value, with its position in the outermost tuple; its index in the outermost list."""
    names: set[str | int] = set()
    row = position = None
    for key in path:
        if isinstance(key, MappingKey):
            names.add(key.key)
        elif isinstance(key, GetAttrKey):
            names.add(key.name)
        elif isinstance(key, SequenceKey) and isinstance(root, list):
            row = key.idx if row is None else row
        elif isinstance(key, SequenceKey) and position is None:
            position = key.idx
            names.add(position)
        root = key.get(root)
    return names, row


def _kind_of(value: Any) -> Kind | None:
    """None for plain tensors and arrays.

    Raises:
        ValueError: for other tensors of torchvision's.
    """
    if type(value) is Tensor or isinstance(value, np.ndarray):
        return None
    kind = next((kind for known, kind in _KINDS.items() if isinstance(value, known)), None)
    if kind is None and isinstance(value, tv_tensors.TVTensor):
        raise ValueError(f"tv_tensors.{type(value).__name__} is not known: it cannot be moved with the image")
    return kind


def _may_be_image(value: Any) -> bool:
    """Whether a plain value is the image of a call without another: the first tensor, as in torchvision, or array."""
    return isinstance(value, Tensor) or value.ndim > 1


def _check_plain(values: list[Any]) -> None:
    plain = [value for value in values if looks_like_images(value)]
    if len(plain) > 1:
        kind = "tensors" if isinstance(plain[0], Tensor) else "arrays"
        raise ValueError(
            f"{len(plain)} plain {kind} look like images, and only the first would be transformed: stack them into one "
            "batch, wrap each in torchvision.tv_tensors.Image or Mask, or say which are masks, as in masks=['mask']"
        )


def _samples(parts: list[Part]) -> list[Sample]:
    """Parts in a list belong to the sample of their index there, unless an image is in no list."""
    if any(part.kind == "image" and part.row is None for part in parts):
        return [Sample(parts)]
    samples: dict[int | None, Sample] = {}
    for part in parts:
        samples.setdefault(part.row, Sample([])).parts.append(part)
    for row, sample in samples.items():
        if all(part.kind != "image" for part in sample.parts):
            where = (
                "in no list, but the images are"
                if row is None
                else f"at index {row} of its list, where no image is"
            )
            raise ValueError(f"the {sample.parts[0].kind} cannot be assigned to an image: {where}")
    return list(samples.values())


def _checked(sample: Sample, masks: Collection[str | int] | None) -> Sample:
    """The sample with the size of its batch.

    Raises:
        ValueError: for parts that do not fit together.
    """
    images = [part.value for part in sample.parts if part.kind == "image"]
    if masks is None and sum(isinstance(image, Image.Image | np.ndarray) for image in images) > 1:
        raise ValueError(
            f"{len(images)} images of one sample get the same operation, tones included, and it is not known whether "
            "one is a mask: say masks=[1] (a position) or masks=['mask'] (a key), or masks=[] if none is; give "
            "several samples as a list"
        )
    batches = {number_of_images(image) for image in images}
    if len(batches) > 1:
        sizes = [list(image.shape) if isinstance(image, Tensor) else image.size for image in images]
        raise ValueError(f"images of one sample must be batches of one length, or none, got {sizes}")
    sample.batch = batches.pop()
    for part in sample.parts:
        if sample.batch is not None and part.kind != "image":
            _check_in_batch(part, sample.batch)
    return sample


def _check_in_batch(part: Part, batch: int) -> None:
    if part.kind != "mask":
        raise ValueError(
            f"{part.kind} beside a batch of images: it is not known which belong to which; give a list of samples"
        )
    shape = list(getattr(part.value, "shape", part.value))
    if len(shape) < 3 or shape[0] != batch:
        raise ValueError(f"masks beside a batch of {batch} images must be [{batch}, ..., H, W], got {shape}")
