"""The search: one run learns the network and the augmentation policy together (Algorithm 1).

python -m ohl_accel.search RECIPE [section.key=value ...]
accelerate launch --config_file accelerate_configs/node_8gpu.yaml -m ohl_accel.search RECIPE
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ohl_accel import checkpoint
from ohl_accel.cli import recipe_arguments, run_command
from ohl_accel.display import Display
from ohl_accel.errors import RunFailedError, UserError
from ohl_accel.evaluation import partial_scores, total_scores
from ohl_accel.groups import agree
from ohl_accel.metrics import Phases, amend_last_line, append_line, keep_lines_before, read_metrics
from ohl_accel.network import save_network
from ohl_accel.policy import POLICY_FILE, advantage_of
from ohl_accel.prepare import Search, prepare, start_accelerator
from ohl_accel.recipe import Recipe
from ohl_accel.report.write import write_at_end
from ohl_accel.run_folder import CHECKPOINTS, METRICS_FILE, RESULT_FILE


def learn(search: Search, display: Display) -> None:
    """The outer and inner loops of Algorithm 1, from the last checkpoint to T_max."""
    groups, hosted, policy, inner_steps = search.groups, search.hosted, search.policy, search.inner_steps
    batches, phases = search.batches(), Phases(groups.device)
    for outer_step in range(search.first_outer_step, search.recipe.outer.steps):
        for trajectory in hosted:
            trajectory.begin_outer_step()
        with phases("train"):
            for step in range(outer_step * inner_steps, (outer_step + 1) * inner_steps):
                with phases("load", within="train"):
                    images, labels = next(batches)
                images, labels = search.augmentation.basic(images, labels, step)
                for trajectory in hosted:
                    trajectory.inner_step(images, labels, step, policy)
                display.inner_step()
        with phases("validate"):
            outcome = validate(search)
            reward_N = rewards_of(outcome["accuracy"], outcome["finite"], outer_step)
            winner = winner_of(reward_N, outcome["finite"])
        with phases("update"):
            advantage_N = advantage_of(reward_N)
            counts_NK = groups.gather(torch.stack([trajectory.counts_K for trajectory in hosted]))
            search.outer_optimizer.step(counts_NK, advantage_N)
        with phases("adopt"):
            groups.adopt(winner, [trajectory.state_tensors() for trajectory in hosted])
            groups.assert_equal([[*t.state_tensors(), policy.theta] for t in hosted], "the states adopted")
        if search.folder is not None:
            line = {
                "outer_step": outer_step,
                "reward": reward_N.tolist(),
                "winner": winner,
                "advantage": advantage_N.tolist(),
                "diverged": (outcome["finite"] == 0).nonzero().flatten().tolist(),
                "train_loss": outcome["train_loss"].tolist(),
                "heldout_loss": outcome["heldout_loss"].tolist(),
                "entropy": policy.entropy,
                "element_probabilities": policy.element_probabilities.tolist(),
                "top_operations": [{"operation": name, "probability": p} for name, p in policy.top(5)],
                "learning_rate": hosted[0].learning_rate,
                "theta_learning_rate": search.recipe.outer.lr,
                **phases.take(images=groups.trajectories * inner_steps * search.recipe.inner.batch_size),
            }
            append_line(search.folder / METRICS_FILE, line)
            display.outer_step(line)
            with phases("save"):
                save(search, outer_step + 1)


def validate(search: Search) -> dict[str, Tensor]:
    """Score every trajectory on the held-out images: float64 [N] of each kind, on every process.

    `finite` is 1 where loss and state are finite, else 0.
    """
    hosted, groups, heldout = search.hosted, search.groups, search.data.heldout
    ends = [trajectory.end_outer_step() for trajectory in hosted]
    parts = partial_scores(
        [trajectory.network for trajectory in hosted],
        heldout,
        search.augmentation,
        search.recipe.data.eval_batch_size,
        groups.data_rank,
        groups.group_size,
    )
    scores = total_scores(groups.sum_in_group(parts), len(heldout))
    rows = [
        [score.accuracy, score.loss, loss, float(finite)]
        for score, (loss, finite) in zip(scores, ends, strict=True)
    ]
    columns = groups.gather(torch.tensor(rows, dtype=torch.float64)).unbind(1)
    return dict(zip(("accuracy", "heldout_loss", "train_loss", "finite"), columns, strict=True))


def rewards_of(accuracy_N: Tensor, finite_N: Tensor, outer_step: int) -> Tensor:
    """Validation accuracies; a trajectory that is not finite gets the lowest of the others'.

    A reward of 0 instead would dwarf the differences between sound trajectories, and Adam's second
    moment would remember it for a thousand steps.

    Raises:
        RunFailedError: if no trajectory is finite.
    """
    sound_N = finite_N.bool()
    if not bool(sound_N.any()):
        raise RunFailedError(
            f"in outer step {outer_step + 1} the loss or the weights of every trajectory became infinite or "
            "NaN; the last good state is the newest one in the run folder's checkpoints. A lower "
            "inner.optimizer.lr or a longer inner.schedule.warmup_epochs may help"
        )
    return torch.where(sound_N, accuracy_N, accuracy_N[sound_N].min())


def winner_of(reward_N: Tensor, finite_N: Tensor) -> int:
    """The trajectory with the best reward among the finite ones; of equals, the first."""
    sound_N = finite_N.bool()
    return int(((reward_N == reward_N[sound_N].max()) & sound_N).nonzero()[0])


def save(search: Search, outer_steps_done: int) -> None:
    """Write the checkpoint and `policy.json` if they are due (main process only).

    Raises:
        RunFailedError: if the disk does not take them.
    """
    recipe, folder = search.recipe, search.folder
    assert folder is not None
    if outer_steps_done % recipe.run.checkpoint_every and outer_steps_done != recipe.outer.steps:
        return
    try:
        trajectory, outer = search.hosted[0], search.outer_optimizer
        checkpoint.save(folder / CHECKPOINTS, outer_steps_done, trajectory, outer, recipe)
        search.policy.provenance["outer_steps_done"] = outer_steps_done
        search.policy.save(folder / POLICY_FILE)
    except (OSError, SafetensorError) as error:
        raise RunFailedError(
            f"the checkpoint after outer step {outer_steps_done} cannot be written to {recipe.run.dir}: {error}; "
            "the one before it is kept, and run.resume=auto goes on from it"
        ) from error


def finish(search: Search, display: Display) -> None:
    """Save the network; then open the test split, for the first time, and report.

    Raises:
        UserError: if the test split cannot be used; everything else is on disk by then.
    """
    groups, folder, recipe = search.groups, search.folder, search.recipe
    network = search.hosted[0].network
    if folder is not None:
        save_network(
            network, folder.path, recipe.model, search.data.schema, search.data.mean, search.data.std
        )
    result: dict[str, Any] = {"outer_steps": recipe.outer.steps}
    try:
        test = agree(search.data.open_test, one_first=True)
    except UserError as error:
        raise UserError(
            f"the search is finished and saved in {recipe.run.dir}, but the test split cannot be used: {error}. "
            "When that is mended, the same command with run.resume=auto tests the network"
        ) from error
    if test is not None:
        batch_size = recipe.data.eval_batch_size
        parts = partial_scores(
            [network], test, search.augmentation, batch_size, groups.rank, groups.processes
        )
        (score,) = total_scores(groups.sum_in_world(parts), len(test))
        result |= {
            "test_accuracy": score.accuracy,
            "test_top5_accuracy": score.top5_accuracy,
            "test_loss": score.loss,
            "test_images": score.images,
        }
    if folder is not None:
        lines = read_metrics(folder / METRICS_FILE)
        result["heldout_accuracy"] = max(lines[-1]["reward"])
        amend_last_line(folder / METRICS_FILE, result)
        folder.write_json(RESULT_FILE, result)
        write_at_end(folder.path, display.say)
        display.summary(search.policy, result, folder.contents())


def search(path: str, overrides: Sequence[str] = ()) -> None:
    """Run a recipe, whole or from its last checkpoint, in the launch that this process belongs to.

    Raises:
        UserError: if it cannot work; before training begins wherever that can be known.
        RunFailedError: if no trajectory can go on.
    """
    try:
        recipe = Recipe.load(path, overrides)
    except UserError:
        start_accelerator(None)  # so that processes agree on what to say, and one says it
        agree(lambda: Recipe.load(path, overrides))
        raise
    accelerator = start_accelerator(recipe)
    agree(lambda: recipe)
    with Display(accelerator.is_main_process) as display:
        prepared = prepare(recipe, accelerator, display)
        if prepared.folder is not None:
            keep_lines_before(prepared.folder / METRICS_FILE, prepared.first_outer_step)
        display.start(prepared.first_outer_step, recipe.outer.steps, prepared.inner_steps)
        learn(prepared, display)
        finish(prepared, display)
        if prepared.folder is not None:
            prepared.folder.release()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    purpose = "Learn an augmentation policy while training the network."
    path, overrides = recipe_arguments("search", purpose, argv)
    return run_command(lambda: search(path, overrides))


if __name__ == "__main__":
    sys.exit(main())
