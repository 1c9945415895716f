"""Trajectories trained at once (`inner.stacked`): one forward and one backward pass for all that a process hosts.

A small network on small images leaves a GPU idle: launching its kernels takes longer than computing them. The weights
of the hosted trajectories lie one behind the other in memory, and `torch.vmap` maps the network over them, so that each
convolution becomes one grouped convolution, and so on: one launch instead of R. The method is PyTorch's "model
ensembling" (`torch.func.stack_module_state`, `functional_call`), except that a trajectory's own tensors stay: they
become views of the stacked ones, so that optimizers, averages, the winner's adoption, scoring and checkpoints see what
they saw before. A gradient is the sum's, in which no trajectory knows of another.

What differs from one trajectory after the other is the order of sums inside a kernel, so results agree to rounding.
Layers draw random numbers (dropout, stochastic depth) once for all trajectories, as each of them does on its own from
the seed of the inner step; on CUDA, dropout draws others from that seed.

Shapes: R hosted trajectories, B images of a batch, b of a micro-batch, C channels, H rows, W columns.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.func import functional_call

from ohl_accel.distributed.groups import Groups
from ohl_accel.engine.trajectory import Trajectory
from ohl_accel.errors import UserError, first_line, ran_out_of_memory
from ohl_accel.recipe import Recipe

_OFF = "inner.stacked=false trains one trajectory after the other"


class Stack:
    """The trajectories of a process, trained at once.

    Args:
        trajectories: those that the process hosts, of one architecture, neither wrapped nor sharded for a group; their
            weights and buffers move to new memory, which they share from then on.
        recipe: of the run.
        accelerator: for the backward pass.
    """

    def __init__(self, trajectories: Sequence[Trajectory], recipe: Recipe, accelerator: Accelerator) -> None:
        self._trajectories, self._accelerator, self._recipe = trajectories, accelerator, recipe
        self._parts = recipe.inner.micro_batches
        self._memory_format = torch.channels_last if recipe.model.channels_last else torch.contiguous_format
        networks = [trajectory.network for trajectory in trajectories]
        self._parameters = _stacked([dict(network.named_parameters()) for network in networks])
        self._buffers = _stacked([dict(network.named_buffers()) for network in networks])
        self._own = [list(network.parameters()) for network in networks]
        # trajectories beside channels: all inputs of a grouped convolution, without a copy
        self._losses: Callable[..., Tensor] = torch.vmap(self._loss, in_dims=(0, 0, 1, 0), randomness="same")

    def inner_step(self, batches: Sequence[tuple[Tensor, Tensor]], step: int) -> None:
        """One SGD step (Eq 2) of every trajectory.

        Args:
            batches: for each trajectory what `Trajectory.augment` returned: float32 [B, C, H, W] and targets.
            step: inner steps done so far in the whole run.
        """
        for trajectory in self._trajectories:
            trajectory.begin_inner_step(step)
        loss_R = torch.zeros(len(batches), dtype=torch.float64, device=batches[0][0].device)
        for inputs, targets in self._micro_batches(batches):
            part_R = self._mapped(self._buffers, inputs, targets) / self._parts
            self._accelerator.backward(part_R.sum())
            loss_R += part_R.detach()
        gradients = [
            [None] * len(batches) if stacked.grad is None else stacked.grad.unbind()
            for stacked in self._parameters.values()
        ]
        for trajectory, own, each, loss in zip(
            self._trajectories, self._own, zip(*gradients, strict=True), loss_R, strict=True
        ):
            for parameter, gradient in zip(own, each, strict=True):
                parameter.grad = gradient
            trajectory.end_inner_step(loss)
        for stacked in self._parameters.values():
            stacked.grad = None

    def try_out(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """A forward and a backward pass that change nothing, before the run begins.

        Args:
            batches: as in `inner_step`.

        Raises:
            UserError: if `torch.vmap` cannot map the network or the objective, or there is not enough memory.
        """
        inputs, targets = next(self._micro_batches(batches))
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        trained = [stacked for stacked in self._parameters.values() if stacked.requires_grad]
        try:
            loss = self._mapped(buffers, inputs, targets).sum()
            torch.autograd.grad(loss, trained, allow_unused=True)
        except Exception as error:
            if ran_out_of_memory(error):
                raise UserError(
                    f"inner.stacked=true: there is not enough memory to train {len(batches)} trajectories at once "
                    f"({first_line(error)}): use more processes or inner.micro_batches; {_OFF}"
                ) from error
            model, objective = self._recipe.model.name, self._recipe.objective
            raise UserError(
                f"inner.stacked=true: model.name={model} with objective={objective} cannot be trained so, because "
                f"torch.vmap cannot map it ({first_line(error)}); {_OFF}"
            ) from error

    def separate(self) -> None:
        """Give each trajectory memory of its own again: its network can be saved without the others."""
        for trajectory in self._trajectories:
            for tensor in (*trajectory.network.parameters(), *trajectory.network.buffers()):
                tensor.data = tensor.data.clone()

    def _micro_batches(self, batches: Sequence[tuple[Tensor, Tensor]]) -> "zip[tuple[Tensor, Tensor]]":
        """Inputs [b, R, C, H, W] and targets [R, b] or [R, b, classes] of each micro-batch."""
        inputs = torch.cat([inputs for inputs, _ in batches], 1)
        inputs = inputs.contiguous(memory_format=self._memory_format).unflatten(1, (len(batches), -1))
        targets = torch.stack([targets for _, targets in batches])
        return zip(inputs.chunk(self._parts), targets.chunk(self._parts, 1), strict=True)

    def _mapped(self, buffers: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """The losses of a micro-batch, float [R]; buffers are changed as the networks change them."""
        with warnings.catch_warnings():
            # operations that vmap calls one by one (attention on the CPU, some pooling) are few, and as exact
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            return self._losses(self._parameters, buffers, inputs, targets)

    def _loss(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> Tensor:
        """The loss of one trajectory, whichever it is: the function that is mapped."""
        first, state = self._trajectories[0], {**parameters, **buffers}
        outputs = functional_call(first.network, state, (inputs,))
        for name, buffer in buffers.items():
            if state[name] is not buffer:  # set anew instead of changed in place
                buffer.copy_(state[name].detach())
        return first.loss(outputs, targets)


def stack_up(
    recipe: Recipe,
    groups: Groups,
    hosted: Sequence[Trajectory],
    accelerator: Accelerator,
    warn: Callable[[str], None],
) -> Stack | None:
    """The hosted trajectories as a `Stack`, if the recipe says so and the layout allows it; None: one after the other.

    Args:
        recipe: of the run.
        groups: of the run.
        hosted: the trajectories of this process.
        accelerator: for the backward pass.
        warn: shows a line to the user: why the layout does not allow it.
    """
    if not recipe.inner.stacked:
        return None
    why = None
    if groups.group_size > 1:
        why = f"the {groups.group_size} processes of a group share its batches"
    elif len(hosted) == 1:
        why = "each process hosts one trajectory"
    if why is not None:
        warn(f"inner.stacked has no effect here, because {why}; fewer processes would host several each")
        return None
    return Stack(hosted, recipe, accelerator)


def _stacked(tensors_R: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors [R, ...] by name, of which those given become views, each with the strides that it had."""
    stacked: dict[str, Tensor] = {}
    for name, example in tensors_R[0].items():
        like = torch.empty_like(example, device="meta")
        whole = torch.empty_strided(
            (len(tensors_R), *like.shape),
            (max(like.numel(), 1), *like.stride()),
            dtype=example.dtype,
            device=example.device,
        )
        for view, tensors in zip(whole.unbind(), tensors_R, strict=True):
            view.copy_(tensors[name].detach())
            tensors[name].data = view
        stacked[name] = whole.requires_grad_(example.requires_grad)
    return stacked
