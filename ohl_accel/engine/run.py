"""One run on one process: what the search and training with a fixed policy have in common.

Shapes: N trajectories, R hosted ones, K operations, I inner steps, n images of a split, M numbers kept per image.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ohl_accel.data import (
    Batch,
    Blocks,
    Data,
    Images,
    RandomResizedCrop,
    TrainingOrder,
    ahead_on_device,
    training_batches,
)
from ohl_accel.distributed.groups import Groups
from ohl_accel.engine import checkpoint
from ohl_accel.engine.augment import Augmentation
from ohl_accel.engine.objective import Objective
from ohl_accel.engine.pauses import Pause, Pauses
from ohl_accel.engine.phases import Phases
from ohl_accel.engine.replacements import Replacements
from ohl_accel.engine.saving import Saver
from ohl_accel.engine.scoring import outcomes_of
from ohl_accel.engine.stacked import Stack
from ohl_accel.engine.trajectory import Trajectory
from ohl_accel.errors import RunFailedError, UserError
from ohl_accel.interrupts import Interrupted
from ohl_accel.observers.observer import Observer, RunInfo
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators import Estimator, Evidence, FinishedStep
from ohl_accel.policy.protocol import AugmentationPolicy, NoPolicy
from ohl_accel.recipe import Recipe
from ohl_accel.rng import keyed_generator
from ohl_accel.run_folder.folder import RunFolder

CHECK_EVERY = 100
"""Inner steps between two counts of undecodable images: an outer step may be a long epoch."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of an outer step for all trajectories, on every process. float64 [N] unless noted otherwise."""

    reward_N: Tensor
    """The objective's score on the held-out images; NaN if it was not measured, or is not finite."""
    heldout_loss_N: Tensor
    train_loss_N: Tensor
    finite_N: Tensor
    """bool: whether loss and state are finite."""
    outcomes_RnM: Tensor | None
    """`Objective.outcomes` of the held-out images, for the hosted trajectories of this process's group."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """All parts of a run, on one process."""

    recipe: Recipe
    """Resolved: completed with what was found in the data and the launch."""
    groups: Groups
    """Of the trajectories that take part."""
    full_processes: int
    """The processes that host all trajectories; with `run.on_loss=shrink` there may be fewer."""
    folder: RunFolder | None
    """On the main process only."""
    saver: Saver | None
    """On the main process only."""
    data: Data
    objective: Objective
    augmentation: Augmentation
    hosted: list[Trajectory]
    stack: Stack | None
    """Trains them at once (`inner.stacked`); None: one after the other."""
    fixed_policy: AugmentationPolicy
    """The policy of all trajectories if nothing is learned; otherwise the one that the estimator started from."""
    estimator: Estimator | None
    """Learns the policy; None if it is fixed."""
    new_network: Callable[[], nn.Module]
    """A network of the run's architecture on the CPU, for loading weights into."""
    inner_steps: int
    """I."""
    first_outer_step: int
    """0, or the first one of a resumed run."""
    first_inner_step: int
    """0, or how many inner steps of it a run was resumed after."""
    rewards_before: list[float] | None
    """Rewards of the last outer step before `first_outer_step` (main process only)."""
    phases: Phases
    pauses: Pauses
    replacements: Replacements
    observers: Observer
    info: RunInfo | None
    """What is passed to observers; on the main process only."""

    def batches(self) -> Iterator[Batch]:
        """This process's part of every remaining mini-batch, on its device."""
        data, train, seed = self.recipe.data, self.data.train, self.recipe.run.seed
        batch_size, section = self.recipe.inner.batch_size, self.recipe.augment.random_resized_crop
        order = TrainingOrder(
            num_images=len(train),
            batch_size=batch_size,
            seed=seed,
            first=self.first_outer_step * self.inner_steps + self.first_inner_step,
            last=self.recipe.outer.steps * self.inner_steps,
            rank=self.groups.data_rank,
            num_replicas=self.groups.group_size,
            blocks=Blocks.of(train, batch_size, data.shuffle_window) if train.blocks is not None else None,
        )
        crop = RandomResizedCrop(section, train.decoding.size, seed) if section is not None else None
        device = self.groups.device
        batches = training_batches(
            train, order, data.workers, device.type == "cuda", crop, self.recipe.run.timeout
        )
        return ahead_on_device(batches, device)

    def policy_of(self, trajectory: int) -> AugmentationPolicy:
        """The policy of a trajectory in this outer step.

        Raises:
            UserError: if an estimator gives a policy over another space than the one it learns.
        """
        if self.estimator is None:
            return self.fixed_policy
        policy, learned = self.estimator.policy_of(trajectory), self.estimator.policy
        if isinstance(policy, NoPolicy):
            return policy
        if not isinstance(policy, Policy) or policy.space != learned.space:
            raise UserError(
                f"outer.estimator={self.recipe.outer.estimator}: policy_of({trajectory}) must be NoPolicy(), or a "
                f"Policy over the space {learned.space.name}, got {policy!r}"
            )
        return policy

    def train(self, batches: Iterator[Batch], outer_step: int) -> None:
        """The inner loop of Algorithm 1: I inner steps of every hosted trajectory, on the same batches.

        Raises:
            RunFailedError: as soon as more images were replaced than are allowed in the whole outer step.
            Interrupted: if a signal asked the run to stop, after saving.
        """
        planned = self.inner_steps * self.recipe.inner.batch_size
        policies = [self.policy_of(trajectory.number) for trajectory in self.hosted]
        for trajectory in self.hosted:
            trajectory.begin_outer_step()
        start, end = outer_step * self.inner_steps, (outer_step + 1) * self.inner_steps
        for step in range(start + self._resumed_at(outer_step), end):
            with self.phases("load", within="train"):
                images, labels = next(batches)
            with self.phases("augment", within="train"):
                batch = self.augmentation.batch(images, step)
            together: list[tuple[Tensor, Tensor]] = []
            for trajectory, policy in zip(self.hosted, policies, strict=True):
                with self.phases("augment", within="train"):
                    inputs, targets = trajectory.augment(batch, labels, step, policy)
                if self.stack is None:
                    trajectory.inner_step(inputs, targets, step)
                else:
                    together.append((inputs, targets))
            if self.stack is not None:
                self.stack.inner_step(together, step)
            if self.info is not None:
                self.observers.inner_step(self.info)
            if (step + 1) % CHECK_EVERY == 0:
                self.replacements.check(outer_step, self.data.train, planned)
            pause = self.pauses.after_inner_step() if step + 1 < end else None
            if pause is not None:
                self._save_within(outer_step, step + 1 - start, pause)

    def _resumed_at(self, outer_step: int) -> int:
        """The inner steps of an outer step that were done before the run was resumed."""
        return self.first_inner_step if outer_step == self.first_outer_step else 0

    def validate(self, outer_step: int, score: bool = True) -> Outcome:
        """End an outer step and score every trajectory on the held-out images.

        Args:
            outer_step: the one that ends, from 0.
            score: whether to score the trajectories on the held-out images this time.

        Raises:
            RunFailedError: if no trajectory is finite.
        """
        ends = [trajectory.end_outer_step() for trajectory in self.hosted]
        rewards, losses = [float("nan")] * len(ends), [float("nan")] * len(ends)
        heldout, groups, outcomes = self.data.heldout, self.groups, None
        if score and heldout is not None:
            networks = [trajectory.scored_network for trajectory in self.hosted]
            own = self.outcomes(networks, heldout, groups.data_rank, groups.group_size)
            self.replacements.count(outer_step, heldout)
            outcomes = groups.sum_in_group(own)
            scores = [self.objective.scores(outcomes_nM, heldout.labels) for outcomes_nM in outcomes]
            rewards, losses = (
                [self.objective.reward(each) for each in scores],
                [each["loss"] for each in scores],
            )
        rows = [[*row[:2], *row[2]] for row in zip(rewards, losses, ends, strict=True)]
        with self.phases("gather", within="validate"):
            reward, heldout_loss, train_loss, finite = groups.gather(
                torch.tensor(rows, dtype=torch.float64)
            ).unbind(1)
        if not bool(finite.any()):
            who = "every trajectory" if groups.trajectories > 1 else "the network"
            raise RunFailedError(
                f"in outer step {outer_step + 1} the loss or the weights of {who} became infinite or NaN; the "
                "last good state is the newest one in the run folder's checkpoints. A lower inner.optimizer.lr "
                "or a longer inner.schedule.warmup_epochs may help"
            )
        return Outcome(
            reward_N=reward,
            heldout_loss_N=heldout_loss,
            train_loss_N=train_loss,
            finite_N=finite.bool(),
            outcomes_RnM=outcomes,
        )

    def recorded(self, outer_step: int, outcome: Outcome) -> dict[str, Tensor]:
        """What the estimator requested, of all trajectories, on every process."""
        assert self.estimator is not None
        own: dict[str, Tensor] = {}
        recorded: dict[str, Tensor] = {}
        training = cache(self._training_outcomes)
        for name in sorted(self.estimator.records_of(outer_step)):
            match name:
                case "counts":
                    own[name] = torch.stack([trajectory.counts_K for trajectory in self.hosted])
                case "operations":
                    own[name] = torch.stack([torch.stack(each.operations) for each in self.hosted])
                case "heldout_loss":
                    recorded[name] = outcome.heldout_loss_N
                case "heldout_losses":
                    assert outcome.outcomes_RnM is not None
                    assert self.data.heldout is not None
                    own[name] = self._losses(outcome.outcomes_RnM, self.data.heldout)
                case "training_loss":
                    labels = self._training_sample.labels
                    means = [self.objective.scores(each, labels)["loss"] for each in training()]
                    own[name] = torch.tensor(means, dtype=torch.float64)
                case "training_losses":
                    own[name] = self._losses(training(), self._training_sample)
                case "heldout_outcomes":
                    assert outcome.outcomes_RnM is not None
                    own[name] = outcome.outcomes_RnM
        return recorded | {name: self.groups.gather(tensor) for name, tensor in own.items()}

    @cached_property
    def _training_sample(self) -> Images:
        """As many training images as there are held-out ones, or all if there are fewer."""
        train, number = self.data.train, len(self.data.heldout or ())
        generator = keyed_generator(self.recipe.run.seed, "training sample")
        return train.subset(torch.randperm(len(train), generator=generator)[:number].sort().values)

    def _training_outcomes(self) -> Tensor:
        """Of the hosted trajectories on the training sample, without augmentation. float64 [R, n, M]."""
        networks = [trajectory.scored_network for trajectory in self.hosted]
        own = self.outcomes(networks, self._training_sample, self.groups.data_rank, self.groups.group_size)
        return self.groups.sum_in_group(own)

    def _losses(self, outcomes_RnM: Tensor, images: Images) -> Tensor:
        """The loss on every image. float64 [R, n]."""
        return torch.stack([self.objective.losses(each, images.labels) for each in outcomes_RnM])

    def finished(self, outer_step: int, outcome: Outcome, reward_N: Tensor) -> FinishedStep:
        """What the estimator learns from."""
        return FinishedStep(
            outer_step=outer_step,
            reward_N=reward_N,
            finite_N=outcome.finite_N,
            recorded=self.recorded(outer_step, outcome),
        )

    def parents(self, finished: FinishedStep) -> list[int]:
        """Whose state each trajectory continues with; after the last outer step the winner's.

        Raises:
            UserError: if an estimator gives parents that cannot be.
        """
        assert self.estimator is not None
        winner = [finished.winner] * self.groups.trajectories
        if finished.outer_step == self.recipe.outer.steps - 1:
            return winner
        parents = [int(parent) for parent in self.estimator.parents(finished)]
        numbers = range(self.groups.trajectories)
        fits = len(parents) == len(numbers) and all(parent in numbers for parent in parents)
        if not fits or not all(parents[each] == each and finished.finite_N[each] for each in parents):
            raise UserError(
                f"outer.estimator={self.recipe.outer.estimator}: parents() gave {parents} after outer step "
                f"{finished.outer_step + 1}; it must give {len(numbers)} trajectories, each finite and its own parent"
            )
        return parents

    def evidence(self) -> dict[str, Any]:
        """What the estimator knows about its policy, for the line of an outer step; kept in the policy's provenance.

        Raises:
            UserError: if it is anything but `Evidence`.
        """
        assert self.estimator is not None
        evidence = self.estimator.evidence()
        if evidence is None:
            return {}
        if not isinstance(evidence, Evidence):
            raise UserError(
                f"outer.estimator={self.recipe.outer.estimator}: evidence() must return an Evidence or None, got "
                f"{evidence!r}"
            )
        self.estimator.policy.provenance["evidence"] = evidence.document()
        return {"evidence": evidence.line()}

    def record(
        self,
        outer_step: int,
        outcome: Outcome,
        replaced: int,
        searched: Mapping[str, Any] | None = None,
        learned: Mapping[str, Any] | None = None,
    ) -> None:
        """Pass the line of `metrics.jsonl` of an outer step to the observers.

        Args:
            outer_step: the one that has ended, from 0.
            outcome: of this outer step.
            replaced: training images that could not be decoded.
            searched: values of the search; they replace those known without it.
            learned: what the estimator's step returned.

        Raises:
            UserError: if the estimator uses a name that the run uses.
        """
        steps = self.inner_steps - self._resumed_at(outer_step)
        images = self.groups.trajectories * steps * self.recipe.inner.batch_size
        line = {
            "outer_step": outer_step,
            "reward": outcome.reward_N.tolist(),
            "train_loss": outcome.train_loss_N.tolist(),
            "heldout_loss": outcome.heldout_loss_N.tolist(),
            "replaced_images": replaced,
            "learning_rate": self.hosted[0].learning_rate,
            **(searched or {}),
            **self.phases.take(images),
        }
        taken = sorted(line.keys() & (learned or {}).keys())
        if taken:
            raise UserError(
                f"outer.estimator={self.recipe.outer.estimator}: its step returned {', '.join(taken)}, which the run "
                "records itself: choose other names"
            )
        if self.info is None:
            return
        line |= learned or {}
        with self.phases("track"):
            self.observers.outer_step(self.info, line)

    def save(self, outer_steps_done: int, apart: bool = False) -> None:
        """After an outer step: write a checkpoint and the learned policy if they are due; every process must call it.

        Args:
            outer_steps_done: since the beginning of the run.
            apart: whether trajectories have states of their own, so that all are written.

        Raises:
            Interrupted: if a signal asked the run to stop, after saving.
        """
        section, last = self.recipe.run, self.recipe.outer.steps
        pause = self.pauses.ask()
        stop = pause is not None and pause.signal
        if stop or outer_steps_done % section.checkpoint_every == 0 or outer_steps_done == last:
            self._save((outer_steps_done, 0), apart)
        if stop:
            raise self._interrupted(stop, (outer_steps_done, 0))

    def _save_within(self, outer_step: int, inner_steps: int, pause: Pause) -> None:
        """Write a checkpoint inside an outer step, and stop if that is asked for.

        Raises:
            Interrupted: if a signal asked the run to stop, after saving.
        """
        position = (outer_step, inner_steps)
        with self.phases("save", within="train"):
            self._save(position, apart=self.groups.trajectories > 1)
        if pause.signal:
            raise self._interrupted(pause.signal, position)

    def _save(self, position: checkpoint.Position, apart: bool) -> None:
        within = position[1] > 0
        states = checkpoint.collect(self.hosted, self.groups, apart, within)
        decoded = (
            self.replacements.state(self.data.train) if within else {"decoded": self.replacements.totals}
        )
        if self.saver is not None:
            optimizer = self.hosted[0].optimizer
            self.saver.checkpoint(position, states, apart, optimizer, self.estimator, decoded)
        for _ in states:  # the other processes take part in collecting
            pass
        self.pauses.saved()

    def _interrupted(self, number: int, position: checkpoint.Position) -> Interrupted:
        self.groups.sum_in_world(torch.zeros(1))  # none leaves while the main process receives its state
        if self.saver is None or self.saver.is_failing:
            return Interrupted(number)
        return Interrupted(number, f"{checkpoint.in_words(position)} of {self.recipe.outer.steps} saved")

    def outcomes(
        self, networks: list[nn.Module], images: Images, rank: int, num_replicas: int, phase: str = "scoring"
    ) -> Tensor:
        """`Objective.outcomes` of networks, [R, n, M]: zero for the images that other processes score."""

        def advanced(done: int, total: int) -> None:
            if self.info is not None:
                self.observers.phase(self.info, phase, done, total)

        return outcomes_of(
            networks,
            images,
            objective=self.objective,
            augmentation=self.augmentation,
            batch_size=self.recipe.data.eval_batch_size,
            workers=self.recipe.data.workers,
            timeout=self.recipe.run.timeout,
            rank=rank,
            num_replicas=num_replicas,
            in_step=self.groups.sharded,
            advanced=advanced,
        )
