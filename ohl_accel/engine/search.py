"""The search: one run learns the network and the augmentation policy together (Algorithm 1).

Shapes: N trajectories.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ohl_accel.engine.run import Run
from ohl_accel.engine.session import RecipeSource, Result, execute
from ohl_accel.observers.observer import Observer


def outer_loop(run: Run) -> list[float] | None:
    """The outer loop of Algorithm 1, from the last checkpoint to T_max; returns the last rewards."""
    groups, hosted, estimator, phases = run.groups, run.hosted, run.estimator, run.phases
    assert estimator is not None
    batches, policy = run.batches(), estimator.policy
    rewards: list[float] | None = None
    for outer_step in range(run.first_outer_step, run.recipe.outer.steps):
        with phases("train"):
            run.train(batches, outer_step)
        with phases("validate"):
            outcome = run.validate(outer_step)
            replaced = run.replacements.count(outer_step, run.data.train)
            reward_N = finite_rewards(outcome.reward_N, outcome.finite_N)
            winner = winner_of(reward_N, outcome.finite_N)
        with phases("gather"):
            finished = run.finished(outer_step, outcome, reward_N)
        with phases("update"):
            learned = estimator.step(finished)
        with phases("adopt"):
            groups.adopt(winner, [trajectory.state_tensors() for trajectory in hosted])
        with phases("check"):
            groups.assert_equal([[*t.state_tensors(), policy.theta] for t in hosted], "the states adopted")
        rewards = reward_N.tolist()
        line = {
            "reward": rewards,
            "winner": winner,
            "diverged": (~outcome.finite_N).nonzero().flatten().tolist(),
            "entropy": policy.entropy,
            "element_probabilities": policy.element_probabilities.tolist(),
            "top_operations": [{"operation": name, "probability": p} for name, p in policy.top(5)],
        }
        run.record(outer_step, outcome, replaced, line, learned)
        with phases("save"):
            run.save(outer_step + 1)
    return rewards


def finite_rewards(reward_N: Tensor, finite_N: Tensor) -> Tensor:
    """Rewards in which a trajectory that diverged gets the lowest of the others'. float64 [N].

    A reward of 0 would dwarf the differences between the other trajectories, and stay in Adam's second
    moment for a thousand steps.

    Args:
        reward_N: float64.
        finite_N: bool, at least one True.
    """
    return torch.where(finite_N, reward_N, reward_N[finite_N].min())


def winner_of(reward_N: Tensor, finite_N: Tensor) -> int:
    """The trajectory with the best reward among the finite ones; the first one in case of a tie."""
    return int(((reward_N == reward_N[finite_N].max()) & finite_N).nonzero()[0])


def search(
    recipe: RecipeSource,
    overrides: Sequence[str] = (),
    *,
    dataset: Any = None,
    model: nn.Module | None = None,
    observers: Sequence[Observer] = (),
) -> Result:
    """Learn a policy while training a network, in the launch that this process belongs to; or resume it.

    Every process of a launch (`accelerate launch script.py`, `accelerate.notebook_launcher`) must call it with the same
    arguments.

    Args:
        recipe: a file, the name of a recipe that comes with the package, a mapping of its sections, or a `Recipe`.
        overrides: `section.key=value`, as on the command line.
        dataset: instead of `data.path`: a `datasets.Dataset` of training images, a mapping from split names to such
            datasets (for instance a `DatasetDict`), or map-style torch datasets of (image, label).
        model: instead of `model.name`: a network; it is copied, not changed.
        observers: notified of the run's progress, on the main process.

    Returns:
        The learned policy, the network, the metrics and the test scores.

    Raises:
        UserError: if it cannot work; before training begins whenever possible.
        RunFailedError: if no trajectory can continue.
    """
    return execute(
        recipe, overrides, outer_loop, learn=True, dataset=dataset, model=model, observers=observers
    )
