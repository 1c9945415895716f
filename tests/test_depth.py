"""Images of more than 8 bits, constant images and stray files: a run uses what they show, or names them."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from test_data import recipe, some_images

from ohl_accel.data import open_data
from ohl_accel.engine.evaluate import evaluate
from ohl_accel.errors import UserError
from ohl_accel.operations.depth import eight_bits

LEVELS = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
"""What 24 grey images show."""


def png(pixels: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits, grey [H, W] or RGB [H, W, 3]; Pillow writes none in RGB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*each) for each in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def tiff_12(pixels: NDArray[np.uint16]) -> bytes:
    """A TIFF of 12 bits, as microscopes write them."""
    height, width = pixels.shape
    bits = "".join(f"{value:012b}" for value in pixels.flatten())
    content = int(bits, 2).to_bytes(len(bits) // 8, "big")
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(content)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(content))
        + content
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


def saved(image: Image.Image, format_: str) -> bytes:
    content = io.BytesIO()
    image.save(content, format_)
    return content.getvalue()


def deep(levels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The same in 16 bits, with other low bits."""
    low = np.random.default_rng(1).integers(0, 256, levels.shape, dtype=np.uint16)
    return levels.astype(np.uint16) * 256 + low


WRITERS: dict[str, Callable[[NDArray[np.uint8]], bytes]] = {
    "16.png": lambda levels: png(deep(levels)),
    "16.tiff": lambda levels: saved(Image.fromarray(deep(levels)), "TIFF"),
    "16.pgm": lambda levels: saved(Image.fromarray(deep(levels)), "PPM"),
    "12.tiff": lambda levels: tiff_12((deep(levels) >> 4).astype(np.uint16)),
    "8.png": lambda levels: saved(Image.fromarray(levels), "PNG"),
}


def folder_of(folder: Path, kind: str, levels: NDArray[Any] = LEVELS) -> Path:
    """A folder of images with two classes, and the same as a test split."""
    for number, each in enumerate(levels):
        for split in ("train", "test"):
            file = folder / split / "ab"[number % 2] / f"{number:02d}.{kind.partition('.')[2]}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(WRITERS[kind](each) + bytes([number]))  # no two files are copies
    return folder


def test_all_levels_are_those_of_pillows_rgb() -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    grey = Image.open(io.BytesIO(png(every)))
    colour = Image.open(io.BytesIO(png(np.stack([every] * 3, 2))))
    assert (grey.mode, colour.mode) == ("I;16", "RGB")
    assert eight_bits(grey).convert("RGB").tobytes() == colour.tobytes()
    assert eight_bits(colour) is colour


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["16.png", "16.tiff", "16.pgm", "12.tiff"])
def test_a_run_sees_what_8_bits_show(tmp_path: Path, kind: str, streaming: bool) -> None:
    data = open_data(recipe(folder_of(tmp_path, kind), streaming=streaming))
    test = data.open_test()
    assert test is not None
    assert data.schema.channels == 1
    pixels, labels = test.__getitems__(range(24))
    order = np.concatenate([LEVELS[::2], LEVELS[1::2]])  # by class
    assert np.array_equal(pixels[:, 0].numpy(), order)
    assert labels.tolist() == [0] * 12 + [1] * 12
    assert 0.3 < data.mean[0] < 0.7


def test_a_dataset_in_python_is_scaled_alike() -> None:
    """PIL images of a torch dataset; arrays of 16 bits are refused there by name."""
    items = [(Image.fromarray(deep(each)), number % 2) for number, each in enumerate(LEVELS)]
    data = open_data(recipe("memory", test_split=None), dataset=items)  # type: ignore[arg-type]
    pixels, _ = data.train.__getitems__(range(len(data.train)))
    assert np.array_equal(pixels[:, 0].numpy(), LEVELS[data.train.numbers.numpy()])


