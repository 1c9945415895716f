"""One run on one process: what the search and training with a fixed policy have in common."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ohl_accel.data import (
    Batch,
    Blocks,
    Data,
    Images,
    RandomResizedCrop,
    Tally,
    TrainingOrder,
    ahead_on_device,
    training_batches,
)
from ohl_accel.distributed.groups import Groups
from ohl_accel.distributed.launch import run_on_all_ranks
from ohl_accel.engine import checkpoint
from ohl_accel.engine.augment import Augmentation
from ohl_accel.engine.network import create_network, save_network
from ohl_accel.engine.phases import Phases
from ohl_accel.engine.scoring import partial_scores, total_scores
from ohl_accel.engine.trajectory import Trajectory
from ohl_accel.errors import RunFailedError, UserError
from ohl_accel.observers.dashboards import Dashboards, Table
from ohl_accel.observers.display import Display
from ohl_accel.operations.elements import ELEMENTS, NUM_OPERATIONS, elements_of
from ohl_accel.policy import Policy
from ohl_accel.policy.baselines import TorchvisionPolicy
from ohl_accel.policy.estimators import OuterOptimizer
from ohl_accel.recipe import Recipe
from ohl_accel.report import figures
from ohl_accel.report.write import write_at_end
from ohl_accel.run_folder.files import (
    CHECKPOINTS,
    METRICS_FILE,
    POLICY_FILE,
    RECIPE_FILE,
    REPLACED_FILE,
    RESULT_FILE,
)
from ohl_accel.run_folder.folder import RunFolder
from ohl_accel.run_folder.metrics import amend_last_line, append_line, read_metrics

SAMPLES = 32
"""Training images on a dashboard's picture."""
LOOK_EVERY = 100
"""Inner steps after which the undecodable images so far are counted: an outer step may be a long epoch."""


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
    phases: Phases
    """Where the time of an outer step goes."""
    dashboards: Dashboards | None = None
    """On the main process only."""

    def batches(self) -> Iterator[Batch]:
        """This process's part of every mini-batch that is still to come, on its device."""
        data, train, seed = self.recipe.data, self.data.train, self.recipe.run.seed
        batch_size, section = self.recipe.inner.batch_size, self.recipe.augment.random_resized_crop
        order = TrainingOrder(
            num_images=len(train),
            batch_size=batch_size,
            seed=seed,
            first=self.first_outer_step * self.inner_steps,
            last=self.recipe.outer.steps * self.inner_steps,
            share=self.groups.data_rank,
            shares=self.groups.group_size,
            blocks=Blocks.of(train, batch_size, data.shuffle_window) if train.blocks is not None else None,
        )
        crop = RandomResizedCrop(section, train.decoding.size, seed) if section is not None else None
        device = self.groups.device
        batches = training_batches(train, order, data.workers, device.type == "cuda", crop)
        return ahead_on_device(batches, device)

    def train(self, batches: Iterator[Batch], outer_step: int, display: Display) -> None:
        """The inner loop of Algorithm 1: I inner steps of every hosted trajectory, on the same batches.

        Raises:
            RunFailedError: as soon as more images were replaced than the whole outer step may have.
        """
        planned = self.inner_steps * self.recipe.inner.batch_size
        for trajectory in self.hosted:
            trajectory.begin_outer_step()
        for step in range(outer_step * self.inner_steps, (outer_step + 1) * self.inner_steps):
            with self.phases("load", within="train"):
                images, labels = next(batches)
            with self.phases("augment", within="train"):
                images, labels = self.augmentation.basic(images, labels, step)
            for trajectory in self.hosted:
                with self.phases("augment", within="train"):
                    inputs, targets = trajectory.augment(images, labels, step, self.policy)
                trajectory.inner_step(inputs, targets, step)
            display.inner_step()
            if (step + 1) % LOOK_EVERY == 0:
                self._end_if_corrupt(outer_step, self.data.train, planned)

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
                self.recipe.data.workers,
                groups.sharded,
            )
            self.count_replaced(outer_step, heldout)
            totals = total_scores(groups.sum_in_group(parts), len(heldout))
            scores = [(score.accuracy, score.loss) for score in totals]
        rows = [[*score, *end] for score, end in zip(scores, ends, strict=True)]
        with self.phases("gather", within="validate"):
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

    def record(self, line: dict[str, Any], display: Display) -> None:
        """The line of metrics of an outer step, written, shown and tracked (main process only).

        Args:
            line: of `metrics.jsonl`, without the times.
            display: what the user sees.
        """
        folder, dashboards = self.folder, self.dashboards
        assert folder is not None
        assert dashboards is not None
        images = self.groups.trajectories * self.inner_steps * self.recipe.inner.batch_size
        line = {**line, **self.phases.take(images)}
        append_line(folder / METRICS_FILE, line)
        display.outer_step(line)
        with self.phases("track"):
            dashboards.outer_step(line, lambda: pictures_of(self, line["outer_step"]))

    def count_replaced(self, outer_step: int, images: Images | None, everywhere: bool = False) -> int:
        """How many different images of a split could not be decoded since the last call.

        Images in memory count each time; those that were not met before are logged in the run folder.

        Args:
            outer_step: that ends, from 0.
            images: of the split; None counts as empty.
            everywhere: whether all processes have shared the split; otherwise each group has gone through it.

        Raises:
            RunFailedError: if they are more than `data.max_corrupt` of those decoded.
        """
        if images is None:
            return 0
        different = self._end_if_corrupt(outer_step, images, everywhere=everywhere)
        if not images.kept:
            images.tally = Tally()
        return different

    def _end_if_corrupt(
        self, outer_step: int, images: Images, planned: int | None = None, everywhere: bool = False
    ) -> int:
        """As `count_replaced`, but the count goes on; of a stretch that is under way, with its `planned` images."""
        groups, allowed, tally = self.groups, self.recipe.data.corrupt_fraction, images.tally
        add = groups.sum_in_world if everywhere else groups.sum_in_group
        decoded, bad = add(torch.tensor([tally.decoded, len(tally.replaced)], dtype=torch.float64)).tolist()
        whole = decoded if planned is None or images.kept else planned
        too_many = bad > allowed * whole
        if planned is not None and not too_many:
            return 0
        replaced = groups.gather_objects(tally.replaced, everywhere)
        different = list(dict.fromkeys(replaced))
        if self.folder is not None and different:
            logged = {line["image"] for line in read_metrics(self.folder / REPLACED_FILE)}
            for one in different:
                if one.image not in logged:
                    append_line(self.folder / REPLACED_FILE, {"outer_step": outer_step, **asdict(one)})
        if too_many:
            of = f"{decoded:.0f}" if whole == decoded else f"the first {decoded:.0f} of {whole}"
            raise RunFailedError(
                f"{bad:.0f} of {of} images of {images.description} could not be decoded, more than "
                f"data.max_corrupt={allowed:g} allows; {REPLACED_FILE} in {self.recipe.run.dir} names them, the "
                f"first is {replaced[0].image}: {replaced[0].why}"
            )
        return len(different)

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
        tensors = checkpoint.collect_network(self.hosted[0], groups)
        if folder is not None:
            network = create_network(recipe.model, data.schema, recipe.run.seed)
            network.load_state_dict(tensors)
            save_network(
                network, folder.path, recipe.model, data.schema, data.mean, data.std, recipe.data.crop_pct
            )
        images = groups.trajectories * recipe.outer.steps * self.inner_steps * recipe.inner.batch_size
        result: dict[str, Any] = {"outer_steps": recipe.outer.steps, "images_trained_on": images}
        try:
            test = run_on_all_ranks(data.open_test, one_first=True, long=True)
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
                recipe.data.workers,
                groups.sharded,
            )
            self.count_replaced(recipe.outer.steps, test, everywhere=True)
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
            write_at_end(folder.path, display.say)
            learned = None if self.outer_optimizer is None else self.outer_optimizer.policy
            if self.dashboards is not None:
                self.dashboards.finish(result, tables_of(learned) if learned else {}, folder.results())
            display.summary(learned, result, folder.contents(), self._next_commands())

    def _next_commands(self) -> dict[str, str]:
        """Command -> what it does, for the user who asks what now."""
        place, commands = self.recipe.run.dir, {}
        if self.outer_optimizer is not None:
            again = ["python", "-m", "ohl_accel.train", f"{place}/{RECIPE_FILE}", f"augment.policy={place}"]
            unpublished = ["hub={}"] if self.recipe.hub.repo else []
            command = shlex.join([*again, f"run.dir={place}-learned", *unpublished])
            commands[command] = "to train a network with this policy"
        if self.recipe.hub.repo is None:
            push = shlex.join(["python", "-m", "ohl_accel.hub", "push", place])
            commands[f"{push} USER/NAME"] = "to publish it on the Hub"
        return commands


