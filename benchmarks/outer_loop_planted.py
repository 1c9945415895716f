"""Planted problems: held-out and test images are changed, training images are not.

The operations that make the same change to training images are the answer. Digits are rotated; CIFAR-10's images are
inverted, shifted sideways, or solarized. Settings are small: a search takes a minute or two on one core.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from benchmarks.outer_loop_shared import BEST_OF_N, UNIFORM, Contestant, Known, Trial, independent_policy
from ohl_accel.comparison.contenders import contender
from ohl_accel.data.source import open_split
from ohl_accel.engine.search import search
from ohl_accel.engine.session import Result
from ohl_accel.engine.train import train
from ohl_accel.errors import UserError
from ohl_accel.operations.space import PAPER
from ohl_accel.policy import Policy
from ohl_accel.recipe import DataSection, Recipe
from ohl_accel.rng import keyed_generator, keyed_seed
from ohl_accel.run_folder.files import RESULT_FILE

GREY = 128
HELDOUT_DIGITS = 600
ANGLES = (-35, -30, -25, -20, 20, 25, 30, 35)
_SHIFT = 0.3
_SOLARIZE_FROM = 128
_ORACLE_MASS = 0.5
"""Probability of the planted elements, at each position, in the policy that knows the answer."""

Splits = Mapping[str, datasets.Dataset]
Change = Callable[[Image.Image, int], Image.Image]
"""From an image and its index to what it becomes."""


class TwoLayers(nn.Module):
    """A small perceptron: it learns about rotations only from its images, and trains quickly."""

    def __init__(self, num_classes: int, in_chans: int, pixels: int = 64, width: int = 32) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, width
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(in_chans * pixels, width), nn.ReLU(), nn.Linear(width, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float [B, classes], of images [B, C, H, W]."""
        logits: Tensor = self.layers(images)
        return logits


def inverted(image: Image.Image, index: int) -> Image.Image:
    """Every level l becomes 255 - l."""
    return ImageOps.invert(image)


def shifted(image: Image.Image, index: int) -> Image.Image:
    """Shifted sideways by 30 % of the width, to the left and to the right in turn; grey comes in."""
    pixels = _SHIFT * image.width * (-1 if index % 2 else 1)
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, pixels, 0, 1, 0), fillcolor=(GREY,) * 3)


def solarized(image: Image.Image, index: int) -> Image.Image:
    """Levels from 128 are inverted."""
    return ImageOps.solarize(image, _SOLARIZE_FROM)


@dataclass(frozen=True)
class Problem:
    """A planted problem."""

    answer: frozenset[str]
    """Names of the elements that make the same change."""
    change: Change | None
    """Of CIFAR-10's held-out and test images; None: scikit-learn's digits, rotated by `ANGLES`."""
    recipe: Mapping[str, Any]
    perceptron: tuple[int, int, int] | None = None
    """Channels, pixels and width of a `TwoLayers`, in place of the recipe's network."""

    def known(self, threshold: float = 3.0) -> Known:
        """The answer, found at `threshold` times uniform."""
        elements = tuple(index for index, element in enumerate(PAPER.elements) if element.name in self.answer)
        return Known(", ".join(sorted(self.answer)), elements, more=True, threshold=threshold)

    def network(self, seed: int) -> nn.Module | None:
        """The network with its first weights, keyed by the seed, if it is none of timm's."""
        if self.perceptron is None:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(seed, "planted network"))
            return TwoLayers(10, *self.perceptron)

    def splits(self, data: str | None, images: tuple[int, int, int]) -> Splits:
        """Training images as they are; changed held-out (`validation`) and test images.

        Args:
            data: path of CIFAR-10; digits come with scikit-learn.
            images: of CIFAR-10: for training, held out, and for the test.

        Raises:
            UserError: if there is no path, or too few images.
        """
        if self.change is None:
            return rotated_digits()
        if data is None:
            raise UserError(
                "the CIFAR-10 problems need its path: --data PATH (parquet files, or the Hub's uoft-cs/cifar10)"
            )
        return changed_cifar10(data, images, self.change)