def test_evaluation_scores_deep_images_like_the_others(small_run: Path, tmp_path: Path) -> None:
    splits = {}
    digits = datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    for kind in ("8.png", "16.png"):
        images = [{"bytes": WRITERS[kind](each), "path": None} for each in LEVELS]
        features = datasets.Features(image=datasets.Image(), label=digits)
        splits[kind] = datasets.Dataset.from_dict(
            {"image": images, "label": [number % 10 for number in range(24)]}, features=features
        )
    shallow, deep_ = (evaluate(small_run, dataset=split) for split in splits.values())
    assert deep_.scores == shallow.scores


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_are_refused_by_name(tmp_path: Path, mode: str) -> None:
    folder = folder_of(tmp_path, "16.tiff")
    bad = folder / "train" / "a" / "04.tiff"
    array = LEVELS[4].astype(np.int32 if mode == "I" else np.float32)
    bad.write_bytes(saved(Image.fromarray(array), "TIFF"))
    with pytest.raises(
        UserError, match=rf"{bad} cannot be used: it has 32 bits per pixel \(Pillow's mode {mode}\)"
    ):
        open_data(recipe(folder))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_split_of_constant_images_is_refused(tmp_path: Path, in_memory: bool) -> None:
    """White everywhere, as clipped images are; one image that shows something, or is of another colour, is enough."""
    folder = folder_of(tmp_path, "8.png", np.full((24, 8, 8), 255, dtype=np.uint8))
    options: dict[str, Any] = {"in_memory": in_memory, "mean": [0.3], "std": [0.4]}
    every = r"every image is of one and the same colour \(255 of 255; {0} of {0} were looked at\)"
    with pytest.raises(UserError, match=rf"split 'train' of .*: {every.format(20)}"):
        open_data(recipe(folder, **options))
    with pytest.raises(UserError, match=rf"split 'train' of .*: {every.format(24)}"):
        open_data(recipe(folder, heldout_split="test", test_split=None, **options))
    (folder / "train" / "b" / "23.png").write_bytes(WRITERS["8.png"](np.full((8, 8), 254, dtype=np.uint8)))
    with pytest.raises(UserError, match=rf"split 'test' of .*: {every.format(24)}"):
        open_data(recipe(folder, heldout_split="test", test_split=None, **options))
    data = open_data(recipe(folder, heldout=None, **options))
    with pytest.raises(UserError, match=rf"split 'test' of .*: {every.format(24)}"):
        data.open_test()


def test_stray_files_are_skipped_and_counted(tmp_path: Path) -> None:
    clean, strewn = (folder_of(tmp_path / name, "8.png") for name in ("clean", "strewn"))
    whole = open_data(recipe(clean, streaming=True))
    for name in ("notes.txt", "a/Thumbs.db", "b/labels.json", "b/small.zip"):
        (strewn / "train" / name).write_bytes(b"x")
    data = open_data(recipe(strewn, streaming=True))
    assert (whole.skipped_files, data.skipped_files) == (0, 3)  # datasets does not list Thumbs.db
    assert data.record == whole.record
    assert torch.equal(data.train.labels, whole.train.labels)
    (strewn / "train" / "metadata.csv").write_text("file_name,label\na/00.png,b\n")
    with pytest.raises(UserError, match=r"metadata.csv describes .*: set data.streaming=false"):
        open_data(recipe(strewn, streaming=True))


def test_only_stray_files(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for number in range(3):
        (tmp_path / "train" / f"{number}.jsonl").write_text('{"text": "no image"}\n')
    with pytest.raises(UserError, match=r"0.jsonl cannot be streamed: it must be parquet, tar"):
        open_data(recipe(tmp_path, streaming=True, test_split=None))


def test_pillows_modes_without_a_conversion_are_named(tmp_path: Path) -> None:
    items = [(Image.new("La", (8, 8)), 0), *((image, 1) for image in some_images(19))]
    with pytest.raises(
        UserError, match="image 0 of split 'train' of the given dataset cannot be used: conversion"
    ):
        open_data(recipe("memory", test_split=None), dataset=items)  # type: ignore[arg-type]
