"""A run that is checked but not begun (`run.dry`), and a few steps of one, to measure what it takes here."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from ohl_accel.cost import Cost, estimate, facts_of, lines
from ohl_accel.distributed.launch import run_on_all_ranks
from ohl_accel.engine.learner import open_learner
from ohl_accel.engine.setup import open_recipes_objective, open_recipes_policy
from ohl_accel.engine.trajectory import create_optimizer, create_schedule
from ohl_accel.observers.display import Display
from ohl_accel.policy import Policy
from ohl_accel.recipe import Recipe

MEASURED_STEPS = 5
"""Inner steps of an outer step that is measured, at most."""


def dry_run(
    recipe: Recipe,
    accelerator: Accelerator,
    display: Display,
    *,
    learn: bool,
    dataset: Any = None,
    model: nn.Module | None = None,
) -> Cost:
    """Check what can be checked without training, and say what the run would take; no file is written.

    The data is opened unless it is a well-known dataset that is not here; the network is outlined, without memory for
    its weights, and tried on blank images; optimizer, schedule, policy, objective and estimator are opened.

    Args:
        recipe, dataset, model: as in `search`.
        accelerator: from `start_accelerator`; its processes are the layout.
        display: shows the cost.
        learn: whether it is a search.

    Raises:
        UserError: for the first of them that cannot work.
    """

    def check() -> Cost:
        facts = facts_of(recipe, dataset)
        cost = estimate(recipe, facts, accelerator.num_processes, learn=learn, model=model)
        open_recipes_objective(recipe, facts.schema, recipe.data.path)
        policy = open_recipes_policy(recipe, min(facts.schema.size), learn, facts.heldout_images > 0)
        if learn and isinstance(policy, Policy):
            open_learner(recipe, policy, None, display.warn)
        optimizer = create_optimizer(recipe.inner.optimizer.model_copy(update={"args": {}}), nn.Linear(2, 2))
        total_steps = recipe.outer.steps * cost.inner_steps
        create_schedule(recipe.inner.schedule, optimizer, cost.steps_per_epoch, total_steps)
        return cost

    cost = run_on_all_ranks(check, one_first=True, long=True)
    for name, text in [("cost", cost.headline), *lines(cost)]:
        display.say(f"{name:<12}{text}")
    display.say("dry run: everything above was checked, and nothing trained or written")
    return cost


@dataclass(frozen=True)
class Pace:
    """Seconds that a run takes here."""

    inner_step: float
    """Of all hosted trajectories, with loading and augmentation."""
    rest: float
    """Of an outer step, without its inner steps: scoring, the policy, the winner, the checkpoint."""

    def outer_step(self, cost: Cost) -> float:
        """Seconds of a whole outer step."""
        return cost.inner_steps * self.inner_step + self.rest

    def hours(self, cost: Cost) -> float:
        """Hours of the whole run."""
        return cost.recipe.outer.steps * self.outer_step(cost) / 3600


def measure(cost: Cost, run: Callable[..., Any]) -> Pace:
    """Run two short outer steps in a folder that is then removed, on one process, and time the second.

    Theta takes the steps of Eq 6, whatever the recipe's estimator: some need a minimum of outer steps.

    Args:
        cost: of the run.
        run: `search` or `train`.

    Raises:
        UserError: if the run cannot work; the data must be available, or is downloaded.
    """
    steps = min(MEASURED_STEPS, cost.inner_steps)
    overrides = [
        "run.resume=never",
        "run.checkpoint_every=1",
        "run.display=quiet",
        "inner.schedule={name: constant}",
    ]
    overrides += [
        "outer.steps=2",
        f"outer.inner_steps={steps}",
        "outer.estimator=reinforce",
        "outer.estimator_args={}",
    ]
    overrides += ["data.test_split=null", "data.test_path=null", "outer.groups=null"]
    overrides += ["hub={}", "track=[]"]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        result = run(cost.recipe, [*overrides, f"run.dir={Path(folder) / 'run'}"])
    seconds = result.metrics[1]["seconds"]
    inner = sum(seconds.get(name, 0.0) for name in ("train", "load", "augment"))
    return Pace(inner / steps, sum(seconds.values()) - inner)
