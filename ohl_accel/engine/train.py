"""Training with a fixed policy, for comparison with the search and with what it learned.

python -m ohl_accel.train RECIPE augment.policy=none|cutout|mixup|uniform|autoaugment|...|runs/mine
accelerate launch --config_file accelerate_configs/node_8gpu.yaml -m ohl_accel.train RECIPE augment.policy=...

The same recipe, the same images in the same order and the same first weights as the search with the same
seed; all processes train one network.
"""

from collections.abc import Sequence

from ohl_accel.engine.run import Run
from ohl_accel.engine.setup import execute, join_launch
from ohl_accel.errors import UserError
from ohl_accel.observers.display import Display
from ohl_accel.policy.baselines import FIXED_POLICIES
from ohl_accel.recipe import Recipe


def fixed(recipe: Recipe) -> Recipe:
    """The recipe of one network that trains with a fixed policy, as many steps as `train.match` says.

    Raises:
        UserError: if no policy is named.
    """
    if recipe.augment.policy is None:
        raise UserError(
            f"augment.policy: name what to train with: {', '.join(FIXED_POLICIES)}, a policy.json, a run folder or "
            "a Hub id"
        )
    factor = recipe.outer.trajectories if recipe.train.match == "compute" else 1
    schedule = recipe.inner.schedule
    inner = recipe.inner.model_dump()
    inner["schedule"]["milestones"] = [factor * milestone for milestone in schedule.milestones]
    return recipe.with_values(
        inner=inner,
        outer={"trajectories": 1, "groups": None, "steps": factor * recipe.outer.steps},
        train={"match": "images"},
    )


def descend(run: Run, display: Display) -> None:
    """All inner steps, in the outer steps of the search: after each, held-out accuracy and a checkpoint."""
    batches, phases, steps = run.batches(), run.phases, run.recipe.outer.steps
    for outer_step in range(run.first_outer_step, steps):
        with phases("train"):
            run.train(batches, outer_step, display)
        with phases("validate"):
            done = outer_step + 1
            look = done % run.recipe.train.validate_every == 0 or done == steps
            outcome = run.validate(outer_step, look)
            replaced = run.count_replaced(outer_step, run.data.train)
        if run.folder is not None:
            line = {
                "outer_step": outer_step,
                "reward": outcome["accuracy"].tolist(),
                "train_loss": outcome["train_loss"].tolist(),
                "heldout_loss": outcome["heldout_loss"].tolist(),
                "replaced_images": replaced,
                "learning_rate": run.hosted[0].learning_rate,
            }
            run.record(line, display)
        with phases("save"):
            run.save(outer_step + 1)


def train(path: str, overrides: Sequence[str] = ()) -> None:
    """Train by a recipe, whole or from its last checkpoint, in the launch that this process belongs to.

    Raises:
        UserError: if it cannot work; before training begins wherever that can be known.
        RunFailedError: if the weights become infinite or NaN.
    """
    recipe, accelerator = join_launch(path, overrides)
    execute(fixed(recipe), accelerator, descend, learn_policy=False)
