"""What a search costs beside plain training: its inner step, the rest of its outer step, and images/s end to end.

    OMP_NUM_THREADS=1 python -m benchmarks.search_step [--data FOLDER] [OVERRIDES]

A real search of recipes/cifar10_r18.yaml with a small network. After each of its outer steps the same process times as
many plain training steps of the same network, on a batch that is already augmented, and a loop with timm's AutoAugment
of PIL images in one worker: all three meet what else the machine does. Medians over the outer steps but the first.

Shapes: N trajectories, I inner steps, B images of a batch.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_pil_image

from benchmarks.kernels import crops
from benchmarks.pages import now, replace_between
from ohl_accel.comparison.summary import processor
from ohl_accel.engine.search import search
from ohl_accel.observers.observer import Observer, RunInfo
from ohl_accel.recipe import Recipe

RESULT = Path(__file__).parent / "results" / "search_step.md"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- begin: benchmarks/search_step.py -->\n", "<!-- end: benchmarks/search_step.py -->\n"
TRAINING = ("train", "load", "augment")
"""Phases of an outer step that are its inner steps."""
PROPORTIONS = {"CIFAR-10": 45_000 / 5_000, "ImageNet": 1_231_167 / 50_000}
"""Training images of an outer step for each held-out one, in the paper's recipes."""
SIDE = 32
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where a search trains if it is not told otherwise."""


class Photographs(Dataset[tuple[Any, int]]):
    """Squares of the photographs that come with scikit-learn, with arbitrary labels."""

    def __init__(self, count: int, transform: Any = None) -> None:
        self._images = [to_pil_image(image) for image in crops(SIDE, count)]
        self._transform = transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Image.Image = self._images[index]
        return (image if self._transform is None else self._transform(image)), index % 10


class Beside(Observer):
    """After each outer step, the same number of training steps without a search, and how long they take.

    Args:
        recipe: of the search.
        per_image: images of the loop with per-image augmentation.
    """

    def __init__(self, recipe: Recipe, per_image: int) -> None:
        self.search: list[Mapping[str, float]] = []
        self.plain: list[float] = []
        self.per_image: list[float] = []
        """Seconds for an image."""
        self._recipe = recipe
        transform = create_transform(SIDE, is_training=True, auto_augment="original", re_prob=0.0)
        self._photographs = Photographs(per_image, transform)
        network = timm.create_model(recipe.model.name, num_classes=10, **recipe.model.args).to(DEVICE)
        memory_format = torch.channels_last if recipe.model.channels_last else torch.contiguous_format
        self._network, self._memory_format = network.to(memory_format=memory_format), memory_format
        optimizer = recipe.inner.optimizer
        self._optimizer = create_optimizer_v2(
            self._network, optimizer.name, lr=1e-3, weight_decay=optimizer.weight_decay, momentum=0.9
        )

    def outer_step(self, run: RunInfo, line: Mapping[str, Any]) -> None:
        """Time the plain steps and the loop."""
        recipe, batch = self._recipe, self._recipe.inner.batch_size
        inputs = torch.randn(batch, 3, SIDE, SIDE, device=DEVICE)
        labels = torch.arange(batch, device=DEVICE) % 10
        start = now(DEVICE.type)
        for _ in range(recipe.outer.trajectories * run.inner_steps):
            self._train(inputs, labels)
        plain = now(DEVICE.type) - start
        loader = DataLoader(self._photographs, batch, shuffle=True, num_workers=1, drop_last=True)
        start = now(DEVICE.type)
        images = sum(self._train(*(each.to(DEVICE) for each in loaded)) for loaded in loader)
        per_image = (now(DEVICE.type) - start) / images
        # the observers' time is in the next line, and most of it is what is timed here
        self.search.append({phase: each for phase, each in line["seconds"].items() if phase != "track"})
        self.plain.append(plain)
        self.per_image.append(per_image)

    def _train(self, inputs: torch.Tensor, labels: torch.Tensor) -> int:
        inputs = inputs.contiguous(memory_format=self._memory_format)
        nn.functional.cross_entropy(self._network(inputs), labels).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return len(labels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Search in both proportions, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="data.path of the search; photographs in memory if it is left out")
    parser.add_argument("--outer-steps", type=int, default=8)
    parser.add_argument("--inner-steps", type=int, default=18, help="so many batches are the training images")
    parser.add_argument("--result", type=Path, default=RESULT, help="the Markdown file")
    parser.add_argument(
        "--page",
        type=Path,
        default=None if DEVICE.type == "cuda" else PAGE,
        help="the page that has a copy of it",
    )
    parser.add_argument("overrides", nargs="*", help="of the recipe")
    options = parser.parse_args(arguments)
    sections: list[str] = []
    for name, proportion in PROPORTIONS.items():
        sections += section(name, *measure(proportion, options))
    text = "\n".join(["# A search beside plain training", "", *sections, *conditions(options), ""])
    options.result.write_text(text, encoding="utf-8")
    if options.page is not None:
        replace_between(options.page, BEGIN, END, text.partition("\n")[2])  # without the heading
    print(text)


def measure(proportion: float, options: argparse.Namespace) -> tuple[Recipe, int, Beside]:
    """Run a search; returns its recipe, its held-out images, and what was timed.

    Args:
        proportion: training images for each held-out one.
        options: the program's.
    """
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            *(
                "model.name=resnet8_cifar",
                "model.args={width: 16, stem_stride: 2}",
                "outer.trajectories=4",
                f"outer.steps={options.outer_steps}",
            ),
            *("run.mixed_precision=no", "run.report=false", "run.display=quiet", f"run.dir={folder}/run"),
            *options.overrides,
        ]
        batch = Recipe.of("cifar10_r18", overrides).inner.batch_size
        training = batch * options.inner_steps
        heldout = round(training / proportion)
        overrides += [f"data.heldout={heldout}", f"data.train_images={training}"]
        dataset = None
        if options.data is None:
            dataset = {"train": Photographs(training + heldout + 10), "test": Photographs(32)}
            overrides += ["data.image_column=null", "data.label_column=null"]
        else:
            overrides.append(f"data.path={options.data}")
        recipe = Recipe.of("cifar10_r18", overrides)
        beside = Beside(recipe, per_image=4 * batch)
        search("cifar10_r18", overrides, dataset=dataset, observers=[beside])
    return recipe, heldout, beside


def section(name: str, recipe: Recipe, heldout: int, beside: Beside) -> list[str]:
    """The table of one proportion."""
    steps = range(1, len(beside.search))
    N, B = recipe.outer.trajectories, recipe.inner.batch_size

    def median(values: Any) -> float:
        return float(statistics.median(values))

    def training(step: int) -> float:
        return sum(beside.search[step].get(phase, 0.0) for phase in TRAINING)

    def whole(step: int) -> float:
        return sum(beside.search[step].values())

    images = recipe.data.train_images
    assert isinstance(images, int)
    trained = N * images
    alone = [beside.search[step]["train"] / beside.plain[step] for step in steps]
    augmented = [training(step) / beside.plain[step] for step in steps]
    rest = [1 - training(step) / whole(step) for step in steps]
    of_plain = [beside.plain[step] / whole(step) for step in steps]
    of_loop = [beside.per_image[step] / (whole(step) / trained) for step in steps]
    rows = [
        ("inner steps, of the time of N I plain steps", alone, "{:.3f}"),
        ("inner steps with loading and augmentation, of that time", augmented, "{:.3f}"),
        ("rest of the outer step (validation, gather, update, adopt, save), of the whole", rest, "{:.1%}"),
        ("images/s of the whole search, of plain steps on augmented batches", of_plain, "{:.3f}"),
        ("images/s of the whole search, of a loop with timm's AutoAugment of PIL images", of_loop, "{:.2f}"),
    ]
    phases = sorted({phase for line in beside.search for phase in line})
    seconds = {phase: median(beside.search[step].get(phase, 0.0) for step in steps) for phase in phases}
    return [
        f"## {images:,} training and {heldout:,} held-out images an outer step, as for {name}",
        "",
        f"N = {N}, I = {images // B}, B = {B}; {median(trained / whole(step) for step in steps):,.0f} images/s.",
        "",
        "| | median (least to greatest) |",
        "|---|---|",
        *(
            f"| {what} | {form.format(median(values))} ({form.format(min(values))} to {form.format(max(values))}) |"
            for what, values, form in rows
        ),
        "",
        "Seconds: " + ", ".join(f"{phase} {each:.3f}" for phase, each in seconds.items()) + ".",
        "",
    ]


def conditions(options: argparse.Namespace) -> list[str]:
    """How it was measured."""
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{processor()}, one thread"
    given = sys.argv[1:]
    if options.data is not None:
        given = [each.replace(options.data, "PATH") for each in given]
    return [
        f"- command: `{' '.join(['OMP_NUM_THREADS=1 python -m benchmarks.search_step', *given])}`",
        f"- {device}; {options.outer_steps} outer steps, everything timed after each; load average at the end "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        f"- Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}",
        f"- {date.today()}",
    ]


if __name__ == "__main__":
    main()
