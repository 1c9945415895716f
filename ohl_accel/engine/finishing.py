"""The end of a run: the network is saved, and the test split opened, for the first time."""

import math
from functools import partial
from typing import Any

from torch import Tensor

from ohl_accel.data import Images
from ohl_accel.distributed.launch import run_on_all_ranks
from ohl_accel.engine.network import save_network
from ohl_accel.engine.run import Run
from ohl_accel.errors import UserError
from ohl_accel.observers.observer import RunInfo
from ohl_accel.run_folder.files import CLASSES_FILE, METRICS_FILE
from ohl_accel.run_folder.metrics import lines_before


def finish(run: Run, rewards: list[float] | None) -> dict[str, Any]:
    """Save the network; then open the test split, for the first time, and score it.

    Args:
        run: with no outer step left.
        rewards: of the last outer step; None if no step was left.

    Returns:
        The contents of `result.json`, the same on every process.

    Raises:
        UserError: if the test split cannot be used; everything else is on disk by then.
        RunFailedError: if the network cannot be written.
    """
    groups, recipe, data = run.groups, run.recipe, run.data
    if run.stack is not None:
        run.stack.separate()
    if recipe.outer.keep_average:
        run.hosted[0].take_average()
    tensors = groups.tensors_on_main(0, run.hosted[0].network.state_dict())
    run_on_all_ranks(partial(_save_results, run, tensors))
    metric = run.objective.metric
    result: dict[str, Any] = {
        "outer_steps": recipe.outer.steps,
        "images_trained_on": _images_trained_on(run),
        "metric": metric,
        "greater_is_better": run.objective.greater_is_better,
    }
    try:
        test = run_on_all_ranks(data.open_test, one_first=True, long=True)
    except UserError as error:
        raise UserError(
            f"the run is finished and saved in {recipe.run.dir}, but the test split cannot be used: {error}. "
            "Once fixed, rerun the same command with run.resume=auto to test the network"
        ) from error
    if test is not None:
        own = run.outcomes([run.hosted[0].network], test, groups.rank, groups.processes, "test")
        run.replacements.count(recipe.outer.steps, test, everywhere=True)
        (outcomes_nM,) = groups.sum_in_world(own)
        scores = run.objective.scores(outcomes_nM, test.labels)
        result |= {f"test_{name}": score for name, score in scores.items()}
        if run.info is not None:
            _write_classes(run, run.info, outcomes_nM, test)
        result["test_images"] = len(test)
    rewards = groups.broadcast_object(rewards or run.rewards_before)
    sign = 1.0 if run.objective.greater_is_better else -1.0
    measured = [reward for reward in rewards or [] if reward is not None and math.isfinite(reward)]
    result[f"heldout_{metric}"] = sign * max(measured) if measured else None
    if run.info is not None:
        run.observers.finish(run.info, result)
    return result


def _images_trained_on(run: Run) -> int:
    """Over all trajectories that took part."""
    outer, lost = run.recipe.outer, 0
    if run.folder is not None:
        lines = lines_before(run.folder / METRICS_FILE, outer.steps)
        told = [line.get("lost_trajectories") for line in lines]
        lost = sum(number for number in told if isinstance(number, int))
    trained = outer.trajectories * outer.steps - run.groups.broadcast_object(lost)
    return trained * run.inner_steps * run.recipe.inner.batch_size


def _write_classes(run: Run, info: RunInfo, outcomes_nM: Tensor, test: Images) -> None:
    """Write `classes.json`: the scores of each class, and which classes were taken for which others."""
    objective, names = run.objective, run.data.schema.class_names
    try:
        confusions_P3 = objective.confusions(outcomes_nM, test.labels)
        document = {
            "images": len(test),
            "classes": objective.table(outcomes_nM, test.labels, names),
            "confusions": [] if confusions_P3 is None else confusions_P3.tolist(),
        }
        info.folder.write_json(CLASSES_FILE, document)
    except (OSError, TypeError, ValueError) as error:  # a full disk, or an objective of the user's own
        info.warn(f"{CLASSES_FILE} is not written: {error}")


def _save_results(run: Run, tensors: dict[str, Tensor]) -> None:
    """Write the network, given by its tensors, and the policy (main process only).

    Raises:
        RunFailedError: if they cannot be written.
    """
    if run.saver is None:
        return
    network, data, section = run.new_network(), run.data, run.recipe.data
    network.load_state_dict(tensors)
    policy = run.fixed_policy if run.estimator is None else run.estimator.policy
    if run.estimator is not None:
        run.estimator.policy.provenance["outer_steps_done"] = run.recipe.outer.steps
    model, schema, crop = run.recipe.model, data.schema, (section.crop_pct, section.crop_mode)
    run.saver.finish(
        lambda folder: save_network(network, folder, model, schema, data.mean, data.std, *crop), policy
    )
