"""Images/s from parquet shards to an augmented batch on the device, against timm's loaders: writes a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/stream.py ../shared/data/imagenet_sample

The photographs of a folder are rewritten as parquet shards with row groups of 100, as on the Hub. Ours
streams them; timm's reader of datasets' streams (`hfids/`) and its map-style reader (`hfds/`) read the same
files. All do RandomResizedCrop to 224 (bicubic), horizontal flip and normalization, with the same number of
workers and batch size. In each round the three take turns, so that other load affects all of them;
the first batches of a pass, when workers start, are not timed. CPU time is that of the whole pass, of all
its processes.
"""

import argparse
import gc
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import PIL
import pyarrow.parquet as pq
import timm
import torch
from timm.data import create_dataset, create_loader

from ohl_accel.comparison.summary import processor
from ohl_accel.data import (
    Blocks,
    RandomResizedCrop,
    TrainingOrder,
    ahead_on_device,
    open_data,
    training_batches,
)
from ohl_accel.engine.augment import Augmentation
from ohl_accel.policy.protocol import NoPolicy
from ohl_accel.recipe import RandomResizedCropSection, Recipe

RESULT = Path(__file__).parent / "results" / "stream.md"
SIZE, UNTIMED = 224, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Time all loaders and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="parquet files with photographs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--copies", type=int, default=24, help="shards, each with all photographs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--result", type=Path, default=RESULT, help="the Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as place:
        datasets.config.HF_DATASETS_CACHE = Path(place) / "cache"
        shards = Path(place) / "shards"
        images = write_shards(Path(options.folder), shards, options.copies)
        loaders = {
            "ours": ours(shards, options),
            "timm, `hfids/` (stream)": timms("hfids", shards, images, options),
            "timm, `hfds/` (map-style)": timms("hfds", shards, images, options),
        }
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        costs: dict[str, list[float]] = {name: [] for name in loaders}
        for number in range(options.rounds):
            for name, batches in loaders.items():
                before = processor_seconds()
                rates[name].append(images_per_second(batches(number), options))
                gc.collect()  # ends the workers
                costs[name].append(1000 * (processor_seconds() - before) / images)
    options.result.write_text(page(rates, costs, images, options), encoding="utf-8")
    print(options.result.read_text(encoding="utf-8"))


def write_shards(source: Path, target: Path, copies: int) -> int:
    """Write shards with all photographs each, in different orders; returns the number of images."""
    target.mkdir(parents=True)
    rows = datasets.load_dataset(
        "parquet", data_files=[str(path) for path in sorted(source.glob("*.parquet"))], split="train"
    )
    for copy in range(copies):
        table = rows.shuffle(seed=copy).flatten_indices().data.table
        pq.write_table(table, target / f"train-{copy:05}-of-{copies:05}.parquet", row_group_size=100)
    return len(rows) * copies


def ours(shards: Path, options: argparse.Namespace) -> Callable[[int], Iterator[Any]]:
    """Passes over the stream, as in the search."""
    recipe = Recipe.check(
        {
            "run": {"dir": "unused"},
            "data": {
                "path": str(shards), "streaming": True, "test_split": None, "image_size": SIZE,
                "channels": 3, "mean": MEAN, "std": STD,
            },
            "model": {"name": "resnet50"},
            "inner": {"batch_size": options.batch_size, "optimizer": {"lr": 0.1}},
            "outer": {"steps": 1},
        }
    )  # fmt: skip
    train, device, batch_size = open_data(recipe).train, torch.device(options.device), options.batch_size
    augmentation = Augmentation(
        recipe.augment,
        mean=MEAN,
        std=STD,
        seed=0,
        batch_size=batch_size,
        own=slice(0, batch_size),
        device=device,
        num_classes=1000,
    )
    crop = RandomResizedCrop(RandomResizedCropSection(), (SIZE, SIZE), seed=0)
    blocks = Blocks.of(train, batch_size, recipe.data.shuffle_window)
    per_epoch = len(train) // batch_size

    def batches(number: int) -> Iterator[Any]:
        steps = range(number * per_epoch, (number + 1) * per_epoch)
        order = TrainingOrder(len(train), batch_size, 0, first=steps.start, last=steps.stop, blocks=blocks)
        decoded = training_batches(train, order, options.workers, device.type == "cuda", crop)
        for step, (images, labels) in zip(steps, ahead_on_device(decoded, device), strict=True):
            batch = augmentation.batch(images, step)
            yield augmentation.inputs(NoPolicy(), batch, labels, step, trajectory=0)[:2]

    return batches


def timms(reader: str, shards: Path, images: int, options: argparse.Namespace) -> Callable[[int], Any]:
    """Passes of timm's own loader over the same files."""
    dataset = create_dataset(
        f"{reader}/{shards}",
        split="train",
        is_training=True,
        batch_size=options.batch_size,
        num_samples=images if reader == "hfids" else None,
    )
    loader = create_loader(
        dataset,
        (3, SIZE, SIZE),
        options.batch_size,
        is_training=True,
        color_jitter=0.0,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=options.workers,
        pin_memory=options.device == "cuda",
        device=torch.device(options.device),
        persistent_workers=False,
    )
    return lambda number: iter(loader)


def images_per_second(batches: Iterator[Any], options: argparse.Namespace) -> float:
    """Speed of a pass after its first batches."""
    for inputs, _ in itertools.islice(batches, UNTIMED):
        assert inputs.shape == (options.batch_size, 3, SIZE, SIZE)
        assert inputs.dtype == torch.float32
    start = time.perf_counter()
    images = sum(len(inputs) for inputs, _ in batches)
    if options.device == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


def processor_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def page(
    rates: dict[str, list[float]], costs: dict[str, list[float]], images: int, options: argparse.Namespace
) -> str:
    """The whole result file."""
    own = rates["ours"]
    rows = []
    for name, theirs in rates.items():
        ratios = [a / b for a, b in zip(own, theirs, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        cost = costs[name]
        rows.append(
            f"| {name} | {statistics.median(theirs):.0f} ({min(theirs):.0f} to {max(theirs):.0f}) "
            f"| {'' if name == 'ours' else spread} "
            f"| {statistics.median(cost):.1f} ({min(cost):.1f} to {max(cost):.1f}) |"
        )
    device = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    return "\n".join(
        [
            "# Streams: images/s, and against timm's loaders",
            "",
            f"{images} JPEG photographs of ImageNet's sizes in {options.copies} local parquet shards with row groups "
            "of 100;",
            "RandomResizedCrop to 224 (bicubic), flip and normalization, to a float batch on the device.",
            "",
            "Medians (least to greatest) of the rounds.",
            "",
            "| loader | images/s | ours over it, in the same round | processor time per image, ms |",
            "|---|---|---|---|",
            *rows,
            "",
            f"- command: `OMP_NUM_THREADS=1 python {' '.join(['benchmarks/stream.py', *sys.argv[1:]])}`",
            f"- {device}; {options.workers} workers, batches of {options.batch_size}; {options.rounds} rounds; load "
            f"average at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
            f"- Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}, datasets "
            f"{datasets.__version__}, Pillow {PIL.__version__}",
            f"- {date.today()}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
