"""Inner steps of N trajectories on one device: one after the other, at once (`inner.stacked`), and by CUDA's own means.

    OMP_NUM_THREADS=1 python -m benchmarks.stacked [OVERRIDES]

On the CPU a small ResNet, on images of two sizes; on a GPU the network of recipes/cifar10_r18.yaml, and two more ways
to keep it busy that the package does not have, to see which is best: a CUDA stream for each trajectory, and a CUDA
graph of each network's forward and backward pass. Each round times all of them, one after the other, on batches that
are augmented already: on the CPU the processor time of the only thread, on a GPU wall time until it has finished.

Shapes: N trajectories, B images of a batch.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from accelerate import Accelerator
from torch import Tensor

import ohl_accel.models  # noqa: F401  registers our networks with timm
from benchmarks.pages import now, replace_between
from ohl_accel.comparison.summary import processor
from ohl_accel.distributed.groups import Groups
from ohl_accel.engine.augment import Augmentation
from ohl_accel.engine.objective import Classification
from ohl_accel.engine.process import configure_torch, start_accelerator
from ohl_accel.engine.stacked import Stack
from ohl_accel.engine.trajectory import Trajectory
from ohl_accel.errors import first_line
from ohl_accel.recipe import Recipe

RESULT = Path(__file__).parent / "results" / "stacked.md"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- begin: benchmarks/stacked.py -->\n", "<!-- end: benchmarks/stacked.py -->\n"
ON_CPU = ["model.name=resnet8_cifar", "model.args={width: 16, stem_stride: 2}", "run.mixed_precision=no"]
ALONE, STACKED = "one after the other", "inner.stacked"
STREAMS, GRAPHS = (
    "one after the other, each in a CUDA stream of its own",
    "one after the other, as CUDA graphs",
)
CUDA = torch.cuda.is_available()
SIZES = [(32, 256)] if CUDA else [(32, 256), (8, 100)]
"""Side of the images, and B."""

Batches = Sequence[tuple[Tensor, Tensor]]
Way = Callable[[Batches, int], None]
"""An inner step of all trajectories, on the batch of each, and its number."""


class Ways(NamedTuple):
    """The ways of one number of trajectories."""

    steps: dict[str, Way]
    hosted: dict[str, list[Trajectory]]
    """Each way has trajectories of its own, which begin equal."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Time everything and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trajectories", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20 if CUDA else 1, help="inner steps of a round")
    parser.add_argument("--result", type=Path, default=RESULT, help="the Markdown file")
    parser.add_argument(
        "--page", type=Path, default=None if CUDA else PAGE, help="the page that has a copy of it"
    )
    parser.add_argument("overrides", nargs="*", help="of the recipe")
    options = parser.parse_args(arguments)
    sections: list[str] = []
    for side, batch in SIZES:
        overrides = [*([] if CUDA else ON_CPU), f"inner.batch_size={batch}", *options.overrides]
        recipe = Recipe.of("cifar10_r18", overrides)
        accelerator = start_accelerator(recipe.run)
        configure_torch(recipe.run, accelerator.device)
        sections += section(recipe, side, accelerator, options)
    text = "\n".join(["# Trajectories trained at once", "", *sections, *conditions(options), ""])
    options.result.write_text(text, encoding="utf-8")
    if options.page is not None:
        replace_between(options.page, BEGIN, END, text.partition("\n")[2])  # without the heading
    print(text)


