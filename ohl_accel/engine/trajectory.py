"""One trajectory: a network trained with operations sampled from the policy (the inner loop, Eq 2)."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ohl_accel.distributed.groups import Groups
from ohl_accel.distributed.sharding import own_part
from ohl_accel.engine.augment import Augmentation
from ohl_accel.engine.objective import Objective
from ohl_accel.errors import UserError, did_you_mean
from ohl_accel.operations.kernels.around import RawBatch
from ohl_accel.policy.protocol import AugmentationPolicy
from ohl_accel.recipe import InnerSection, OptimizerSection, Recipe, ScheduleSection
from ohl_accel.rng import keyed_seed, seed_device


class Trajectory:
    """A network, its optimizer and schedule, and the operations and losses since the last outer step.

    Every process of a group must construct its trajectories in the same order.

    Args:
        number: n in 0..N-1.
        network: on its device, with Accelerate's precision, not yet wrapped for its group.
        recipe: of the run.
        groups: of the run.
        objective: what the network learns.
        augmentation: of this process.
        accelerator: for the backward pass.
        steps_per_epoch, total_steps: inner steps.
        num_operations: K of the policy's space; 0 if there is none.
        keep_operations: whether `operations` is needed.
        average: another network on the device, for the average of its weights; None if they are not averaged.
    """

    def __init__(
        self,
        *,
        number: int,
        network: nn.Module,
        recipe: Recipe,
        groups: Groups,
        objective: Objective,
        augmentation: Augmentation,
        accelerator: Accelerator,
        steps_per_epoch: int,
        total_steps: int,
        num_operations: int,
        keep_operations: bool = False,
        average: nn.Module | None = None,
    ) -> None:
        self.number = number
        self.network = network
        self._training_network = groups.wrap(network)
        self.average = average
        """Exponential average of weights and buffers (`outer.average`), or None."""
        self._average_decay = recipe.outer.average
        if average is not None and groups.sharded:
            groups.wrap(average)
        self.optimizer = create_optimizer(recipe.inner.optimizer, network)
        self.schedule = create_schedule(recipe.inner.schedule, self.optimizer, steps_per_epoch, total_steps)
        self._groups, self._objective, self._seed = groups, objective, recipe.run.seed
        self._clip_grad, self._auxiliary_weight = recipe.inner.clip_grad, recipe.inner.auxiliary_weight
        self._micro_batches = recipe.inner.micro_batches
        progress = getattr(network, "training_progress", None)
        self._progress = progress if isinstance(progress, Tensor) else None
        self._total_steps = total_steps
        self._augmentation, self._accelerator = augmentation, accelerator
        self._memory_format = torch.channels_last if recipe.model.channels_last else torch.contiguous_format
        self._keep_operations = keep_operations
        self.counts_K = torch.zeros(num_operations, dtype=torch.int64)
        """How often each operation was sampled for the group's batches in this outer step."""
        self.operations: list[Tensor] = []
        """int64 [B] for each inner step of this outer step, if they are kept."""
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=augmentation.device)
        self._steps = 0
        self._resumed = False

    def begin_outer_step(self) -> None:
        """Reset the counts of the last outer step, unless a resumed one goes on (`set_progress`)."""
        self.network.train()
        if self._resumed:
            self._resumed = False
            return
        self.counts_K.zero_()
        self.operations.clear()
        self._loss_sum.zero_()
        self._steps = 0

    def augment(
        self, batch: RawBatch, labels_b: Tensor, step: int, policy: AugmentationPolicy
    ) -> tuple[Tensor, Tensor]:
        """Apply and count this trajectory's operations on this process's part of a mini-batch.

        Args:
            batch: on the device, before the basic transforms.
            labels_b: on the device.
            step: inner steps done so far in the whole run.
            policy: what transforms the images.

        Returns:
            The network's inputs, float32 [b, C, H, W], and targets.
        """
        inputs, targets, operation_B = self._augmentation.inputs(policy, batch, labels_b, step, self.number)
        if operation_B is not None:
            self.counts_K += torch.bincount(operation_B, minlength=len(self.counts_K))
            if self._keep_operations:
                self.operations.append(operation_B)
        return inputs, targets

    def inner_step(self, inputs: Tensor, targets: Tensor, step: int) -> None:
        """One SGD step (Eq 2) on the results of `augment`; `step` counts those done so far in the whole run."""
        inputs = inputs.contiguous(memory_format=self._memory_format)
        self.begin_inner_step(step)
        self.end_inner_step(self._accumulate_gradients(inputs, targets))

    def begin_inner_step(self, step: int) -> None:
        """What comes before the gradients of an inner step: random numbers, learning rate, progress."""
        # dropout etc. must not depend on what a process did before
        network_seed = keyed_seed(self._seed, "network", step, self._groups.data_rank)
        seed_device(self._augmentation.device, network_seed)
        self.schedule.step_update(step)
        if self._progress is not None:
            self._progress.fill_(step / self._total_steps)

    def end_inner_step(self, loss: Tensor) -> None:
        """What comes after them: clipping, the optimizer's step, the average. `loss`: of the batch, float64 []."""
        self._loss_sum += loss
        if self._clip_grad is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._steps += 1
        if self.average is not None:
            self.update_average(1 - self._average_decay)

    def _accumulate_gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Gradients of the mean loss, micro-batch by micro-batch; processes exchange them once. Returns the loss."""
        network, parts = self._training_network, self._micro_batches
        total = torch.zeros((), dtype=torch.float64, device=inputs.device)
        for number, (some, of) in enumerate(zip(inputs.chunk(parts), targets.chunk(parts), strict=True), 1):
            apart = number < parts and isinstance(network, DistributedDataParallel)
            with cast(DistributedDataParallel, network).no_sync() if apart else nullcontext():
                loss = self.loss(network(some), of) / parts
                self._accelerator.backward(loss)
            total += loss.detach()
        return total

    def loss(self, outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """The objective's loss of a network's outputs; with auxiliary heads, plus theirs, weighted. float []"""
        if isinstance(outputs, Tensor):
            return self._objective.loss(outputs, targets)
        main, *auxiliary = (self._objective.loss(logits, targets) for logits in outputs)
        return main + self._auxiliary_weight * sum(auxiliary, torch.zeros_like(main))

    @torch.no_grad()
    def update_average(self, share: float) -> None:
        """Move the average towards the weights and buffers by a share of the difference; 1 sets it to them."""
        assert self.average is not None
        averages = [own_part(tensor) for tensor in self.average.state_dict().values()]
        tensors = [own_part(tensor) for tensor in self.network.state_dict().values()]
        pairs = [
            (a, t) for a, t in zip(averages, tensors, strict=True) if a.is_floating_point() and share < 1
        ]
        if pairs:
            torch._foreach_lerp_([a for a, _ in pairs], [t for _, t in pairs], share)
        for average, tensor in zip(averages, tensors, strict=True):
            if share == 1 or not average.is_floating_point():
                average.copy_(tensor)

    @torch.no_grad()
    def take_average(self) -> None:
        """Set weights and buffers to their average (`outer.keep_average`)."""
        assert self.average is not None
        averages = self.average.state_dict().values()
        for tensor, average in zip(self.network.state_dict().values(), averages, strict=True):
            own_part(tensor).copy_(own_part(average))

    def end_outer_step(self) -> tuple[float, bool]:
        """(mean training loss of the outer step, whether the loss and the whole state are finite).

        BatchNorm's statistics are set to those of the group's leader.
        """
        for network in filter(None, (self.network, self.average)):
            self._groups.broadcast_buffers(list(network.buffers()))
        finite = [self._loss_sum.isfinite()]
        finite += [tensor.isfinite().all() for tensor in self.state_tensors() if tensor.is_floating_point()]
        failed = 1.0 - torch.stack(finite).all().double()
        loss, failures = self._groups.sum_in_group(torch.stack([self._loss_sum, failed])).tolist()
        return loss / (self._steps * self._groups.group_size), failures == 0

    def progress(self) -> dict[str, Tensor]:
        """What this outer step counted so far, over the whole group; every process of the group must call it."""
        progress = {"counts": self.counts_K, "loss_sum": self._groups.sum_in_group(self._loss_sum)}
        if self._keep_operations:
            progress["operations"] = torch.stack(self.operations)
        return progress

    def set_progress(self, progress: Mapping[str, Tensor], steps: int) -> None:
        """Go on in the middle of an outer step, after so many inner steps of it."""
        self.counts_K.copy_(progress["counts"])
        self._loss_sum.copy_(progress["loss_sum"] if self._groups.data_rank == 0 else torch.zeros(()))
        if self._keep_operations:
            self.operations[:] = progress["operations"].cpu().unbind()
        self._steps, self._resumed = steps, True

    @property
    def scored_network(self) -> nn.Module:
        """What is scored on the held-out images: the average of the weights if there is one."""
        return self.network if self.average is None else self.average

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last inner step, of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    @torch.no_grad()
    def state_tensors(self, optimizer: bool = True) -> list[Tensor]:
        """Weights, buffers and optimizer state on the device, in the same order for all trajectories.

        For a sharded network, the shards of this process. Step counters that an optimizer keeps on the CPU are
        omitted: they are equal everywhere.

        Args:
            optimizer: whether the optimizer's state is among them.
        """
        tensors = list(self.network.state_dict().values())
        if self.average is not None:
            tensors += self.average.state_dict().values()
        for parameter in self.network.parameters() if optimizer else ():
            state = self.optimizer.state.get(parameter, {})
            tensors += [state[key] for key in sorted(state) if isinstance(state[key], Tensor)]
        return [own_part(tensor) for tensor in tensors if tensor.device == tensors[0].device]


def check_batch_size(section: InnerSection, group_size: int) -> None:
    """Refuse a batch that cannot be shared equally.

    Args:
        section: the recipe's inner section.
        group_size: G, the processes that share it.

    Raises:
        UserError: with the batch sizes next to it that can.
    """
    size, parts = section.batch_size, group_size * section.micro_batches
    if size % parts:
        below = size - size % parts
        shares = [f"the {group_size} processes of a group"] if group_size > 1 else []
        shares += [f"{section.micro_batches} micro-batches"] if section.micro_batches > 1 else []
        raise UserError(
            f"inner.batch_size={size} cannot be divided equally among {' and '.join(shares)}: "
            f"use {below or parts} or {below + parts}"
        )


def create_optimizer(section: OptimizerSection, network: nn.Module) -> torch.optim.Optimizer:
    """The inner optimizer, by timm's name.

    Raises:
        UserError: for an unknown name, or invalid arguments.
    """
    known = [str(name) for name in list_optimizers()]
    if section.name not in known:
        hint = did_you_mean(section.name, known, otherwise=f"known: {', '.join(known)}")
        raise UserError(f"inner.optimizer.name={section.name}: timm has no such optimizer; {hint}")
    nesterov = {"nesterov": section.nesterov} if section.name == "sgd" else {}

    def create(layers: nn.Module, args: Mapping[str, Any]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = create_optimizer_v2(
            layers,
            opt=section.name,
            lr=section.lr,
            weight_decay=section.weight_decay,
            momentum=section.momentum,
            filter_bias_and_bn=not section.decay_norm_and_bias,
            **{**nesterov, **args},
        )
        return made

    try:
        optimizer = create(network, section.args)
        _try_out(lambda layer: create(layer, args_for_any(section)), next(network.parameters()).device)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(
            f"inner.optimizer.name={section.name}, inner.optimizer.args={section.args}: {error}"
        ) from error
    return optimizer


def args_for_any(section: OptimizerSection) -> dict[str, Any]:
    """The optimizer's additional arguments that fit any network: a rate by layer needs one of timm's."""
    return {name: value for name, value in section.args.items() if name != "layer_decay"}


def _try_out(create: Callable[[nn.Module], torch.optim.Optimizer], device: torch.device) -> None:
    """One step on a small layer, to see whether the optimizer's state can be adopted and saved.

    Raises:
        ValueError: if it contains anything but tensors and numbers.
    """
    layer = nn.Linear(2, 2, device="cpu" if device.type == "meta" else device)
    optimizer = create(layer)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for entries in optimizer.state_dict()["state"].values():
        for key, value in entries.items():
            if not isinstance(value, Tensor | int | float | None):
                raise ValueError(
                    f"its state has a {type(value).__name__} ({key}), which other trajectories cannot adopt"
                )


def create_schedule(
    section: ScheduleSection, optimizer: torch.optim.Optimizer, steps_per_epoch: int, total_steps: int
) -> Scheduler:
    """The learning rate as a function of the inner step, so that a run can be resumed anywhere.

    Raises:
        UserError: if the warm-up is as long as the run, or longer.
    """
    warmup_steps = round(section.warmup_epochs * steps_per_epoch)
    if warmup_steps >= total_steps:
        raise UserError(
            f"inner.schedule.warmup_epochs={section.warmup_epochs:g} takes {warmup_steps} inner steps, but "
            f"the run has {total_steps}"
        )
    common: Mapping[str, Any] = {
        "warmup_t": warmup_steps,
        "warmup_lr_init": section.warmup_lr,
        "warmup_prefix": True,
        "t_in_epochs": False,
    }
    schedule: Scheduler
    if section.name == "cosine":
        # timm warns about a single step, for each trajectory; its rate is that of the first of two
        cosine_steps = max(2, total_steps - warmup_steps)
        schedule = CosineLRScheduler(optimizer, t_initial=cosine_steps, lr_min=section.min_lr, **common)
        return schedule
    # a constant rate is a multistep schedule without milestones; timm applies milestone m at step m - 1
    milestones = [round(epoch * steps_per_epoch) + 1 for epoch in section.milestones]
    schedule = MultiStepLRScheduler(optimizer, decay_t=milestones, decay_rate=section.decay_rate, **common)
    return schedule
