"""Files of a stream: what one pass over a file finds in it, and its images' bytes, block by block.

Three kinds of files: parquet (a block is a row group), tar in webdataset's layout and files of bytes (a
block is a run of adjacent images) and single images (each its own block). A failed read is retried with exponential
back-off; if it keeps failing, the error names the file.
"""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeVar

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from ohl_accel.data.source import SplitFiles
from ohl_accel.errors import UserError, first_line

FIRST_WAIT = 0.5
"""Seconds before a failed read is retried; each further wait is twice as long."""
_BLOCK_BYTES, _BLOCK_IMAGES = 2**23, 256
_TAR_LABEL = "cls"
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
T = TypeVar("T")


@dataclass(frozen=True)
class Findings:
    """What a pass over some files finds: for each block its file (`shard`) and number, for each image the rest.

    `hash` is BLAKE2b of the image's bytes, uint64; `offset` and `size` are in bytes (parquet: no offset).
    """

    shard: NDArray[np.int32]
    number: NDArray[np.int32]
    images: NDArray[np.int32]
    hash: NDArray[np.uint64]
    offset: NDArray[np.int64]
    size: NDArray[np.int32]
    label: NDArray[Any]


def with_retries(read: Callable[[], T], what: str, retries: int) -> T:
    """The result of a read, retried with exponential back-off if it fails.

    Args:
        read: may be called several times.
        what: is read, for messages.
        retries: how often it is retried, after 0.5, 1, 2, 4, ... seconds.

    Raises:
        UserError: if it fails `retries` + 1 times, or at once if retrying cannot help.
    """
    # readers of files and networks raise errors of many kinds
    failed = retry_if_exception(
        lambda error: isinstance(error, Exception) and not isinstance(error, UserError)
    )
    waits = wait_exponential(multiplier=FIRST_WAIT)
    try:
        return Retrying(stop=stop_after_attempt(retries + 1), wait=waits, retry=failed, reraise=True)(read)
    except UserError:
        raise
    except Exception as error:
        times = "once" if retries == 0 else f"{retries + 1} times"
        raise UserError(
            f"{what} cannot be read, tried {times} (data.retries): {first_line(error)}"
        ) from error


def kind_of(url: str) -> str:
    """`parquet`, `tar` or `image`, by the file's ending.

    Raises:
        UserError: for any other kind.
    """
    kind = _kind_by_ending(url)
    if kind is None:
        raise UserError(
            f"{url} cannot be streamed: it must be parquet, tar (webdataset, not compressed) or an image; "
            "data.streaming=false reads more formats"
        )
    return kind


def _kind_by_ending(url: str) -> str | None:
    suffix = PurePosixPath(url).suffix.lower()
    kinds = {".parquet": "parquet", ".tar": "tar"} | dict.fromkeys(Image.registered_extensions(), "image")
    return kinds.get(suffix)


def without_strays(files: SplitFiles) -> SplitFiles:
    """The files of the kind that most of them have; notes, archives and the like are skipped.

    Raises:
        UserError: if one of them describes the others, which a stream does not read; or if none can be streamed.
    """
    metadata = next((url for url in files.urls if PurePosixPath(url).name in _METADATA), None)
    if metadata is not None:
        raise UserError(
            f"{metadata} describes the other files, which a stream does not read: set data.streaming=false"
        )
    kinds = [_kind_by_ending(url) for url in files.urls]
    known = Counter(kind for kind in kinds if kind is not None)
    if not known:
        kind_of(files.urls[0])
    most = known.most_common(1)[0][0]
    kept = [number for number, kind in enumerate(kinds) if kind == most]
    return replace(
        files,
        urls=[files.urls[number] for number in kept],
        stamps=[files.stamps[number] for number in kept],
        skipped=files.skipped + len(kinds) - len(kept),
    )


