"""A stream: images read from shards where they are, block by block, with read-ahead.

datasets finds the files of a split, their commit and their features; the bytes are read here, with pyarrow
and fsspec. Iterating with datasets would make the order depend on the number of workers, and resuming a
shuffled stream inside an epoch would skip and repeat images (60 and 10 when measured).

Shapes: n images of a split.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ohl_accel.data.images import Images, Opened, why_not
from ohl_accel.data.index import Index, build_index
from ohl_accel.data.labels import class_index, is_list
from ohl_accel.data.schema import Schema, image_column_of, label_column_of
from ohl_accel.data.shards import decode, default_label, features_of, without_strays
from ohl_accel.data.source import files_of_split
from ohl_accel.errors import UserError
from ohl_accel.recipe import DataSection

_READERS = 4
_BYTES_AHEAD = 2**25
_BLOCKS_AHEAD = 2


class Shards:
    """A source: the images of an index.

    Args:
        index: of the split.
        skipped: files among those of the split that were not read.
    """

    def __init__(self, index: Index, skipped: int = 0) -> None:
        self.index, self.skipped = index, skipped
        self.blocks = torch.from_numpy(index.block)
        self.bytes_per_block = index.bytes_per_block
        self._last: tuple[int, list[bytes | None]] = (-1, [])

    def __len__(self) -> int:
        return len(self.index)

    def open(self, numbers: Iterable[int]) -> Iterator[Opened]:
        """PIL images by number, or the reason why one cannot be decoded; the block of the last one is cached.

        Raises:
            UserError: if a file cannot be read.
        """
        for number in numbers:
            block = int(self.index.block[number])
            if self._last[0] != block:
                self._last = block, self.index.read(block)
            yield _decoded(self._last[1][number - int(self.index.start[block])])

    @contextmanager
    def planned(self, numbers: Tensor) -> Iterator[Callable[[Iterable[int]], Iterator[Opened]]]:
        """An `open` that reads ahead: each block once, up to 32 MiB or two blocks before it is needed.

        Only the planned images of a block are held, undecoded, each until it is requested.
        """
        with ThreadPoolExecutor(_READERS) as readers:
            ahead = _Ahead(self.index, numbers.numpy(), readers)
            try:
                yield ahead.open
            finally:
                readers.shutdown(wait=False, cancel_futures=True)

    def name(self, number: int) -> str:
        """The name of an image in messages."""
        return self.index.name(number)

    def hashes(self) -> NDArray[np.uint64]:
        """Of the undecoded bytes of each image, as indexing found them."""
        return self.index.found.hash


class _Ahead:
    """Blocks being read, in the order of their first use, and the images that have been read."""

    def __init__(self, index: Index, planned: NDArray[np.int64], readers: ThreadPoolExecutor) -> None:
        self._index, self._readers = index, readers
        self._held: dict[int, bytes | None] = {}
        self._wanted = np.zeros(len(index), dtype=bool)
        self._wanted[planned] = True
        block_of_planned = index.block[planned]
        first_use = np.sort(np.unique(block_of_planned, return_index=True)[1])
        self._to_come = deque(block_of_planned[first_use].tolist())
        self._reading: deque[Future[dict[int, bytes | None]]] = deque()
        self._blocks_ahead = max(_BLOCKS_AHEAD, int(_BYTES_AHEAD / index.bytes_per_block))

    def open(self, numbers: Iterable[int]) -> Iterator[Opened]:
        """Images in the planned order."""
        for number in numbers:
            while number not in self._held:
                self._start_reads()
                self._held |= self._reading.popleft().result()
            self._start_reads()
            yield _decoded(self._held.pop(number))

    def _start_reads(self) -> None:
        while self._to_come and len(self._reading) < self._blocks_ahead:
            self._reading.append(self._readers.submit(self._read, self._to_come.popleft()))

    def _read(self, block: int) -> dict[int, bytes | None]:
        start = int(self._index.start[block])
        contents = enumerate(self._index.read(block), start)
        return {number: content for number, content in contents if self._wanted[number]}


def _decoded(content: bytes | None) -> Opened:
    try:
        return decode(content)
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        return why_not(error)


def open_stream(
    data: DataSection, split: str, path: str | None, schema: Schema | None, description: str
) -> tuple[Images, Schema]:
    """The images of a streamed split, and the schema: the one given, or as found in the split.

    Args:
        data: the recipe's data section.
        split: its name.
        path: where it is, if not in `data.path`.
        schema: of the training split; None if this is it.
        description: the split's name in messages.

    Raises:
        UserError: if there is no such split, or one of its files cannot be read or has a missing column.
    """
    files = without_strays(files_of_split(data, split, path))
    first = files.urls[0]
    features = files.features or features_of(first, data.retries)
    if schema is None:
        rows = datasets.Dataset.from_dict({name: [] for name in features}, features=features)
        image_column = image_column_of(rows, data, description)
        label_column = default_label(first) if data.label_column is None else None
        label_column = label_column or label_column_of(rows, data, description)
    else:
        image_column, label_column = schema.image_column, schema.label_column
    if is_list(features.get(label_column)):
        raise UserError(
            f"{description} has lists of labels in column {label_column!r}: multi-label data cannot be streamed, set "
            "data.streaming=false"
        )
    index = build_index(files, image_column, label_column, data.retries)
    if len(index) == 0:
        raise UserError(f"{description} is empty")
    feature = features.get(label_column)
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    source = Shards(index, files.skipped)
    if schema is None:
        class_names = tuple(names or [str(value) for value in np.unique(index.found.label)])
        schema = Schema.found(
            source,
            data,
            description,
            image_column=image_column,
            label_column=label_column,
            class_names=class_names,
        )
    values, index_n = np.unique(index.found.label, return_inverse=True)
    indices = class_index(values.tolist(), names, schema.class_names, description, label_column)
    labels = indices[torch.from_numpy(index_n)]
    return Images(source, labels, schema.decoding(data), description), schema
