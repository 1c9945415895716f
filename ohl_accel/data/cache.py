"""The cache of what passes over data find: files beside those of datasets, whole or not at all."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import datasets
from filelock import FileLock, Timeout

from ohl_accel.errors import UserError, first_line
from ohl_accel.run_folder.atomic import replacing

_FORMAT = 1
T = TypeVar("T")


def cached(*key: str, ending: str) -> Path:
    """Where a file of the cache lies that is known by a key; `ending` tells what it holds."""
    name = hashlib.blake2b(repr((_FORMAT, key)).encode(), digest_size=16).hexdigest()
    return Path(datasets.config.HF_DATASETS_CACHE) / "ohl_accel" / f"{name}.{ending}"


def write_once(path: Path, write: Callable[[BinaryIO], None], wait: bool = True) -> bool:
    """Make a file of the cache, whole or not at all, unless it is there; one of several processes does it.

    Args:
        path: of the file.
        write: its content.
        wait: while another process makes it.

    Returns:
        Whether it is there.

    Raises:
        UserError: if it cannot be written.
    """
    if path.exists():
        return True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")).acquire(blocking=wait):
            if not path.exists():
                with replacing(path) as aside, aside.open("wb") as file:
                    write(file)
    except Timeout:
        return False
    except OSError as error:
        raise UserError(f"the dataset cache cannot be written (HF_HOME moves it): {error}") from error
    return True


def read_once(
    path: Path, write: Callable[[BinaryIO], None], read: Callable[[Path], T], wait: bool = True
) -> T | None:
    """What a file of the cache holds; it is made as by `write_once`, and made again if it is damaged.

    Args:
        path, write, wait: as in `write_once`.
        read: raises any error for a damaged file.

    Returns:
        What `read` returns; None if another process is making it and this one does not wait.

    Raises:
        UserError: if it cannot be written, or not read even once it has been made again.
    """
    if not write_once(path, write, wait):
        return None
    try:
        return read(path)
    except Exception:  # numpy and zipfile raise errors of many kinds for damaged files
        path.unlink(missing_ok=True)
    if not write_once(path, write, wait):
        return None
    try:
        return read(path)
    except Exception as error:
        raise UserError(
            f"{path}, in the dataset cache (HF_HOME moves it), cannot be read: {first_line(error)}"
        ) from error