def section(recipe: Recipe, side: int, accelerator: Accelerator, options: argparse.Namespace) -> list[str]:
    """The table of one size of images."""
    rows: list[str] = []
    for number in options.trajectories:
        ways = make_ways(recipe, number, accelerator)
        batches = [batch_of(recipe, side, accelerator.device) for _ in range(number)]
        seconds: dict[str, list[float]] = {}
        for name, way in ways.steps.items():
            try:
                way(batches, 0)  # choosing and loading kernels takes time
                seconds[name] = []
            except (RuntimeError, TypeError, ValueError) as error:
                rows.append(f"| {number} | {name} | failed: {first_line(error)} | | |")
        losses = {name: losses_of(ways.hosted[name]) for name in seconds}
        for each in range(options.rounds):
            for name in seconds:
                start = clock()
                for step in range(options.steps):
                    ways.steps[name](batches, 1 + each * options.steps + step)
                seconds[name].append((clock() - start) / options.steps)
        for name, measured in seconds.items():
            ratios = [alone / own for alone, own in zip(seconds[ALONE], measured, strict=True)]
            apart = max(abs(a / b - 1) for a, b in zip(losses[name], losses[ALONE], strict=True))
            speed = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            rows.append(
                f"| {number} | {name} | {1000 * statistics.median(measured):.1f} | {speed} | {apart:.0e} |"
            )
    size = recipe.inner.batch_size
    return [
        f"## {side} x {side}, {recipe.model.name}, B = {size}, precision {accelerator.mixed_precision}",
        "",
        "| N | | ms for an inner step of all | times as fast as one after the other, median (least to greatest) "
        "| first losses differ by |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def clock() -> float:
    """Seconds: of the processor, or on a GPU wall time."""
    return now("cuda") if CUDA else time.process_time()


def batch_of(recipe: Recipe, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs of noise, and labels, on the device."""
    size = recipe.inner.batch_size
    return torch.randn(size, 3, side, side, device=device), torch.arange(size, device=device) % 10


def losses_of(hosted: Sequence[Trajectory]) -> list[float]:
    """The mean loss of each trajectory so far."""
    return [trajectory.end_outer_step()[0] for trajectory in hosted]


def make_ways(recipe: Recipe, number: int, accelerator: Accelerator) -> Ways:
    """All ways that this device has."""
    steps: dict[str, Way] = {}
    hosted: dict[str, list[Trajectory]] = {}

    def new(name: str) -> list[Trajectory]:
        hosted[name] = trajectories(recipe, number, accelerator)
        return hosted[name]

    steps[ALONE] = one_after_the_other(new(ALONE))
    stacked = new(STACKED)
    steps[STACKED] = Stack(stacked, recipe, accelerator).inner_step
    if CUDA:
        steps[STREAMS] = in_streams(new(STREAMS))
        steps[GRAPHS] = as_graphs(new(GRAPHS))
    return Ways(steps, hosted)


def trajectories(recipe: Recipe, number: int, accelerator: Accelerator) -> list[Trajectory]:
    """Trajectories of a run, each with weights of its own, keyed by its number."""
    size, device = recipe.inner.batch_size, accelerator.device
    groups = Groups(trajectories=number, processes=1, rank=0, groups=1, device=device)
    augmentation = Augmentation(
        recipe.augment,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        seed=0,
        batch_size=size,
        own=slice(0, size),
        device=device,
        num_classes=10,
    )
    made = []
    for each in range(number):
        torch.manual_seed(each)
        network = timm.create_model(recipe.model.name, num_classes=10, **recipe.model.args)
        if recipe.model.channels_last:
            network = network.to(memory_format=torch.channels_last)
        one = Trajectory(
            number=each,
            network=accelerator.prepare_model(network, evaluation_mode=True),
            recipe=recipe,
            groups=groups,
            objective=Classification(10),
            augmentation=augmentation,
            accelerator=accelerator,
            steps_per_epoch=10_000,
            total_steps=10_000,
            num_operations=0,
        )
        one.begin_outer_step()
        made.append(one)
    return made


def one_after_the_other(hosted: Sequence[Trajectory]) -> Way:
    """As in a run without `inner.stacked`."""

    def step(batches: Batches, number: int) -> None:
        for trajectory, batch in zip(hosted, batches, strict=True):
            trajectory.inner_step(*batch, number)

    return step


def in_streams(hosted: Sequence[Trajectory]) -> Way:
    """Kernels of different trajectories may run side by side; each is launched by itself."""
    streams = [torch.cuda.Stream() for _ in hosted]

    def step(batches: Batches, number: int) -> None:
        current = torch.cuda.current_stream()
        for trajectory, batch, stream in zip(hosted, batches, streams, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                trajectory.inner_step(*batch, number)
        for stream in streams:
            current.wait_stream(stream)

    return step


def as_graphs(hosted: Sequence[Trajectory]) -> Way:
    """One launch for each network's forward pass, and one for its backward pass; captured at the first step.

    Capturing trains nothing, but BatchNorm's statistics see its inputs.
    """
    captured: list[bool] = []

    def step(batches: Batches, number: int) -> None:
        if not captured:
            for trajectory, (inputs, _) in zip(hosted, batches, strict=True):
                torch.cuda.make_graphed_callables(trajectory.network, (inputs.clone(),))
            captured.append(True)
        for trajectory, batch in zip(hosted, batches, strict=True):
            trajectory.inner_step(*batch, number)

    return step


def conditions(options: argparse.Namespace) -> list[str]:
    """How it was measured."""
    device = torch.cuda.get_device_name() if CUDA else f"{processor()}, one thread, in processor time"
    load = f"load average at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    command = " ".join(["python -m benchmarks.stacked", *sys.argv[1:]])
    return [
        f"- command: `OMP_NUM_THREADS=1 {command}`",
        f"- {device}; {options.rounds} rounds, inner steps of each way in a round: {options.steps}; {load}",
        f"- Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}",
        f"- {date.today()}",
    ]


if __name__ == "__main__":
    main()
