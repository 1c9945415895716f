"""A network in numbers: parameters, operations and memory of a training image, without memory for its weights."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ohl_accel.data import Schema
from ohl_accel.engine.network import outline
from ohl_accel.engine.trajectory import args_for_any, create_optimizer
from ohl_accel.errors import UserError, first_line
from ohl_accel.recipe import ModelSection, OptimizerSection

BACKWARD = 2
"""Operations of a backward pass as a multiple of the forward pass: a gradient of the inputs and one of the weights."""
_IMAGES = 2


@dataclass(frozen=True)
class NetworkNumbers:
    """What one image costs, and what one network weighs."""

    parameters: int
    state_bytes: int
    """Weights and buffers, in float32."""
    forward_flops: float
    """Floating-point operations of one image, a multiply-add counted as two."""
    activation_bytes: float
    """What autograd keeps of one training image, in float32."""

    @classmethod
    def of(cls, section: ModelSection, schema: Schema, model: nn.Module | None = None) -> "NetworkNumbers":
        """Of a recipe's network, tried on blank images of the shape that the data has.

        Args:
            section: the recipe's model section.
            schema: of the images and classes.
            model: instead of the section's: the user's own network.

        Raises:
            UserError: for an unknown name, invalid arguments, or images that it cannot process.
        """
        network = outline(section, schema) if model is None else copy.deepcopy(model).to("meta")
        images = torch.zeros(_IMAGES, schema.channels, *schema.size, device="meta")
        own = {tensor.untyped_storage()._cdata for tensor in [*network.parameters(), *network.buffers()]}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()._cdata
            if storage not in own:
                kept[storage] = tensor  # held, so that no other storage gets this number
            return tensor

        try:
            with (
                FlopCounterMode(display=False) as counter,
                torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
            ):
                network.train()(images)
        except Exception as error:
            name = (
                f"model.name={section.name}"
                if model is None
                else f"the {type(model).__name__} given as model"
            )
            height, width = schema.size
            raise UserError(
                f"{name} cannot take images of {schema.channels} x {height} x {width} (data.image_size resizes them): "
                f"{first_line(error)}"
            ) from error
        tensors = list(network.state_dict().values())
        return cls(
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            state_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            forward_flops=counter.get_total_flops() / _IMAGES,
            activation_bytes=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / _IMAGES,
        )


def optimizer_share(section: OptimizerSection) -> float:
    """Numbers that an optimizer keeps for each parameter, such as 1 for SGD with momentum and 2 for AdamW.

    Raises:
        UserError: for an unknown name, or invalid arguments.
    """
    layer = nn.Linear(64, 64)
    optimizer = create_optimizer(section.model_copy(update={"args": args_for_any(section)}), layer)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = [
        value.numel()
        for entry in optimizer.state_dict()["state"].values()
        for value in entry.values()
        if isinstance(value, Tensor)
    ]
    return sum(state) / sum(parameter.numel() for parameter in layer.parameters())
