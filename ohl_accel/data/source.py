"""Where rows come from: one split of a Hub dataset, a folder, a file or scikit-learn's digits.

Each split is opened separately: no file of another split is read, so the test split stays untouched until requested.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ohl_accel.errors import UserError, first_line
from ohl_accel.recipe import DataSection

DIGITS = "sklearn:digits"
"""`data.path` of scikit-learn's bundled handwritten digits: 1,797 grey images of 8 x 8 pixels."""
DIGITS_TEST_IMAGES = 500
"""The last images are the test split: their writers differ from those of the first ones."""

IN_MEMORY = "memory"
"""`data.path` of a run on a dataset that was given in Python."""

_FILE_FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json"}


def open_split(data: DataSection, split: str, path: str | None = None) -> datasets.Dataset:
    """The rows of one split, images not decoded yet.

    Args:
        data: the recipe's data section.
        split: a split's name, or an expression of datasets such as `train[:80%]`.
        path: where it is, if not in `data.path`.

    Raises:
        UserError: if there is no such dataset, configuration or split, or it cannot be read.
    """
    location = path or data.path
    check_split_exists(data, split, path)
    try:
        if location == DIGITS:
            return _digits(split)
        if _is_saved_to_disk(location):
            saved = datasets.load_from_disk(location)
            return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        if _is_file(location):
            return datasets.load_dataset(_file_format(location), data_files=location, split="train")
        files = _files_of_splits(data, location)
        if files is None:
            return datasets.load_dataset(location, data.name, revision=data.revision, split=split)
        wanted = {name: list(files[name]) for name in _names_in(split)}
        return datasets.load_dataset(
            location, data_files=wanted, revision=data.revision, split=split, verification_mode="no_checks"
        )
    except UserError:
        raise
    except Exception as error:
        # datasets raises whatever its readers raise; tell the user which split could not be read
        why = "; ".join(first_line(each) for each in (error, error.__cause__) if each is not None)
        raise UserError(f"split {split!r} of {location} cannot be read: {why}") from error


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split, local paths or URLs that fsspec opens, as datasets resolves them."""

    urls: list[str]
    stamps: list[str]
    """What changes with the content of a file: size and modification time, or the commit of a Hub dataset."""
    features: datasets.Features | None
    """From the dataset's card; None if it has none."""
    skipped: int = 0
    """Other files among them, which are not read."""


def files_of_split(data: DataSection, split: str, path: str | None = None) -> SplitFiles:
    """The files of a split to be streamed; none of them is read.

    Args:
        data: the recipe's data section.
        split: a split's name.
        path: where it is, if not in `data.path`.

    Raises:
        UserError: if there is no such split, or it does not consist of files.
    """
    location = path or data.path
    check_split_exists(data, split, path)
    if location == DIGITS or _is_saved_to_disk(location):
        raise UserError(f"data.path={location} cannot be streamed: set data.streaming=false")
    if _is_file(location):
        return SplitFiles([location], [stamp(location)], None)
    builder = _builder(data, location)
    if not builder.config.data_files or re.search(r"[\[+]", split):
        raise UserError(
            f"split {split!r} of {location} cannot be streamed: a stream is a whole split that consists of files"
        )
    files = builder.config.data_files[split]
    origins = getattr(files, "origin_metadata", [])  # a list of patterns was resolved to files
    skipped = len(origins) - len(files)  # datasets has left some out, but not their origins
    if skipped:
        origins = [tuple(sorted(set(origins)))] * len(files)  # of a Hub dataset they are all the same commit
    stamps = [stamp(url, *origin) for url, origin in zip(files, origins, strict=True)]
    return SplitFiles([str(url) for url in files], stamps, builder.info.features, skipped)


def stamp(url: str, *origin: object) -> str:
    """What changes when the content of a file does: size and time, or its origin where it is not on this machine."""
    known = Path(url).stat() if Path(url).exists() else None
    return repr((known.st_size, known.st_mtime_ns) if known else (url, *origin))


