"""Training with a fixed policy, for comparison with the search and with the policy it learned.

With the same recipe and seed, images, their order and the initial weights are the same as in the search; all
processes train one network.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ohl_accel.engine.run import Run
from ohl_accel.engine.session import RecipeSource, Result, execute
from ohl_accel.errors import UserError
from ohl_accel.observers.observer import Observer
from ohl_accel.policy.baselines import FIXED_POLICIES
from ohl_accel.recipe import Recipe


def for_one_network(recipe: Recipe) -> Recipe:
    """The recipe for training one network with a fixed policy, for as many steps as `train.match` says.

    Raises:
        UserError: if no policy is given.
    """
    if recipe.augment.policy is None:
        raise UserError(
            f"augment.policy: give a policy to train with: {', '.join(FIXED_POLICIES)}, a policy.json, a run folder "
            "or a Hub id"
        )
    factor = recipe.outer.trajectories if recipe.train.match == "compute" else 1
    schedule = recipe.inner.schedule
    inner = recipe.inner.model_dump()
    inner["stacked"] = False  # of one network
    inner["schedule"]["milestones"] = [factor * milestone for milestone in schedule.milestones]
    return recipe.with_values(
        inner=inner,
        outer={"trajectories": 1, "groups": None, "steps": factor * recipe.outer.steps},
        train={"match": "images"},
    )


def training_loop(run: Run) -> list[float] | None:
    """All inner steps, divided into outer steps as in the search; after each of these, validation and a checkpoint."""
    batches, phases, steps = run.batches(), run.phases, run.recipe.outer.steps
    rewards: list[float] | None = None
    for outer_step in range(run.first_outer_step, steps):
        with phases("train"):
            run.train(batches, outer_step)
        with phases("validate"):
            done = outer_step + 1
            outcome = run.validate(outer_step, done % run.recipe.train.validate_every == 0 or done == steps)
            replaced = run.replacements.count(outer_step, run.data.train)
        rewards = outcome.reward_N.tolist()
        run.record(outer_step, outcome, replaced)
        with phases("save"):
            run.save(outer_step + 1)
    return rewards


def train(
    recipe: RecipeSource,
    overrides: Sequence[str] = (),
    *,
    dataset: Any = None,
    model: nn.Module | None = None,
    observers: Sequence[Observer] = (),
) -> Result:
    """Train one network with the fixed policy `augment.policy`, or resume it.

    Args:
        recipe, overrides, dataset, model, observers: as in `search`.

    Returns:
        The network, the metrics and the test scores; `policy` is the recipe's if that is a `Policy`.

    Raises:
        UserError: if it cannot work; before training begins whenever possible.
        RunFailedError: if the weights become infinite or NaN.
    """
    return execute(
        recipe,
        overrides,
        training_loop,
        learn=False,
        adapt=for_one_network,
        dataset=dataset,
        model=model,
        observers=observers,
    )
