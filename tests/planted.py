"""Digits with a planted invariance: held-out and test images are rotated, training images are not.

A policy that learns anything must come to rotate more often.
"""

from pathlib import Path
from typing import Any

import datasets
import yaml
from timm.models import register_model
from torch import Tensor, nn

from ohl_accel.data.source import open_split
from ohl_accel.recipe import DataSection

HELDOUT_DIGITS = 600
ANGLES = (-35, -30, -25, -20, 20, 25, 30, 35)


class TwoLayers(nn.Module):
    """A small perceptron: it learns about rotations only from its images, and trains quickly."""

    def __init__(self, num_classes: int, in_chans: int, pixels: int = 64, width: int = 32) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, width
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(in_chans * pixels, width), nn.ReLU(), nn.Linear(width, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


@register_model
def two_layers(pretrained: bool = False, **kwargs: Any) -> TwoLayers:
    """For timm.create_model."""
    network = TwoLayers(kwargs["num_classes"], kwargs["in_chans"])
    network.pretrained_cfg = {"architecture": "two_layers", "input_size": (1, 8, 8)}  # type: ignore[assignment]
    return network


def write_data(folder: Path) -> None:
    """Parquet files: 697 upright training digits; 600 held-out and 500 test digits, each by all angles."""
    section = DataSection(path="sklearn:digits", heldout=1)
    train, test = open_split(section, "train"), open_split(section, "test")
    parts = {
        "train": train.select(range(HELDOUT_DIGITS, len(train))),
        "validation": _rotated(train.select(range(HELDOUT_DIGITS))),
        "test": _rotated(test),
    }
    folder.mkdir()
    for name, rows in parts.items():
        rows.to_parquet(folder / f"{name}.parquet")


def _rotated(rows: datasets.Dataset) -> datasets.Dataset:
    images = [image.rotate(angle, fillcolor=128) for image in rows["image"] for angle in ANGLES]
    labels = [label for label in rows["label"] for _ in ANGLES]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=rows.features)


def write_recipe(path: Path, data: Path) -> None:
    """Small inner steps, one to an outer step, and many trajectories: see the test."""
    recipe = {
        "run": {"dir": "set by the test", "checkpoint_every": 10_000},
        "data": {"path": str(data), "heldout_split": "validation", "eval_batch_size": 5000},
        "model": {"name": "two_layers"},
        "inner": {"batch_size": 128, "optimizer": {"lr": 0.3, "momentum": 0.0}},
        "outer": {"trajectories": 32, "steps": 100, "inner_steps": 1},
        "augment": {"flip": False},
    }
    path.write_text(yaml.safe_dump(recipe))
