"""Learn a policy for a dataset and a network of one's own.

python examples/search.py [section.key=value ...]
accelerate launch --config_file accelerate_configs/cpu_processes.yaml examples/search.py [section.key=value ...]
"""

import sys
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from sklearn.datasets import load_digits
from torch import nn

from ohl_accel import search

RECIPE = {
    "run": {"dir": "runs/own"},
    "data": {"heldout": 297},
    "inner": {"batch_size": 100, "optimizer": {"lr": 0.1}},
    "outer": {"trajectories": 2, "steps": 20},
    "augment": {"flip": False},
}


def own_dataset() -> DatasetDict:
    """1,797 grey images of 8 x 8 pixels in memory; the last 500 are the test split."""
    digits: Any = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    features = Features(image=Image(), label=ClassLabel(names=list("0123456789")))
    rows = {"image": list(images), "label": digits.target}
    whole = Dataset.from_dict(rows, features=features)
    return DatasetDict(train=whole.select(range(1297)), test=whole.select(range(1297, 1797)))


def own_network() -> nn.Module:
    """Two convolutions, of 32 and 64 channels."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def main() -> None:
    """Search, and say what was learned, once in the whole launch."""
    result = search(RECIPE, sys.argv[1:], dataset=own_dataset(), model=own_network())
    state = PartialState()
    state.print(result.policy)
    state.print("test scores:", result.test)
    state.destroy_process_group()


if __name__ == "__main__":
    main()
