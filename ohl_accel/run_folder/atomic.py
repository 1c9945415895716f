"""Atomic writes: files and folders that appear whole or not at all."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a temporary file or folder, which replaces `path` if the block succeeds.

    The content is flushed to disk before the rename, and the rename itself afterwards. If the block fails, `path` is
    unchanged.

    Args:
        path: of the file or folder. An existing folder is replaced.

    Yields:
        The path to write to, in the same folder; for one process and thread at a time.
    """
    # unique to this machine: not every shared file system has locks between machines
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.partial")
    _remove(aside)
    try:
        yield aside
        for written in [*aside.rglob("*"), aside]:
            if written.is_file():  # safetensors creates files that only the owner can read
                written.chmod(0o666 & ~_umask())
            _flush(written)
        if path.is_dir():
            shutil.rmtree(path)
        aside.replace(path)
        _flush(path.parent)
    except BaseException:
        _remove(aside)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8), whole or not at all."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, and ask the disk to keep them."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _flush(folder.parent)


def append_text(path: Path, text: str) -> None:
    """Add to the end of a text file (UTF-8); it is on the disk when this returns. If it fails, nothing is added."""
    is_new = not path.exists()
    with path.open("ab", buffering=0) as file:
        size, rest = file.seek(0, os.SEEK_END), text.encode()
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise
    if is_new:
        _flush(path.parent)


@cache
def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