_DIGITS_RECIPE = {
    "data": {"path": "set by the search", "heldout_split": "validation", "eval_batch_size": 5000},
    "model": {"name": "set by the search"},
    "inner": {"batch_size": 128, "optimizer": {"lr": 0.1, "momentum": 0.0}, "schedule": {"name": "cosine"}},
    "outer": {"trajectories": 8, "steps": 200, "inner_steps": 4},
    "augment": {"flip": False},
}
_CIFAR10_RECIPE = {
    "data": {"path": "set by the search", "heldout_split": "validation", "eval_batch_size": 1000},
    "model": {"name": "resnet8_cifar", "args": {"width": 16, "stem_stride": 2}, "channels_last": True},
    "inner": {
        "batch_size": 125,
        "optimizer": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5.0e-4},
        "schedule": {"name": "cosine"},
    },
    "outer": {"trajectories": 4, "steps": 60, "inner_steps": 4},
    "augment": {"flip": True},
}
_SHIFTED_RECIPE = {
    **_CIFAR10_RECIPE,
    "model": {"name": "set by the search"},
    "inner": {"batch_size": 125, "optimizer": {"lr": 0.05, "momentum": 0.0}, "schedule": {"name": "cosine"}},
    "outer": {"trajectories": 4, "steps": 150, "inner_steps": 8},
}
"""A perceptron: convolutions and global pooling see a shifted image as the same, with or without the answer."""
PROBLEMS: dict[str, Problem] = {
    "digits-rotated": Problem(
        frozenset({"Rotate 10", "Rotate 20", "Rotate 30"}), None, _DIGITS_RECIPE, (1, 64, 32)
    ),
    "cifar10-inverted": Problem(frozenset({"Invert", "Solarize 26"}), inverted, _CIFAR10_RECIPE),
    "cifar10-shifted": Problem(
        frozenset({f"HorizontalTranslate {part}" for part in ("0.15", "0.3", "0.45")}),
        shifted,
        _SHIFTED_RECIPE,
        (3, 1024, 64),
    ),
    "cifar10-solarized": Problem(frozenset({"Solarize 102", "Solarize 179"}), solarized, _CIFAR10_RECIPE),
}
"""By name. Solarize 26 inverts nearly all levels, so it is part of the answer where images are inverted."""


def rotated_digits() -> Splits:
    """697 upright training digits; 600 held-out and 500 test digits, each by all of `ANGLES`."""
    section = DataSection(path="sklearn:digits", heldout=1)
    rows, test = open_split(section, "train"), open_split(section, "test")
    return {
        "train": rows.select(range(HELDOUT_DIGITS, len(rows))),
        "validation": _rotated(rows.select(range(HELDOUT_DIGITS))),
        "test": _rotated(test),
    }


def _rotated(rows: datasets.Dataset) -> datasets.Dataset:
    images = [image.rotate(angle, fillcolor=GREY) for image in rows["image"] for angle in ANGLES]
    labels = [label for label in rows["label"] for _ in ANGLES]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=rows.features)


def changed_cifar10(data: str, images: tuple[int, int, int], change: Change) -> Splits:
    """Training images, and changed held-out and test images, of CIFAR-10; the same for all seeds of runs.

    Args:
        data: path or Hub id; its image and label columns are found by their types.
        images: for training, held out, and for the test.
        change: of the held-out and the test images.

    Raises:
        UserError: if there are too few.
    """
    section = DataSection(path=data, heldout=1)
    rows, test = open_split(section, "train"), open_split(section, "test")
    training, heldout, tested = images
    if training + heldout > len(rows) or tested > len(test):
        raise UserError(f"--images {images}: {data} has {len(rows)} training and {len(test)} test images")
    order = torch.randperm(len(rows), generator=keyed_generator(0, "planted images")).tolist()
    columns = {kind: _column(rows, kind, data) for kind in (datasets.Image, datasets.ClassLabel)}
    image, label = columns[datasets.Image], columns[datasets.ClassLabel]
    kinds = datasets.Features(image=rows.features[image], label=rows.features[label])

    def part(source: datasets.Dataset, indices: Sequence[int], changed: bool) -> datasets.Dataset:
        chosen = source.select(indices)
        pictures = [picture.convert("RGB") for picture in chosen[image]]
        if changed:
            pictures = [change(picture, index) for index, picture in enumerate(pictures)]
        return datasets.Dataset.from_dict({"image": pictures, "label": chosen[label]}, features=kinds)

    return {
        "train": part(rows, order[:training], changed=False),
        "validation": part(rows, order[training : training + heldout], changed=True),
        "test": part(test, range(tested), changed=True),
    }


