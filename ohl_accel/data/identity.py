"""What tells images apart: a hash of each one's content, and a fingerprint of a whole split.

A split of a run is known by its fingerprint when the run is resumed; equal hashes find copies of held-out images.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ohl_accel.data.cache import cached, read_once
from ohl_accel.data.shards import hash_of, open_file
from ohl_accel.data.source import stamp

_THREADS = 8
_ROWS_AT_ONCE = 256


def fingerprint(hash_n: NDArray[np.uint64], labels: Tensor, class_names: Sequence[str]) -> str:
    """Of the images of a split, their labels and their order, wherever the files are.

    Args:
        hash_n: of the content of each image.
        labels: int64 [n], or multi-hot uint8 [n, classes].
        class_names: of those.
    """
    content = hash_n.tobytes() + labels.numpy().tobytes() + repr(tuple(class_names)).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def hashes_of_rows(rows: datasets.Dataset, column: str) -> NDArray[np.uint64]:
    """A hash of the undecoded bytes of each image, or of its number where there are none: uint64 [rows].

    Those of rows that lie in files are cached under the files' names, sizes and times.

    Args:
        rows: of a split.
        column: of its images.
    """
    if not rows.cache_files:
        return _hashed(rows, column)
    files = [file["filename"] for file in rows.cache_files]
    files += _paths(rows, column)
    with ThreadPoolExecutor(_THREADS) as threads:
        stamps = list(threads.map(stamp, files))
    # datasets' own fingerprint tells which rows of the files these are
    path = cached(rows._fingerprint, str(len(rows)), column, *files, *stamps, ending="npz")
    return _cached(path, lambda: _hashed(rows, column))


def hashes_of_files(paths: Sequence[str]) -> NDArray[np.uint64]:
    """The same of files, one for each image, cached under their names, sizes and times."""
    with ThreadPoolExecutor(_THREADS) as threads:
        path = cached(*paths, *threads.map(stamp, paths), ending="npz")

        def hashes() -> NDArray[np.uint64]:
            cells = ({"bytes": None, "path": path} for path in paths)
            return np.fromiter(threads.map(_hash_of_cell, range(len(paths)), cells), np.uint64)

        return _cached(path, hashes)


def _cached(path: Path, hashes: Callable[[], NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Hashes from a file of the cache, in a zip archive, whose checksum finds damage."""

    def read(path: Path) -> NDArray[np.uint64]:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found: NDArray[np.uint64] = arrays["hashes"]
            return found

    found = read_once(path, lambda file: np.savez(file, hashes=hashes()), read)
    assert found is not None  # it has waited
    return found


def path_of_row(rows: datasets.Dataset, column: str, number: int) -> str | None:
    """What the row says of its image's file: where it is, or, if the row holds its bytes, what it was called."""
    (cell,) = rows.select_columns([column]).with_format("arrow")[[number]].column(column).to_pylist()
    return cell["path"] if cell is not None else None


def unreadable(number: int) -> int:
    """The hash of an image without content: it equals that of no other image."""
    return hash_of(f"image {number} cannot be read".encode())


def _hashed(rows: datasets.Dataset, column: str) -> NDArray[np.uint64]:
    with ThreadPoolExecutor(_THREADS) as threads:
        return np.fromiter(
            (
                value
                for first, cells in _batches(rows, column)
                for value in threads.map(_hash_of_cell, range(first, first + len(cells)), cells)
            ),
            np.uint64,
            len(rows),
        )


def _hash_of_cell(number: int, cell: dict[str, Any] | None) -> int:
    content: bytes | None = cell["bytes"] if cell is not None else None
    if cell is not None and content is None and cell["path"] is not None:
        try:
            with open_file(cell["path"]) as file:
                content = file.read()
        except Exception:  # whatever the file system raises; decoding will say so
            content = None
    return hash_of(content) if content else unreadable(number)


def _paths(rows: datasets.Dataset, column: str) -> Iterator[str]:
    """The files of images whose bytes are not in the rows."""
    for batch in _arrow(rows, column):
        for chunk in batch.column(column).chunks:
            inside = chunk.field("bytes").is_valid().to_pylist()
            paths = chunk.field("path").to_pylist()
            yield from (path for path, within in zip(paths, inside, strict=True) if path and not within)


def _batches(rows: datasets.Dataset, column: str) -> Iterator[tuple[int, list[dict[str, Any] | None]]]:
    first = 0
    for batch in _arrow(rows, column):
        cells = batch.column(column).to_pylist()
        yield first, cells
        first += len(cells)


def _arrow(rows: datasets.Dataset, column: str) -> Iterable[Any]:
    tables: Iterable[Any] = rows.select_columns([column]).with_format("arrow").iter(_ROWS_AT_ONCE)
    return tables
