"""One run on one process: what the search and training with a fixed policy have in common."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ohl_accel import checkpoint
from ohl_accel.augment import Augmentation
from ohl_accel.data import Batch, Data, TrainingOrder, training_batches
from ohl_accel.display import Display
from ohl_accel.errors import RunFailedError, UserError
from ohl_accel.evaluation import partial_scores, total_scores
from ohl_accel.groups import Groups, agree
from ohl_accel.metrics import Phases, amend_last_line, read_metrics
from ohl_accel.network import create_network, save_network
from ohl_accel.policies import TorchvisionPolicy
from ohl_accel.policy import POLICY_FILE, OuterOptimizer, Policy
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder import CHECKPOINTS, METRICS_FILE, RESULT_FILE, RunFolder
from ohl_accel.trajectory import Trajectory


@dataclass
class Run:
    """Everything that takes part in a run, on one process."""

    recipe: Recipe
    """Resolved: with what was found in the data and the launch."""
    groups: Groups
    folder: RunFolder | None
    """On the main process only."""
    data: Data
    augmentation: Augmentation
    hosted: list[Trajectory]
    policy: Policy | TorchvisionPolicy | None
    outer_optimizer: OuterOptimizer | None
    """None where the policy is fixed."""
    inner_steps: int
    """I."""
    first_outer_step: int
    """0, or where a resumed run goes on."""

    def batches(self) -> Iterator[Batch]:
        """This process's part of every mini-batch that is still to come."""
        order = TrainingOrder(
            num_images=len(self.data.train),
            batch_size=self.recipe.inner.batch_size,
            seed=self.recipe.run.seed,
            first=self.first_outer_step * self.inner_steps,
            last=self.recipe.outer.steps * self.inner_steps,
            share=self.groups.data_rank,
            shares=self.groups.group_size,
        )
        pin = self.groups.device.type == "cuda"
        return training_batches(self.data.train, order, self.recipe.data.workers, pin)

    def train(self, batches: Iterator[Batch], outer_step: int, phases: Phases, display: Display) -> None:
        """The inner loop of Algorithm 1: I inner steps of every hosted trajectory, on the same batches."""
        for trajectory in self.hosted:
            trajectory.begin_outer_step()
        for step in range(outer_step * self.inner_steps, (outer_step + 1) * self.inner_steps):
            with phases("load", within="train"):
                images, labels = next(batches)
            images, labels = self.augmentation.basic(images, labels, step)
            for trajectory in self.hosted:
                trajectory.inner_step(images, labels, step, self.policy)
            display.inner_step()

    def validate(self, outer_step: int, look: bool = True) -> dict[str, Tensor]:
        """End an outer step and score every trajectory on the held-out images.

        Args:
            outer_step: that ends, from 0.
            look: False leaves the held-out images out this time.

        Returns:
            float64 [N] of each kind, on every process: `accuracy` and `heldout_loss` (NaN where nothing
            was looked at), `train_loss`, and `finite`, 1 where loss and state are finite, else 0.

        Raises:
            RunFailedError: if no trajectory is finite.
        """
        ends = [trajectory.end_outer_step() for trajectory in self.hosted]
        scores = [(float("nan"), float("nan"))] * len(ends)
        heldout, groups = self.data.heldout, self.groups
        if look and heldout is not None:
            parts = partial_scores(
                [trajectory.network for trajectory in self.hosted],
                heldout,
                self.augmentation,
                self.recipe.data.eval_batch_size,
                groups.data_rank,
                groups.group_size,
                groups.sharded,
            )
            totals = total_scores(groups.sum_in_group(parts), len(heldout))
            scores = [(score.accuracy, score.loss) for score in totals]
        rows = [[*score, *end] for score, end in zip(scores, ends, strict=True)]
        columns = groups.gather(torch.tensor(rows, dtype=torch.float64)).unbind(1)
        outcome = dict(zip(("accuracy", "heldout_loss", "train_loss", "finite"), columns, strict=True))
        if not bool(outcome["finite"].any()):
            who = "every trajectory" if groups.trajectories > 1 else "the network"
            raise RunFailedError(
                f"in outer step {outer_step + 1} the loss or the weights of {who} became infinite or NaN; the "
                "last good state is the newest one in the run folder's checkpoints. A lower inner.optimizer.lr "
                "or a longer inner.schedule.warmup_epochs may help"
            )
        return outcome

    def save(self, outer_steps_done: int) -> None:
        """Write the checkpoint and the learned policy if they are due; every process calls it.

        Raises:
            RunFailedError: if the disk does not take them.
        """
        recipe, folder, outer = self.recipe, self.folder, self.outer_optimizer
        if outer_steps_done % recipe.run.checkpoint_every and outer_steps_done != recipe.outer.steps:
            return
        state = checkpoint.collect(self.hosted[0], self.groups)
        if folder is None:
            return
        try:
            checkpoint.save(folder / CHECKPOINTS, outer_steps_done, state, outer, recipe)
            if outer is not None:
                outer.policy.provenance["outer_steps_done"] = outer_steps_done
                outer.policy.save(folder / POLICY_FILE)
        except (OSError, SafetensorError) as error:
            raise RunFailedError(
                f"the checkpoint after outer step {outer_steps_done} cannot be written to {recipe.run.dir}: "
                f"{error}; the one before it is kept, and run.resume=auto goes on from it"
            ) from error

    def finish(self, display: Display) -> None:
        """Save the network; then open the test split, for the first time, and report.

        Raises:
            UserError: if the test split cannot be used; everything else is on disk by then.
        """
        groups, folder, recipe, data = self.groups, self.folder, self.recipe, self.data
        _, tensors = checkpoint.collect(self.hosted[0], groups)
        if folder is not None:
            network = create_network(recipe.model, data.schema, recipe.run.seed)
            network.load_state_dict(checkpoint.under("network.", tensors))
            save_network(network, folder.path, recipe.model, data.schema, data.mean, data.std)
        images = groups.trajectories * recipe.outer.steps * self.inner_steps * recipe.inner.batch_size
        result: dict[str, Any] = {"outer_steps": recipe.outer.steps, "images_trained_on": images}
        try:
            test = agree(data.open_test, one_first=True)
        except UserError as error:
            raise UserError(
                f"the run is finished and saved in {recipe.run.dir}, but the test split cannot be used: {error}. "
                "When that is mended, the same command with run.resume=auto tests the network"
            ) from error
        if test is not None:
            batch_size = recipe.data.eval_batch_size
            parts = partial_scores(
                [self.hosted[0].network],
                test,
                self.augmentation,
                batch_size,
                groups.rank,
                groups.processes,
                groups.sharded,
            )
            (score,) = total_scores(groups.sum_in_world(parts), len(test))
            result |= {
                "test_accuracy": score.accuracy,
                "test_top5_accuracy": score.top5_accuracy,
                "test_loss": score.loss,
                "test_images": score.images,
            }
        if folder is not None:
            rewards = read_metrics(folder / METRICS_FILE)[-1]["reward"]
            result["heldout_accuracy"] = max(rewards) if rewards[0] is not None else None
            amend_last_line(folder / METRICS_FILE, result)
            folder.write_json(RESULT_FILE, result)
            learned = None if self.outer_optimizer is None else self.outer_optimizer.policy
            display.summary(learned, result, folder.contents())