def pictures_of(run: Run, outer_step: int) -> dict[str, np.ndarray]:
    """The policy, and training images as the network sees them but for Cutout: uint8 [height, width, 3].

    Args:
        run: on the main process.
        outer_step: that has just ended.
    """
    step = (outer_step + 1) * run.inner_steps - 1
    own = range(run.recipe.inner.batch_size)[run.augmentation.own]
    images, labels = run.data.train.__getitems__(own)
    images, _ = run.augmentation.basic(images, labels, step)
    images, _ = run.augmentation.apply(run.policy, images, step, trajectory=0)
    pictures = {"images/augmented": figures.image_grid(images[:SAMPLES], columns=8)}
    if run.outer_optimizer is not None:
        policy = run.outer_optimizer.policy
        pictures["policy/heatmap"] = figures.pixels_of(figures.policy_heatmap(policy))
        pictures["policy/marginals"] = figures.pixels_of(figures.policy_marginals(policy))
    return pictures


def tables_of(policy: Policy) -> dict[str, Table]:
    """A policy as numbers: each element's probability at both places, and each operation's."""
    names = [element.name for element in ELEMENTS]
    elements = list(zip(names, *policy.element_probabilities.tolist(), strict=True))
    pairs = map(elements_of, range(NUM_OPERATIONS))
    operations = [
        (names[first], names[second], probability)
        for (first, second), probability in zip(pairs, policy.probabilities.tolist(), strict=True)
    ]
    return {
        "policy/elements": Table(("element", "first", "second"), elements),
        "policy/operations": Table(("first", "second", "probability"), operations),
    }
