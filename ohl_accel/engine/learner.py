"""The estimator of a run, checked against the recipe before training begins."""

from collections.abc import Callable

from ohl_accel.errors import UserError
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators import ESTIMATORS, Estimator, open_estimator
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.files import CHECKPOINTS
from ohl_accel.run_folder.folder import RunFolder


def open_learner(
    recipe: Recipe,
    policy: Policy,
    folder: RunFolder | None,
    warn: Callable[[str], None],
    trajectories: int | None = None,
) -> Estimator:
    """The estimator that the recipe names.

    Args:
        recipe: resolved.
        policy: to learn; updated in place.
        folder: on the main process only.
        warn: shows a line to the user.
        trajectories: how many take part; None: all.

    Raises:
        UserError: if it cannot be opened, cannot learn from so few trajectories, or from fewer than before.
    """
    outer = recipe.outer
    estimator = open_estimator(
        outer.estimator,
        policy,
        outer.estimator_args,
        lr=outer.lr,
        betas=outer.betas,
        trajectories=trajectories or outer.trajectories,
        outer_steps=outer.steps,
        seed=recipe.run.seed,
    )
    if recipe.run.on_loss == "shrink" and not estimator.trajectories_vary:
        can = sorted(name for name, kind in ESTIMATORS.items() if kind.trajectories_vary)
        raise UserError(
            f"run.on_loss=shrink: outer.estimator={outer.estimator} needs the same trajectories in all outer steps; "
            f"use run.on_loss=stop, or one of {', '.join(can)}"
        )
    if folder is not None:
        _check_trajectories(recipe, estimator.trajectories_needed, folder, warn)
    return estimator


def _check_trajectories(recipe: Recipe, needed: int, folder: RunFolder, warn: Callable[[str], None]) -> None:
    """Refuse to begin a search that cannot learn; one that has begun, with an earlier version, goes on.

    Raises:
        UserError: with the ways out.
    """
    number = recipe.outer.trajectories
    if number >= needed or recipe.outer.lr == 0:
        return
    problem = (
        f"outer.trajectories={number}: outer.estimator={recipe.outer.estimator} learns nothing from fewer than "
        f"{needed} trajectories, since only differences between their rewards teach"
    )
    if recipe.run.resume == "auto" and any((folder / CHECKPOINTS).glob("step-*")):
        warn(problem)
        return
    raise UserError(
        f"{problem}: use outer.trajectories={needed} or more; `ohl_accel.train` to train one network with a fixed "
        "policy; or outer.lr=0 for a search that learns nothing"
    )