def features_of(url: str, retries: int) -> datasets.Features:
    """Columns of a file: those of a parquet file, or the file endings of a tar's first sample."""
    kind = kind_of(url)
    if kind == "image":
        return datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    if kind == "parquet":

        def read() -> datasets.Features:
            with open_file(url) as file:
                return datasets.Features.from_arrow_schema(pq.ParquetFile(file).schema_arrow)

        return with_retries(read, url, retries)

    def read_first() -> dict[str, tuple[int, int, bytes]]:
        with open_file(url) as file:
            return next(_samples(file, url), {})

    found: dict[str, Any] = {}
    for ending, (_, _, content) in with_retries(read_first, url, retries).items():
        if ending == "json":
            found |= {f"json.{field}": datasets.Value("string") for field in json.loads(content)}
        else:
            found[ending] = datasets.Image() if _is_image(ending) else datasets.Value("string")
    return datasets.Features(**found)


def default_label(url: str) -> str | None:
    """The name of the label column if the kind of file determines it."""
    return {"tar": _TAR_LABEL, "image": "label"}.get(kind_of(url))


def scan(urls: Sequence[str], image_column: str, label_column: str, retries: int) -> Findings:
    """One pass over some files of one kind; images are hashed, not decoded.

    Args:
        urls: of the files; `Findings.shard` counts them from 0.
        image_column, label_column: columns, or endings in a tar.
        retries: of a failed read.

    Raises:
        UserError: naming a file that cannot be read or has a missing column.
    """
    scans = {"parquet": _scan_parquet, "tar": _scan_tar, "image": _scan_image}
    parts = []
    for number, url in enumerate(urls):

        def read(url: str = url, number: int = number) -> Findings:
            return scans[kind_of(url)](url, number, image_column, label_column)

        parts.append(with_retries(read, url, retries))
    return joined(parts)


def joined(parts: Sequence[Findings]) -> Findings:
    """Findings concatenated, in their order."""
    fields = Findings.__dataclass_fields__
    return Findings(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})


def read_row_group(
    url: str, number: int, column: str, metadata: pq.FileMetaData | None
) -> list[bytes | None]:
    """The images of a row group, undecoded; None where there are no bytes."""
    # pyarrow's own file and no pre-buffering: bytes are copied half as often
    with open_file(url) if "://" in url else pa.OSFile(url, "r") as file:
        parquet = pq.ParquetFile(file, metadata=metadata, pre_buffer=False)
        group = parquet.read_row_group(number, [column], use_threads=False)
    return _bytes_of(group.column(column))


def read_span(url: str, offset: int, size: int) -> bytes:
    """Some bytes of a file.

    Raises:
        EOFError: if the file is too short.
    """
    with open_file(url) as file:
        file.seek(offset)
        content: bytes = file.read(size)
    if len(content) != size:
        raise EOFError(f"{len(content)} of {size} bytes at {offset}")
    return content


def open_file(url: str) -> Any:
    """A file to read from, local or of any file system that fsspec knows."""
    return open(url, "rb") if "://" not in url else fsspec.open(url, "rb", block_size=2**20).open()