def _column(rows: datasets.Dataset, kind: type, data: str) -> str:
    """The first column of a kind.

    Raises:
        UserError: if there is none.
    """
    for name, feature in rows.features.items():
        if isinstance(feature, kind):
            return str(name)
    raise UserError(f"--data {data}: has no column of {kind.__name__}; it has {', '.join(rows.features)}")


@dataclass(frozen=True)
class Planted:
    """A problem with its data, and where its runs are written; a run that is there already is not repeated."""

    problem: Problem
    splits: Splits
    folder: Path
    overrides: tuple[str, ...] = ()
    """Of the recipe of all runs."""

    def trials(
        self, contestants: Sequence[Contestant], seeds: Sequence[int], known: Known, fresh: bool
    ) -> dict[str, list[Trial]]:
        """Every contestant and the references with every seed.

        Args:
            contestants: besides the frozen search, and training with the uniform policy and with one that knows the
                answer (`oracle`: each position has half of its probability on the planted elements).
            seeds: of the runs.
            known: the answer.
            fresh: whether to train anew with what each search learned.
        """
        uniform_E = PAPER.uniform_marginals.mean(0)
        oracle_E = (1 - _ORACLE_MASS) * uniform_E
        oracle_E[list(known.elements)] += _ORACLE_MASS / len(known.elements)
        found: dict[str, list[Trial]] = {UNIFORM: [], "oracle": []}
        for seed in seeds:
            for name, share_E in ((UNIFORM, uniform_E), ("oracle", oracle_E)):
                policy = independent_policy(share_E)
                score = self.trained(policy, name, seed)
                found[name].append(Trial(seed, known.factor(policy.element_probabilities), fresh=score))
            for one in (Contestant(BEST_OF_N, "reinforce", {"lr": 0.0}), *contestants):
                trial = self.searched(one, seed, known, fresh and one.label != BEST_OF_N)
                found.setdefault(one.label, []).append(trial)
        return found

    def searched(self, one: Contestant, seed: int, known: Known, fresh: bool) -> Trial:
        """A search with an estimator.

        Args:
            one: the estimator.
            seed: of the run.
            known: the answer.
            fresh: whether to train anew with its policy.
        """
        result = self._run(search, one.label, seed, one.overrides())
        assert result.policy is not None
        assert result.test is not None
        factors = [known.factor(torch.tensor(line["element_probabilities"])) for line in result.metrics]
        steps, written = known.first_found(factors), json.loads((result.folder / RESULT_FILE).read_text())
        images = None if steps is None else steps * written["images_trained_on"] // written["outer_steps"]
        score = self.trained(result.policy, f"{one.label},fresh", seed) if fresh else None
        return Trial(seed, factors[-1], steps, images, result.test["accuracy"], score)

    def trained(self, policy: Policy, label: str, seed: int) -> float:
        """Test accuracy, in 0..1, of training with a fixed policy."""
        path = self._folder(label, seed).with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        policy.save(path)
        steps = Recipe.of(self.problem.recipe, [*self.overrides, f"run.dir={self.folder}"]).outer.steps
        quiet = [f"augment.policy={path}", f"train.validate_every={steps}"]
        result = self._run(train, label, seed, quiet)
        assert result.test is not None
        return result.test["accuracy"]

    def _run(self, kind: Callable[..., Result], label: str, seed: int, overrides: Sequence[str]) -> Result:
        folder = self._folder(label, seed)
        own = [f"run.dir={folder}", f"run.seed={seed}", "run.resume=auto", "run.display=quiet"]
        steps = Recipe.of(self.problem.recipe, [*self.overrides, *own]).outer.steps
        own.append(f"run.checkpoint_every={steps}")
        splits, network = dict(self.splits), self.problem.network(seed)
        settings = [*self.overrides, *overrides, *own]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".log").open("a") as log, redirect_stdout(log):
            result = kind(self.problem.recipe, settings, dataset=splits, model=network)
        assert result.test is not None
        print(f"{self.folder.name}, {label}, seed {seed}: {100 * result.test['accuracy']:.2f} %", flush=True)
        return result

    def _folder(self, label: str, seed: int) -> Path:
        return self.folder / contender(label).folder / f"seed-{seed}"
