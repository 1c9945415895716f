"""Objectives: scores against scikit-learn and plain loops, and a search whose images have several labels."""

import importlib
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY, SMALL
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from torch import Tensor

from ohl_accel.engine.evaluate import evaluate
from ohl_accel.engine.objective import (
    Classification,
    MultiLabel,
    Objective,
    average_precision,
    open_objective,
)
from ohl_accel.engine.search import search
from ohl_accel.errors import UserError

DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")


def test_classification_by_plain_loops() -> None:
    logits, labels = torch.randn(40, 7), torch.randint(7, (40,))
    objective = Classification(7)
    outcomes = objective.outcomes(logits, labels)
    scores = objective.scores(outcomes, labels)
    correct = [int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True)]
    top5 = [int(label) in row.argsort()[-5:].tolist() for row, label in zip(logits, labels, strict=True)]
    assert scores["accuracy"] == pytest.approx(np.mean(correct))
    assert scores["top5_accuracy"] == pytest.approx(np.mean(top5))
    assert scores["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-6)
    assert objective.reward(scores) == scores["accuracy"]
    rows = objective.table(outcomes, labels, [f"class {number}" for number in range(7)])
    for number, row in enumerate(rows):
        chosen = labels == number
        assert row["images"] == int(chosen.sum())
        if row["images"]:
            assert row["top1"] == pytest.approx(float((logits[chosen].argmax(1) == number).double().mean()))
    assert sum(row["mistaken"] for row in rows) <= 40 - sum(correct)


@pytest.mark.parametrize("levels", [1000, 3])
def test_average_precision_equals_scikit_learn(levels: int) -> None:
    """With many ties."""
    for seed in range(20):
        generator = np.random.default_rng(seed)
        score = generator.integers(levels, size=60) / levels
        positive = generator.integers(2, size=60)
        expected = average_precision_score(positive, score)
        assert average_precision(torch.tensor(score), torch.tensor(positive)) == pytest.approx(expected)
    assert average_precision(torch.rand(5), torch.zeros(5)) is None


def test_multilabel_scores() -> None:
    logits, labels = torch.randn(50, 4), torch.randint(2, (50, 4)).float()
    labels[:, 3] = 0
    objective = MultiLabel(4)
    outcomes = objective.outcomes(logits, labels)
    scores = objective.scores(outcomes, labels)
    expected = np.mean([average_precision_score(labels[:, c], logits[:, c]) for c in range(3)])
    assert scores["mAP"] == pytest.approx(expected)
    assert scores["loss"] == pytest.approx(
        float(F.binary_cross_entropy_with_logits(logits, labels)), abs=1e-6
    )
    assert float(objective.loss(logits, labels)) == pytest.approx(scores["loss"], abs=1e-6)
    rows = objective.table(outcomes, labels, list("abcd"))
    assert rows[3] == {"class": "d", "images": 0, "average_precision": None}


def pairs_of_digits() -> datasets.DatasetDict:
    """Two digits side by side; the labels are the two."""
    digits: Any = load_digits()
    levels, targets = np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.List(datasets.ClassLabel(names=[str(digit) for digit in range(10)])),
    )

    def part(first: int, images: int) -> datasets.Dataset:
        left, right = np.random.default_rng(first).integers(first, first + images, size=(2, images))
        rows = {
            "image": [
                Image.fromarray(np.hstack([levels[a], levels[b]])) for a, b in zip(left, right, strict=True)
            ],
            "label": [sorted({int(targets[a]), int(targets[b])}) for a, b in zip(left, right, strict=True)],
        }
        return datasets.Dataset.from_dict(rows, features=features)

    return datasets.DatasetDict({"train": part(0, 600), "test": part(1000, 300)})


def test_a_search_whose_images_have_several_labels(tmp_path: Path) -> None:
    result = search(
        DIGITS,
        [
            *SMALL,
            f"run.dir={tmp_path / 'run'}",
            "objective=multilabel",
            "data.heldout=100",
            "outer.inner_steps=20",
        ],
        dataset=pairs_of_digits(),
    )
    assert result.test is not None
    assert result.test["mAP"] > 0.35  # the rate of positives is 0.19
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (written["metric"], written["test_mAP"]) == ("mAP", result.test["mAP"])
    assert written["heldout_mAP"] == max(result.metrics[-1]["reward"])


def test_labels_and_objective_must_fit(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"objective=classification: .* several labels each; use objective=multilabel"
    ):
        search(DIGITS, [*SMALL, f"run.dir={tmp_path / 'a'}", "data.heldout=100"], dataset=pairs_of_digits())
    with pytest.raises(
        UserError, match=r"objective=multilabel: .* one label each; use objective=classification"
    ):
        search(DIGITS, [*SMALL, f"run.dir={tmp_path / 'b'}", "objective=multilabel"])


OWN = '''
import torch.nn.functional as F
from ohl_accel.engine.objective import Classification


class Smoothed(Classification):
    """Label smoothing; the lowest loss wins."""

    metric = "loss"
    greater_is_better = False

    def __init__(self, num_classes, smoothing=0.1):
        super().__init__(num_classes)
        self.smoothing = smoothing

    def loss(self, logits_bC, targets_b):
        return F.cross_entropy(logits_bC, targets_b, label_smoothing=self.smoothing)
'''


def test_a_custom_objective_whose_score_is_better_when_lower(tmp_path: Path) -> None:
    (tmp_path / "smoothed.py").write_text(OWN)
    own = [f"objective={tmp_path / 'smoothed.py'}:Smoothed", "objective_args={smoothing: 0.2}"]
    with pytest.raises(UserError, match=r"objective_args={'sharpening': 1}: .*no option sharpening"):
        search(DIGITS, [*SMALL, f"run.dir={tmp_path / 'run'}", own[0], "objective_args={sharpening: 1}"])
    result = search(DIGITS, [*SMALL, f"run.dir={tmp_path / 'run'}", *own])
    assert result.test is not None
    assert evaluate(tmp_path / "run").scores["loss"] == pytest.approx(result.test["loss"])
    for line in result.metrics:
        assert line["reward"] == [-loss for loss in line["heldout_loss"]]
        assert line["heldout_loss"][line["winner"]] == min(line["heldout_loss"])
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["heldout_loss"] == min(result.metrics[-1]["heldout_loss"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clasification", r"there is no such objective; did you mean classification\? known: "),
        ("nowhere.py:Mine", "nowhere.py is not a Python file"),
        ("no_such_module:Mine", "no_such_module failed: ModuleNotFoundError"),
        ("json:Mine", "json has no class Mine derived from ohl_accel's Objective"),
    ],
)
def test_objectives_that_do_not_exist(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_objective(name, 10)


def test_a_file_named_like_a_library_does_not_replace_it(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(OWN)
    assert type(open_objective(f"{tmp_path / 'json.py'}:Smoothed", 10)).metric == "loss"
    assert importlib.import_module("json") is json


def test_outcomes_are_the_same_for_any_batch_size() -> None:
    logits, labels = torch.randn(30, 5), torch.randint(5, (30,))
    for objective, targets in ((Classification(5), labels), (MultiLabel(5), F.one_hot(labels, 5).float())):
        whole: Tensor = objective.outcomes(logits, targets)
        parts = [objective.outcomes(logits[i : i + 7], targets[i : i + 7]) for i in range(0, 30, 7)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-7)
        losses = objective.losses(whole, targets)
        torch.testing.assert_close(losses, Objective.losses(objective, whole, targets))
        assert float(losses.mean()) == pytest.approx(objective.scores(whole, targets)["loss"])
