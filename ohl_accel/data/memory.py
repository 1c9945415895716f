"""Datasets given in Python, Hugging Face's or torch's, instead of a path in a recipe."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from ohl_accel.data.identity import hashes_of_files, unreadable
from ohl_accel.data.images import Images, Opened, why_not
from ohl_accel.data.labels import class_index, multi_hot
from ohl_accel.data.schema import Schema
from ohl_accel.data.shards import hash_of
from ohl_accel.data.source import IN_MEMORY
from ohl_accel.errors import UserError
from ohl_accel.recipe import DataSection

Split: TypeAlias = datasets.Dataset | Dataset[Any]
"""A map-style dataset: Hugging Face's, or torch's with items (image, label)."""
GivenData: TypeAlias = Split | Mapping[str, Split] | datasets.DatasetDict
"""The training split, or splits by name (a `datasets.DatasetDict` is such a mapping)."""


def section_of(data: DataSection, dataset: GivenData) -> DataSection:
    """The data section of a recipe for a run on given data: fields that say where data is are reset.

    A dataset that is not a mapping is the training split, so there is no test split.

    Raises:
        UserError: for a split that a mapping does not have.
    """
    nowhere: dict[str, Any] = {
        "path": IN_MEMORY,
        "name": None,
        "revision": None,
        "streaming": False,
        "test_path": None,
    }
    if not isinstance(dataset, Mapping):
        nowhere["test_split"] = None
        if data.heldout_split is not None:
            raise UserError(
                f"data.heldout_split={data.heldout_split}: the given dataset is a single split; give a mapping from "
                "names to splits, or hold out images of it with data.heldout"
            )
    else:
        for split in (data.train_split, data.heldout_split, data.test_split):
            if split is not None and split not in dataset:
                raise UserError(
                    f"the given dataset has no split {split!r}; it has: {', '.join(map(str, dataset))} "
                    "(choose with data.train_split, data.heldout_split and data.test_split; data.test_split=null if "
                    "there is no test split)"
                )
    return data.model_copy(update=nowhere)


def open_given(
    data: DataSection, dataset: GivenData, split: str, schema: Schema | None
) -> tuple[Images, Schema]:
    """The images of a split of given data, and the schema: the one given, or as found in the split.

    Rows of Hugging Face are used without their format and transform (`set_format`, `set_transform`), which
    would make tensors of images before the policy sees them. What `map` has made is part of the rows. Items of
    a torch dataset are as its `__getitem__` gives them, the same each time: it must transform nothing at random.
    Copies of its images are recognized, and its images compared on resuming, where they are files or take up to
    1 GiB; of larger datasets of torch only the labels and some images are compared.

    Args:
        data: the recipe's data section.
        dataset: one split, whatever its name, or splits by name.
        split: its name.
        schema: of the training split.

    Raises:
        UserError: for an unsupported kind of dataset, or one whose items are not images and labels.
    """
    found = dataset[split] if isinstance(dataset, Mapping) else dataset
    description = f"split {split!r} of the given dataset"
    if isinstance(found, datasets.Dataset):
        rows = found.with_format(None)
        schema = schema or Schema.of(rows, data, description)
        return schema.images(rows, data, description), schema
    map_style = all(hasattr(found, method) for method in ("__getitem__", "__len__"))
    if isinstance(found, IterableDataset | datasets.IterableDataset | str) or not map_style:
        raise UserError(
            f"{description} is a {type(found).__name__}: give a datasets.Dataset, or a torch dataset that has "
            "__getitem__ and __len__"
        )
    items = Items(found, description)
    labels = [_label(label, items.name(number)) for number, label in enumerate(_all_labels(found, items))]
    own_names = _class_names(found)
    if schema is None:
        if not labels:
            raise UserError(f"{description} is empty")
        num_classes = max(label.classes for label in labels)
        schema = Schema.found(
            items,
            data,
            description,
            image_column="image",
            label_column="label",
            class_names=own_names or tuple(str(index) for index in range(num_classes)),
            multi_label=isinstance(labels[0].value, list),
        )
    for label in labels:
        schema.check_labels(isinstance(label.value, list), description)
    names = own_names or schema.class_names
    if schema.multi_label:
        lists = [label.value for label in labels if isinstance(label.value, list)]
        tensor = multi_hot(lists, names, schema.class_names, description)
    else:
        tensor = class_index([label.value for label in labels], names, schema.class_names, description)
    return Images(items, tensor, schema.decoding(data), description), schema


_HASHED_BYTES = 2**30


class Items:
    """A source: a map-style torch dataset whose items are (image, label).

    Args:
        dataset: images as PIL images, uint8 tensors [C, H, W] or uint8 arrays [H, W, C] or [H, W].
        description: the split's name in messages.
    """

    blocks = None
    bytes_per_block = 0.0

    def __init__(self, dataset: Any, description: str) -> None:
        self._dataset, self._description = dataset, description

    def __len__(self) -> int:
        return len(self._dataset)

    def open(self, numbers: Iterable[int]) -> Iterator[Opened]:
        """PIL images of some items, or the reason why one cannot be decoded.

        Raises:
            UserError: for an item that is not an image and a label.
        """
        for number in numbers:
            try:
                item = self._dataset[number]
            except Exception as error:  # whatever the dataset raises for a damaged image
                yield why_not(error)
            else:
                yield _as_pil(_pair(item, self.name(number))[0], self.name(number))

    def planned(self, numbers: Tensor) -> AbstractContextManager[Callable[[Iterable[int]], Iterator[Opened]]]:
        """Nothing is read ahead."""
        return nullcontext(self.open)

    def name(self, number: int) -> str:
        """What messages call an item: its file, where the dataset knows it, as torchvision's folders do."""
        return _file_of(self._dataset, number) or f"image {number} of {self._description}"

    def hashes(self) -> NDArray[np.uint64] | None:
        """Of the file of each item, where the dataset knows it, or of its pixels; None if these take more than 1 GiB.

        Raises:
            UserError: for an item that is not an image and a label.
        """
        files = [_file_of(self._dataset, number) for number in range(len(self))]
        if all(file is not None for file in files):
            return hashes_of_files([file for file in files if file is not None])
        first = next((image for image in self.open(range(len(self))) if not isinstance(image, str)), None)
        if first is None or first.width * first.height * len(first.getbands()) * len(self) > _HASHED_BYTES:
            return None
        return np.fromiter(self.hashes_of(range(len(self))), np.uint64, len(self))

    def hashes_of(self, numbers: Sequence[int]) -> Iterator[int]:
        """Of the pixels of some items."""
        for number, image in zip(numbers, self.open(numbers), strict=True):
            if isinstance(image, str):
                yield unreadable(number)
            else:
                yield hash_of(repr((image.mode, image.size)).encode() + image.tobytes())

    def labels(self) -> Iterator[Any]:
        """The label of every item, in their order; each item is read.

        Raises:
            UserError: for an item that cannot be read, or is not an image and a label.
        """
        for number in range(len(self)):
            try:
                item = self._dataset[number]
            except Exception as error:
                raise UserError(
                    f"the label of {self.name(number)} cannot be read: {why_not(error)}"
                ) from error
            yield _pair(item, self.name(number))[1]