def check_split_exists(data: DataSection, split: str, path: str | None = None) -> None:
    """Look a split up by name, without opening it.

    Raises:
        UserError: listing the existing splits.
    """
    location = path or data.path
    if location == IN_MEMORY and not Path(location).exists():
        raise UserError(
            f"data.path={IN_MEMORY}: the dataset of this run was given in Python: give it again (`dataset=...`), or "
            "set data.path to where it is"
        )
    if _is_one_split(location):
        if path is None and split != data.train_split:
            way_out = (
                "give data.test_path, or data.test_split=null if there is no test split"
                if split == data.test_split
                else "hold out images of it with data.heldout, or put all splits into a folder"
            )
            raise UserError(f"data.path={location} is a single split, so there is no {split!r}: {way_out}")
        return
    known = _split_names(data, location)
    sliceable = location != DIGITS and not _is_saved_to_disk(location)
    names = _names_in(split) if sliceable else [split]
    missing = [name for name in names if known is not None and name not in known]
    if missing:
        raise UserError(
            f"{location} has no split {missing[0]!r}; it has: {', '.join(known or [])} "
            "(choose with data.train_split, data.heldout_split and data.test_split)"
        )


def _split_names(data: DataSection, location: str) -> list[str] | None:
    """The splits of a dataset, or None if they are known only after loading it."""
    if location == DIGITS:
        return ["train", "test"]
    if _is_saved_to_disk(location):
        return list(datasets.load_from_disk(location))
    files = _files_of_splits(data, location)
    return None if files is None else [str(name) for name in files]


def _files_of_splits(data: DataSection, location: str) -> dict[str, Sequence[str]] | None:
    """Split name -> its files, as resolved by datasets; None for a dataset that does not consist of files."""
    looks_local = (
        location.startswith(("/", ".", "~"))
        or location.count("/") > 1
        or Path(location).suffix in _FILE_FORMATS
    )
    if looks_local and not Path(location).exists():
        raise UserError(f"data.path={location}: there is no such file or folder")
    files: Mapping[Any, Sequence[str]] | None = _builder(data, location).config.data_files
    return {str(name): paths for name, paths in files.items()} if files else None


def _builder(data: DataSection, location: str) -> datasets.DatasetBuilder:
    try:
        return datasets.load_dataset_builder(location, data.name, revision=data.revision)
    except Exception as error:
        where = "the folder" if Path(location).exists() else "the Hub dataset"
        raise UserError(f"data.path={location}: {where} cannot be opened: {first_line(error)}") from error


def _is_file(location: str) -> bool:
    return Path(location).is_file()


def _is_one_split(location: str) -> bool:
    """A file, or a Dataset (not a DatasetDict) saved with `save_to_disk`: it has no splits to choose from."""
    return _is_file(location) or (Path(location) / "state.json").is_file()


def _file_format(location: str) -> str:
    suffix = Path(location).suffix
    if suffix not in _FILE_FORMATS:
        known = ", ".join(_FILE_FORMATS)
        raise UserError(
            f"data.path={location}: a file name must end in one of {known}; for images give their folder"
        )
    return _FILE_FORMATS[suffix]


def _is_saved_to_disk(location: str) -> bool:
    return any((Path(location) / marker).is_file() for marker in ("dataset_dict.json", "state.json"))


def _names_in(split: str) -> list[str]:
    """The plain names in an expression such as `train[:80%]+validation`."""
    return [re.split(r"\[", part)[0].strip() for part in split.split("+")]


def _digits(split: str) -> datasets.Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(f"data.path={DIGITS} needs scikit-learn: pip install 'ohl-accel[demo]'") from None
    digits: Any = load_digits()
    levels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    )
    parts = {"train": slice(0, -DIGITS_TEST_IMAGES), "test": slice(-DIGITS_TEST_IMAGES, None)}
    part = parts[split]
    rows = {
        "image": [Image.fromarray(image) for image in levels[part]],
        "label": digits.target[part].tolist(),
    }
    return datasets.Dataset.from_dict(rows, features=features)
