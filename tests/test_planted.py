"""The method learns what there is to learn: an invariance planted in the held-out images.

Why these numbers: the operation counts of two trajectories differ only by sampling noise, and a step moves
the accuracy in many ways of which rotation is one. Measured under the uniform policy, the number of rotated
images and the reward have a correlation of 0.04 with 600 held-out images and large steps, where a few
borderline images decide, and of 0.09 with 4,800 and small ones. So: many held-out images, small steps
without momentum (which would pay for operations after their trajectory was scored), and many trajectories. 100 outer
steps with three times the learning rates (inner and outer) find as much as 300, in a third of the time.
"""

import json
from collections.abc import Callable
from pathlib import Path

import planted
import pytest

from ohl_accel.engine.search import search
from ohl_accel.operations.space import PAPER
from ohl_accel.policy import Policy

pytestmark = pytest.mark.long

SEEDS = (0, 1, 2)
ROTATE = [index for index, element in enumerate(PAPER.elements) if element.transform.name == "Rotate"]


def rotation_over_uniform(policy: Policy) -> float:
    """P(a Rotate element), averaged over both elements of an operation, relative to the uniform policy."""
    return float(policy.element_probabilities[:, ROTATE].sum() / 2 * 36 / 3)


Run = Callable[[str, int], Path]
"""The run folder of a policy, learned or uniform, and a seed."""


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs when it is first asked. The uniform policy differs by nothing but outer.lr = 0."""
    folder = tmp_path_factory.mktemp("planted")
    planted.write_data(folder / "data")
    planted.write_recipe(folder / "recipe.yaml", folder / "data")

    def run(policy: str, seed: int) -> Path:
        path = folder / f"{policy}{seed}"
        if not path.exists():
            lr = {"learned": 0.3, "uniform": 0.0}[policy]
            search(
                str(folder / "recipe.yaml"),
                [f"run.dir={path}", f"run.seed={seed}", f"outer.lr={lr}", "run.display=quiet"],
            )
        return path

    return run


@pytest.mark.parametrize("seed", SEEDS)
def test_rotation_becomes_more_probable(run_of: Run, seed: int) -> None:
    assert rotation_over_uniform(Policy.load(run_of("learned", seed))) > 1.0


def test_rotation_becomes_more_probable_on_average(run_of: Run) -> None:
    learned = [rotation_over_uniform(Policy.load(run_of("learned", seed))) for seed in SEEDS]
    assert sum(learned) / len(SEEDS) > 1.08, learned


@pytest.mark.parametrize("seed", SEEDS)
def test_a_frozen_policy_stays_uniform(run_of: Run, seed: int) -> None:
    assert rotation_over_uniform(Policy.load(run_of("uniform", seed))) == pytest.approx(1.0)


def test_the_learned_policy_beats_the_frozen_one_on_the_test_split(run_of: Run) -> None:
    def accuracy(policy: str, seed: int) -> float:
        return float(json.loads((run_of(policy, seed) / "result.json").read_text())["test_accuracy"])

    gains = [accuracy("learned", seed) - accuracy("uniform", seed) for seed in SEEDS]
    assert sum(gains) / len(SEEDS) > 0.005, gains