def _file_of(dataset: Any, number: int) -> str | None:
    if isinstance(dataset, Subset):
        return _file_of(dataset.dataset, dataset.indices[number])
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, Sequence) or len(samples) != len(dataset):
        return None
    file = samples[number][0] if isinstance(samples[number], tuple) else None
    return str(file) if isinstance(file, str | Path) else None


class _Label(NamedTuple):
    """One class or several, and the smallest possible number of classes."""

    value: int | list[int]
    classes: int


def _label(label: Any, name: str) -> _Label:
    """A whole number is a class, a list of them several; a tensor or an array of 0 and 1 is multi-hot."""
    if isinstance(label, Tensor | np.ndarray | np.generic):
        array = np.asarray(label)
        if array.ndim == 1 and np.isin(array, (0, 1)).all():
            return _Label(np.flatnonzero(array).tolist(), len(array))
        label = array.item() if array.ndim == 0 else label
    if isinstance(label, int):
        return _Label(int(label), int(label) + 1)
    if isinstance(label, list | tuple | set) and all(isinstance(index, int) for index in label):
        return _Label([int(index) for index in label], max(label, default=-1) + 1)
    raise UserError(
        f"the label of {name} is {label!r}: it must be a whole number, or for multi-label data a list of them or a "
        "vector of 0 and 1"
    )


def _all_labels(dataset: Any, items: Items) -> Iterable[Any]:
    """Labels of all items: from `targets`, as torchvision's datasets have it, or else from the items."""
    if isinstance(dataset, Subset):
        inner = _all_labels(dataset.dataset, items)
        return (
            items.labels() if not isinstance(inner, Sequence) else [inner[index] for index in dataset.indices]
        )
    targets = getattr(dataset, "targets", None)
    transformed = getattr(dataset, "target_transform", None) is not None
    if not isinstance(targets, Sequence | Tensor | np.ndarray) or len(targets) != len(dataset) or transformed:
        return items.labels()
    return list(targets)


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """`classes`, as torchvision's datasets have it; a name shared by several classes is followed by their index."""
    if isinstance(dataset, Subset):
        return _class_names(dataset.dataset)
    classes = getattr(dataset, "classes", None)
    if not isinstance(classes, Sequence) or isinstance(classes, str) or not classes:
        return None
    names = [name if isinstance(name, str) else ", ".join(map(str, name)) for name in classes]
    return tuple(name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names))


def _pair(item: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UserError(f"{name} is a {type(item).__name__}: an item must be (image, label)")
    return item[0], item[1]


def _as_pil(image: Any, name: str) -> Image.Image:
    """An item's image as a PIL image.

    Raises:
        UserError: if it is neither a PIL image nor uint8 of a suitable shape.
    """
    if isinstance(image, Image.Image):
        return image
    channels_last = image
    if isinstance(image, Tensor):
        channels_last = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy(force=True)
    if isinstance(channels_last, np.ndarray) and channels_last.dtype == np.uint8:
        if channels_last.ndim == 3 and channels_last.shape[2] == 1:
            channels_last = channels_last[:, :, 0]
        if channels_last.ndim == 2 or (channels_last.ndim == 3 and channels_last.shape[2] == 3):
            return Image.fromarray(np.ascontiguousarray(channels_last))
    kind = type(image).__name__
    if isinstance(image, Tensor | np.ndarray):
        kind = f"{image.dtype} {kind} of shape {list(image.shape)}"
    raise UserError(
        f"{name} is a {kind}: give a PIL image, a uint8 tensor [C, H, W] or a uint8 array [H, W, C], with 1 or 3 "
        "channels (the run normalizes: leave out transforms such as ToTensor)"
    )
