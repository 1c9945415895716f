"""The index of a streamed split: where each image is, its label and its hash, found in one pass.

About 30 bytes per image on disk and 60 in memory. What a pass finds in a file is cached by the file's name and its
size and modification time, or commit: an interrupted pass resumes, and a dataset is read once for all runs, whatever
their seeds.
"""

import hashlib
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ohl_accel.data.cache import cached, read_once
from ohl_accel.data.shards import (
    Findings,
    joined,
    open_file,
    read_row_group,
    read_span,
    runs,
    scan,
    with_retries,
)
from ohl_accel.data.source import SplitFiles
from ohl_accel.errors import UserError

_THREADS = 8
_FILES_AT_ONCE = 1000
_SECONDS_BETWEEN_REPORTS = 30
_PARQUET_FOOTERS = 256


class Index:
    """Images of a split in the order of its files, and how to read them.

    Args:
        files: of the split.
        found: what a pass over all of them found.
        image_column: of parquet files.
        retries: of a failed read.
    """

    def __init__(self, files: Sequence[str], found: Findings, image_column: str, retries: int) -> None:
        self.files, self.found = list(files), found
        self._column, self._retries = image_column, retries
        self.start = np.concatenate([[0], found.images.cumsum(dtype=np.int64)])
        """int64 [blocks + 1]: the first image of each block, and the number of images."""
        self.block = np.repeat(np.arange(len(found.images), dtype=np.int32), found.images)
        """int32 [images]: the block of each."""
        self._footers: dict[int, pq.FileMetaData] = {}

    def __len__(self) -> int:
        return len(self.block)

    @property
    def bytes_per_block(self) -> float:
        """Mean size of a block, at least 1."""
        return max(1.0, float(self.found.size.sum(dtype=np.int64)) / max(1, len(self.found.images)))

    @property
    def fingerprint(self) -> str:
        """Hash of the images, their labels and their order, independent of where the files are."""
        content = self.found.hash.tobytes() + self.found.label.astype("U").tobytes()
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    def name(self, number: int) -> str:
        """The name of an image in messages: its file, its index in it and its hash."""
        file = self.found.shard[self.block[number]]
        first_block = int(np.searchsorted(self.found.shard, file))
        index = number - int(self.start[first_block])
        return f"image {index} of {self.files[file]} (hash {int(self.found.hash[number]):016x})"

    def read(self, block: int) -> list[bytes | None]:
        """The undecoded images of a block; None where a parquet row has no bytes.

        Raises:
            UserError: if the file cannot be read, or has changed since it was indexed.
        """
        file = int(self.found.shard[block])
        url = self.files[file]
        contents = with_retries(lambda: self._read(block, file, url), url, self._retries)
        sizes = self.found.size[self.start[block] : self.start[block + 1]].tolist()
        if [len(content or b"") for content in contents] != sizes:
            raise UserError(f"{url} has changed since it was indexed")
        return contents

    def _read(self, block: int, file: int, url: str) -> list[bytes | None]:
        if url.endswith(".parquet"):
            if file not in self._footers:
                if len(self._footers) >= _PARQUET_FOOTERS:
                    self._footers = {}
                with open_file(url) as opened:
                    self._footers[file] = pq.read_metadata(opened)
            return read_row_group(url, int(self.found.number[block]), self._column, self._footers[file])
        images = slice(self.start[block], self.start[block + 1])
        first = self.found.offset[images.start]
        ends = self.found.offset[images] - first + self.found.size[images]
        span = read_span(url, int(first), int(ends[-1]))
        return [span[end - size : end] for end, size in zip(ends, self.found.size[images], strict=True)]

    def copy(self, numbers: NDArray[np.int64]) -> "Index":
        """An index of some images, ascending, whose bytes are copied to this machine, once for all runs.

        For images that are read repeatedly and are scattered over blocks.
        """
        path = cached(self.fingerprint, numbers.tobytes().hex(), ending="bytes")
        size = self.found.size[numbers]
        offset = size.cumsum(dtype=np.int64) - size.astype(np.int64)
        blocks = np.unique(self.block[numbers])

        def images(block: int) -> list[bytes | None]:
            contents, start = self.read(block), self.start[block]
            own = numbers[np.searchsorted(numbers, start) : np.searchsorted(numbers, start + len(contents))]
            return [contents[number - start] for number in own]

        def write(file: BinaryIO) -> None:
            with ThreadPoolExecutor(_THREADS) as threads:
                for first in range(0, len(blocks), _THREADS):  # a few at a time: a block may be large
                    for contents in threads.map(images, blocks[first : first + _THREADS].tolist()):
                        file.writelines(content or b"" for content in contents)

        def check_size(path: Path) -> bool:
            if path.stat().st_size != size.sum(dtype=np.int64):
                raise ValueError("it is not as large as its images")
            return True

        read_once(path, write, check_size)
        hashes, labels = self.found.hash[numbers], self.found.label[numbers]
        lengths = np.array(runs(list(zip(offset.tolist(), size.tolist(), strict=True))), np.int32)
        file, number = np.zeros(len(lengths), np.int32), np.arange(len(lengths), dtype=np.int32)
        found = Findings(file, number, lengths, hashes, offset, size, labels)
        return Index([str(path)], found, self._column, self._retries)


def build_index(files: SplitFiles, image_column: str, label_column: str, retries: int) -> Index:
    """Index a split: from the cache, or by reading its files, several at a time.

    Machines that share the cache share the work: each takes the next file that no other is reading.

    Raises:
        UserError: naming a file that cannot be read or has a missing column.
    """
    step = 1 if files.urls[0].endswith((".parquet", ".tar")) else _FILES_AT_ONCE
    report = _Report(len(files.urls))

    def find(first: int, wait: bool = True) -> Findings | None:
        urls, stamps = files.urls[first : first + step], files.stamps[first : first + step]
        path = cached(*urls, *stamps, image_column, label_column, ending="npz")

        def write(file: BinaryIO) -> None:
            np.savez(file, **vars(scan(urls, image_column, label_column, retries)))

        def read(path: Path) -> Findings:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return Findings(**arrays)

        found = read_once(path, write, read, wait)
        if found is not None:
            report.add(len(urls))
            found.shard[:] += first
        return found

    with report, ThreadPoolExecutor(_THREADS) as threads:
        try:
            firsts = range(0, len(files.urls), step)
            parts = list(threads.map(partial(find, wait=False), firsts))
            parts = list(threads.map(lambda first, part: part or find(first), firsts, parts))
        except UserError:
            threads.shutdown(cancel_futures=True)
            raise
    return Index(files.urls, joined([part for part in parts if part is not None]), image_column, retries)


class _Report:
    """Reports the progress of a pass: a bar on a terminal; elsewhere a line every 30 seconds."""

    def __init__(self, files: int) -> None:
        self._files, self._done, self._said = files, 0, time.monotonic()
        self._bar = Progress(
            TextColumn("indexing files {task.completed}/{task.total}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=files)

    def __enter__(self) -> Self:
        if not self._bar.disable:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._bar.disable:
            self._bar.stop()

    def add(self, files: int) -> None:
        """Count files that are done."""
        self._done += files
        self._bar.update(self._task, completed=self._done)
        if self._bar.disable and time.monotonic() - self._said > _SECONDS_BETWEEN_REPORTS:
            self._said = time.monotonic()
            print(f"indexed {self._done} of {self._files} files", file=sys.stderr, flush=True)
