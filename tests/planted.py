"""Digits with a planted invariance: held-out and test images are rotated, training images are not.

A policy that learns anything must come to rotate more often.
"""

from pathlib import Path
from typing import Any

import yaml
from timm.models import register_model

from benchmarks.outer_loop_planted import TwoLayers, rotated_digits


@register_model
def two_layers(pretrained: bool = False, **kwargs: Any) -> TwoLayers:
    """For timm.create_model."""
    network = TwoLayers(kwargs["num_classes"], kwargs["in_chans"])
    network.pretrained_cfg = {"architecture": "two_layers", "input_size": (1, 8, 8)}  # type: ignore[assignment]
    return network


def write_data(folder: Path) -> None:
    """Parquet files of the bench's planted digits: upright for training; held-out and test digits by all angles."""
    folder.mkdir()
    for name, rows in rotated_digits().items():
        rows.to_parquet(folder / f"{name}.parquet")


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
