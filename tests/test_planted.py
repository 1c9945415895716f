"""The method learns what there is to learn: an invariance planted in the held-out images.

Why these numbers: the operation counts of two trajectories differ only by sampling noise, and a step moves
the accuracy in many ways of which rotation is one. Measured under the uniform policy, the number of rotated
images and the reward have a correlation of 0.04 with 600 held-out images and large steps, where a few
borderline images decide, and of 0.09 with 4,800 and small ones. So: many held-out images, small steps
without momentum (which would pay for operations after their trajectory was scored), and many trajectories.
"""

import json
from pathlib import Path

import planted
import pytest

from ohl_accel.engine.search import search
from ohl_accel.operations.space import PAPER
from ohl_accel.policy import Policy

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
ROTATE = [index for index, element in enumerate(PAPER.elements) if element.transform.name == "Rotate"]


def rotation_over_uniform(policy: Policy) -> float:
    """P(a Rotate element), averaged over the two places of an operation, relative to the uniform policy."""
    return float(policy.element_probabilities[:, ROTATE].sum() / 2 * 36 / 3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Run folders by (learned or uniform, seed). The frozen policy differs by nothing but outer.lr = 0."""
    folder = tmp_path_factory.mktemp("planted")
    planted.write_data(folder / "data")
    planted.write_recipe(folder / "recipe.yaml", folder / "data")
    finished = {}
    for seed in SEEDS:
        for name, lr in (("learned", 0.1), ("uniform", 0.0)):
            finished[name, seed] = folder / f"{name}{seed}"
            overrides = [f"run.dir={folder / f'{name}{seed}'}", f"run.seed={seed}", f"outer.lr={lr}"]
            search(str(folder / "recipe.yaml"), overrides)
    return finished


def test_rotation_becomes_more_probable(runs: dict[tuple[str, int], Path]) -> None:
    learned = [rotation_over_uniform(Policy.load(runs["learned", seed])) for seed in SEEDS]
    assert min(learned) > 1.0, learned
    assert sum(learned) / len(SEEDS) > 1.08, learned
    frozen = [rotation_over_uniform(Policy.load(runs["uniform", seed])) for seed in SEEDS]
    assert frozen == pytest.approx([1.0] * len(SEEDS))


def test_the_learned_policy_beats_the_frozen_one_on_the_test_split(runs: dict[tuple[str, int], Path]) -> None:
    def accuracy(name: str, seed: int) -> float:
        return float(json.loads((runs[name, seed] / "result.json").read_text())["test_accuracy"])

    gains = [accuracy("learned", seed) - accuracy("uniform", seed) for seed in SEEDS]
    assert sum(gains) / len(SEEDS) > 0.005, gains
