"""Which of a run's processes are here, and how many trajectories they train (`run.on_loss`)."""

from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ohl_accel.distributed.groups import Groups
from ohl_accel.distributed.layout import fewest_that_fit, shrink
from ohl_accel.engine import checkpoint
from ohl_accel.engine.run import Run
from ohl_accel.engine.trajectory import check_batch_size
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.files import CHECKPOINTS


def build_groups(recipe: Recipe, accelerator: Accelerator, learn: bool) -> tuple[Groups, int]:
    """The groups of the processes that are here.

    Args:
        recipe: of the run.
        accelerator: from `start_accelerator`.
        learn: whether it is a search, of which trajectories may be lost.

    Returns:
        They, and how many processes host all trajectories: those that are here; with `run.on_loss=shrink` those that
        were here before if they were more, or that are needed for equal groups.

    Raises:
        UserError: if the numbers do not fit.
    """
    outer, processes = recipe.outer, accelerator.num_processes
    full = processes
    if learn and recipe.run.on_loss == "shrink":
        before = None
        if recipe.run.resume == "auto" and accelerator.is_main_process:
            before = checkpoint.processes_before(Path(recipe.run.dir) / CHECKPOINTS)
        (before,) = broadcast_object_list([before])
        full = fewest_that_fit(outer.trajectories, max(processes, before or 0), outer.groups)
    trajectories, number = shrink(outer.trajectories, processes, full, outer.groups)
    groups = Groups.build(
        trajectories=trajectories,
        processes=processes,
        rank=accelerator.process_index,
        device=accelerator.device,
        timeout=timedelta(seconds=recipe.run.timeout),
        groups=number,
        sharded=recipe.model.shard,
    )
    check_batch_size(recipe.inner, groups.group_size)
    return groups, full


def presence_in_words(run: Run) -> str | None:
    """On the main process: that processes are missing, or are back; None if there is nothing to say."""
    here, of = run.groups.processes, run.recipe.outer.trajectories
    take_part = f"{run.groups.trajectories} of {of} trajectories from outer step {run.first_outer_step + 1}"
    if run.first_outer_step == run.recipe.outer.steps:
        return None
    if here < run.full_processes:
        return f"{here} of {run.full_processes} processes are here: going on with {take_part}"
    if run.estimator is not None and run.rewards_before and len(run.rewards_before) < of:
        return f"all {here} processes are here again: {take_part}"
    return None
