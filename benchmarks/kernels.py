"""What the batched kernels cost on one CPU core, against other libraries: writes a Markdown page.

    OMP_NUM_THREADS=1 python benchmarks/kernels.py
    OMP_NUM_THREADS=1 python benchmarks/kernels.py --compile
    python benchmarks/kernels.py --device cuda --pixels 67108864 --result FILE

Each round times all of them, one after the other, on the same photographs; the page has the medians over the rounds,
and of each round's ratios. Times are the processor time of the only thread, so what else the machine does counts less;
on a GPU, wall time until it has finished, without other libraries. A whole augmentation is flip, pad-crop, an
operation, normalization and Cutout, on a GPU in one launch; it reads a byte for each level and writes a float, and what
it thus moves in a second is compared with what a copy moves.
kornia and albumentations are measured if they are installed; with --compile also our torch code under torch.compile,
for images of 32 x 32: it needs a C++ compiler on the CPU, and minutes.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.pages import now, replace_between
from ohl_accel.comparison.summary import processor
from ohl_accel.operations.kernels.around import RawBatch
from ohl_accel.operations.space import PAPER
from ohl_accel.rng import keyed_generator

RESULT = Path(__file__).parent / "results" / "kernels.md"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- begin: benchmarks/kernels.py -->\n", "<!-- end: benchmarks/kernels.py -->\n"
OURS, BY_TORCH, COPY = "ohl_accel, compiled", "ohl_accel, torch code", "copy of the bytes"
WHOLE, WHOLE_BY_TORCH = "whole augmentation, compiled", "whole augmentation, torch code"
LIBRARIES = ("numba", "numpy", "torch", "torchvision", "timm", "Pillow", "kornia", "albumentations")
Call = Callable[[], Any]


def main(arguments: list[str] | None = None) -> None:
    """Time everything and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 224])
    parser.add_argument(
        "--pixels", type=int, default=512 * 32 * 32, help="of all images of a batch, at least twice --single"
    )
    parser.add_argument(
        "--single", type=int, default=32, help="images of a batch that per-image libraries get in a round"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--result", type=Path, default=RESULT, help="the Markdown file")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that has a copy of it, on the CPU")
    parser.add_argument("--device", default="cpu", help="where the batches are")
    parser.add_argument("--compile", action="store_true", help="time the torch code under torch.compile too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sections = []
    for side in options.sides:
        count = max(options.pixels // side**2, 2 * options.single)
        images_BCHW = crops(side, count).to(options.device)
        sections += [*libraries_table(side, images_BCHW, options), *elements_table(images_BCHW, options)]
    text = page(sections, options)
    options.result.write_text(text, encoding="utf-8")
    if options.device == "cpu":
        replace_between(options.page, BEGIN, END, text.partition("\n")[2])  # without the heading
    print(text)


def crops(side: int, count: int) -> Tensor:
    """Squares of the two photographs that come with scikit-learn, spread over them: uint8 [count, 3, side, side]."""
    generator = keyed_generator(0, "crops")
    pictures = [torch.from_numpy(levels.copy()).permute(2, 0, 1) for levels in load_sample_images().images]
    chosen = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        top, left = (
            int(torch.randint(size - side + 1, (), generator=generator)) for size in picture.shape[1:]
        )
        chosen.append(picture[:, top : top + side, left : left + side])
    return torch.stack(chosen)


def batches(images_BCHW: Tensor, compile_too: bool) -> dict[str, Call]:
    """Our calls on the whole batch, each image with an operation of its own, and a copy."""
    generator = keyed_generator(0, "operations")
    operation_B = torch.randint(PAPER.num_operations, (len(images_BCHW),), generator=generator)
    negative_BA = torch.rand(len(images_BCHW), PAPER.arity, generator=generator) < 0.5
    element_BA = PAPER.elements_of(operation_B)
    draw = partial(torch.randint, size=(len(images_BCHW), 2), generator=generator)
    raw = partial(
        RawBatch,
        images_BCHW=images_BCHW,
        mean_C11=torch.full((3, 1, 1), 120.0, device=images_BCHW.device),
        std_C11=torch.full((3, 1, 1), 60.0, device=images_BCHW.device),
        flip_B=draw(2)[:, 0],
        padding=4,
        corner_B2=draw(9),
        side=images_BCHW.shape[2] // 2,
        centre_B2=draw(images_BCHW.shape[2]),
    )  # a new one each time: it keeps what the basic transforms give

    def whole_by_torch() -> Tensor:
        batch = raw()
        return batch.finish_by_torch(PAPER._batched.by_torch(batch.basic_by_torch(), element_BA, negative_BA))

    calls: dict[str, Call] = {
        OURS: lambda: PAPER.apply(images_BCHW, operation_B, negative_BA),
        BY_TORCH: lambda: PAPER._batched.by_torch(images_BCHW, element_BA, negative_BA),
        COPY: images_BCHW.clone,
        WHOLE: lambda: PAPER.augment(raw(), operation_B, negative_BA),
        WHOLE_BY_TORCH: whole_by_torch,
    }
    if compile_too:
        compiled = partial(torch.compile(PAPER._batched.by_torch), images_BCHW, element_BA, negative_BA)
        different = int((compiled() != calls[BY_TORCH]()).flatten(1).any(1).sum())
        calls[f"ohl_accel, torch code under torch.compile ({different} images differ from Pillow's)"] = (
            compiled
        )
    return calls


def peers(images_BCHW: Tensor) -> dict[str, Call]:
    """Other libraries, image by image: what a data loader calls."""
    tensors = list(images_BCHW)
    arrays = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in tensors]
    pictures = [Image.fromarray(array) for array in arrays]
    grey = {"img_mean": (128, 128, 128)}

    def each(transform: Callable[[Any], Any], images: list[Any]) -> Call:
        return lambda: [transform(image) for image in images]

    calls = {
        "timm AutoAugment, PIL": each(auto_augment_transform("original", grey), pictures),
        "timm RandAugment, PIL": each(rand_augment_transform("rand-m9-n2", grey), pictures),
        "torchvision AutoAugment, PIL": each(v2.AutoAugment(), pictures),
        "torchvision RandAugment, PIL": each(v2.RandAugment(), pictures),
        "torchvision TrivialAugment (one element), PIL": each(v2.TrivialAugmentWide(), pictures),
        "torchvision AutoAugment, tensors": each(v2.AutoAugment(), tensors),
        "torchvision RandAugment, tensors": each(v2.RandAugment(), tensors),
    }
    if find_spec("kornia"):
        rand_augment = import_module("kornia.augmentation.auto").RandAugment(n=2, m=9)
        floats = [image[None] / 255 for image in tensors]
        calls["kornia RandAugment, float tensors"] = each(rand_augment, floats)
    if find_spec("albumentations"):
        calls["albumentations, 2 of 10 similar transforms, arrays"] = each(_albumentations(), arrays)
    return calls


def _albumentations() -> Callable[[Any], Any]:
    """It has no AutoAugment: two of the transforms that resemble Table 1's, on one thread of OpenCV."""
    library = import_module("albumentations")
    import_module("cv2").setNumThreads(0)
    two = library.SomeOf(
        [
            library.Affine(shear={"x": (-17, 17), "y": (0, 0)}, p=1),
            library.Affine(shear={"x": (0, 0), "y": (-17, 17)}, p=1),
            library.Affine(translate_percent=(-0.45, 0.45), p=1),
            library.Rotate(30, p=1),
            library.ColorJitter(p=1),
            library.Posterize(p=1),
            library.Solarize(p=1),
            library.Sharpen(p=1),
            library.Equalize(p=1),
            library.InvertImg(p=1),
        ],
        n=2,
        p=1,
    )
    return lambda array: two(image=array)["image"]


def timed(calls: Mapping[str, tuple[Call, int]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds for an image in each round: for each name, from (a call, its number of images)."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    clock = time.thread_time if options.device == "cpu" else partial(now, options.device)
    for number in range(options.rounds + 1):
        for name, (call, images) in calls.items():
            start = clock()
            call()
            if number:  # the first warms up
                seconds[name].append((clock() - start) / images)
    return seconds


def libraries_table(side: int, images_BCHW: Tensor, options: argparse.Namespace) -> list[str]:
    """A section: images/s of everything, and how many times as fast the compiled kernels are."""
    single, ours = images_BCHW[: options.single], batches(images_BCHW, options.compile and side == 32)
    calls = {name: (call, len(images_BCHW)) for name, call in ours.items()}
    if options.device == "cpu":
        calls |= {name: (call, len(single)) for name, call in peers(single).items()}
    seconds = timed(calls, options)
    rows = []
    for name, of_round in seconds.items():
        ratios = [other / ours for other, ours in zip(of_round, seconds[OURS], strict=True)]
        rows.append(
            f"| {name} | {1 / statistics.median(of_round):,.0f} | {statistics.median(ratios):.3g} "
            f"({min(ratios):.3g} to {max(ratios):.3g}) |"
        )
    return [
        f"## {side} x {side}, a batch of {len(images_BCHW)}",
        "",
        "| two elements an image, uniformly drawn | images/s | compiled kernels are so many times as fast, median "
        "(least to greatest) |",
        "|---|---|---|",
        *rows,
        "",
        _traffic(images_BCHW[0].numel(), seconds),
        "",
    ]


def _traffic(levels: int, seconds: Mapping[str, list[float]]) -> str:
    """What a whole augmentation moves: for each of an image's levels it reads a byte and writes four; a copy, one."""
    whole, copy = (statistics.median(seconds[name]) for name in (WHOLE, COPY))
    ratios = [copied / ours for ours, copied in zip(seconds[WHOLE], seconds[COPY], strict=True)]
    share = 2.5 * statistics.median(ratios)
    return (
        f"A whole augmentation reads and writes {5 * levels / whole / 1e9:.3g} GB/s, {share:.1%} of what a copy does "
        f"({2 * levels / copy / 1e9:.3g} GB/s)."
    )


def elements_table(images_BCHW: Tensor, options: argparse.Namespace) -> list[str]:
    """A table: what one element costs, as a multiple of a copy of the bytes, and of the torch code's."""
    sign_B1 = torch.zeros(len(images_BCHW), 1, dtype=torch.bool)
    first = {element.transform.name: i for i, element in reversed(list(enumerate(PAPER.elements)))}
    rows = []
    for name, index in sorted(first.items(), key=lambda pair: pair[1]):
        element_B1 = torch.full((len(images_BCHW), 1), index)
        calls: dict[str, Call] = {
            OURS: partial(PAPER._batched, images_BCHW, element_B1, sign_B1),
            BY_TORCH: partial(PAPER._batched.by_torch, images_BCHW, element_B1, sign_B1),
            COPY: images_BCHW.clone,
        }
        timings = timed({key: (call, len(images_BCHW)) for key, call in calls.items()}, options)
        ours, torchs, copy = (statistics.median(timings[key]) for key in (OURS, BY_TORCH, COPY))
        rows.append(f"| {name} | {1e6 * ours:.2f} | {ours / copy:.3g} | {torchs / ours:.3g} |")
    return [
        "| element | µs/image | times a copy | torch code: times as long |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def page(sections: list[str], options: argparse.Namespace) -> str:
    """The whole result file."""
    on_cpu = options.device == "cpu"
    device = f"{processor()}, one thread, in processor time" if on_cpu else torch.cuda.get_device_name()
    versions = ", ".join(f"{name} {found}" for name in LIBRARIES if (found := _version(name)))
    return "\n".join(
        [
            "# Batched kernels on one CPU core" if on_cpu else "# Batched kernels on a GPU",
            "",
            *sections,
            f"- command: `OMP_NUM_THREADS=1 python {' '.join(['benchmarks/kernels.py', *sys.argv[1:]])}`",
            f"- {device}; {options.rounds} rounds, everything timed in each; load average at the end "
            f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
            f"- Python {platform.python_version()}, {versions}",
            f"- {date.today()}",
            "",
        ]
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