def hash_of(content: bytes) -> int:
    """The 64-bit BLAKE2b hash of an image's bytes, which identifies it in a stream."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _scan_parquet(url: str, file_number: int, image_column: str, label_column: str) -> Findings:
    groups, images, labels = [], [], []
    with open_file(url) as file:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        for column in (image_column, label_column):
            if column not in names:
                raise UserError(f"{url} has no column {column!r}; it has: {', '.join(names)}")
        for number in range(parquet.num_row_groups):
            group = parquet.read_row_group(number, [image_column, label_column], use_threads=False)
            if len(group):
                groups.append((number, len(group)))
            contents = [content or b"" for content in _bytes_of(group.column(image_column))]
            images += [(hash_of(content), 0, len(content)) for content in contents]
            labels += group.column(label_column).to_pylist()
    return _findings(url, file_number, label_column, groups, images, labels)


def _scan_tar(url: str, file_number: int, image_column: str, label_column: str) -> Findings:
    images: list[tuple[int, int, int]] = []
    labels: list[Any] = []
    column, _, field = label_column.partition(".")
    with open_file(url) as file:
        for sample in _samples(file, url):
            if image_column not in sample or column not in sample:
                wanted = image_column if image_column not in sample else column
                raise UserError(f"{url} has an image without .{wanted}; it has: {', '.join(sample)}")
            offset, size, content = sample[image_column]
            images.append((hash_of(content), offset, size))
            text = sample[column][2]
            labels.append(str(json.loads(text)[field]) if field else text.decode().strip())
    if all(label.isdigit() for label in labels):
        labels = [int(label) for label in labels]
    return _findings(
        url, file_number, label_column, list(enumerate(runs([image[1:] for image in images]))), images, labels
    )


def _scan_image(url: str, file_number: int, image_column: str, label_column: str) -> Findings:
    with open_file(url) as file:
        content = file.read()
    image = (hash_of(content), 0, len(content))
    return _findings(url, file_number, label_column, [(0, 1)], [image], [PurePosixPath(url).parent.name])


def runs(images: Sequence[tuple[int, int]]) -> list[int]:
    """Divide adjacent images, given by (offset, size), into blocks: the number of images in each."""
    lengths: list[int] = []
    first = 0
    for index, (offset, size) in enumerate(images):
        if index == 0 or index - first == _BLOCK_IMAGES or offset + size - images[first][0] > _BLOCK_BYTES:
            lengths.append(0)
            first = index
        lengths[-1] += 1
    return lengths


def _findings(
    url: str,
    file_number: int,
    label_column: str,
    blocks: Sequence[tuple[int, int]],
    images: Sequence[tuple[int, int, int]],
    labels: Sequence[Any],
) -> Findings:
    if any(label is None for label in labels):
        raise UserError(f"{url} has rows without a label in {label_column!r}")
    hashes, offsets, sizes = zip(*images, strict=True) if images else ((), (), ())
    numbers, lengths = zip(*blocks, strict=True) if blocks else ((), ())
    return Findings(
        shard=np.full(len(blocks), file_number, np.int32),
        number=np.array(numbers, np.int32),
        images=np.array(lengths, np.int32),
        hash=np.array(hashes, np.uint64),
        offset=np.array(offsets, np.int64),
        size=np.array(sizes, np.int32),
        label=np.array(labels, None if labels else np.int64),
    )


def _bytes_of(column: "pa.ChunkedArray[Any]") -> list[bytes | None]:
    chunks = [chunk.field("bytes") if isinstance(chunk, pa.StructArray) else chunk for chunk in column.chunks]
    return [content for chunk in chunks for content in chunk.to_pylist()]


def _samples(file: BinaryIO, url: str) -> Iterator[dict[str, tuple[int, int, bytes]]]:
    """Adjacent members of a tar with the same name, as in webdataset: ending -> (offset, size, content)."""
    sample: dict[str, tuple[int, int, bytes]] = {}
    current = None
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if not member.isfile():
                continue
            path = PurePosixPath(member.name)
            name, _, ending = path.name.partition(".")
            if str(path.parent / name) != current and sample:
                yield sample
                sample = {}
            current = str(path.parent / name)
            content = tar.extractfile(member)
            assert content is not None
            sample[ending.lower()] = (member.offset_data, member.size, content.read())
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every member that it has read
    if sample:
        yield sample


def _is_image(ending: str) -> bool:
    return f".{ending}" in Image.registered_extensions()


def decode(content: bytes | None) -> Image.Image:
    """A PIL image, upright (as datasets decodes it).

    Raises:
        Exception: whatever Pillow raises for an image that it cannot decode.
    """
    image: Image.Image = Image.open(io.BytesIO(content or b""))
    image.load()
    if image.getexif().get(Image.ExifTags.Base.Orientation) is not None:
        image = ImageOps.exif_transpose(image)
    return image
