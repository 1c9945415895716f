"""Networks sharded over the processes of a group (FSDP2), if they do not fit on one device."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ohl_accel.errors import UserError


def check_can_be_sharded(network: nn.Module) -> None:
    """Reject a network with tensors that FSDP2 cannot shard or would not find.

    Raises:
        UserError: naming the tensor.
    """
    for name, parameter in network.named_parameters():
        if parameter.ndim == 0:
            raise UserError(f"model.shard: {name} of this network is a single number")
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            values = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(each, Tensor) for each in values):
                raise UserError(
                    f"model.shard: {path}.{name} of this network is neither a parameter nor a buffer"
                )


def shard(network: nn.Module, group: Any, device: torch.device) -> None:
    """Shard every parameter over the processes of a group, in place, block by block.

    A block is gathered only while it is used: all processes must run the network equally often, in validation as well.

    Args:
        network: on the meta device; its blocks are the modules with children in its `Sequential`s and
            `ModuleList`s. It is moved to the device uninitialized.
        group: the process group.
        device: of the computation.
    """
    mesh = DeviceMesh.from_group(group, device.type)
    for block in reversed(list(_blocks(network))):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # the root must not keep gathered parameters either: other weights may be adopted meanwhile
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    network.to_empty(device=device)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    containers = (nn.Sequential, nn.ModuleList)
    for module in network.modules():
        if isinstance(module, containers):
            for child in module:
                if not isinstance(child, containers) and any(child.children()):
                    yield child


def own_part(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, to be changed in place; or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(whole: Tensor, example: Tensor) -> Tensor:
    """A whole tensor, present on every process of the group, sharded like the example if that has its shape."""
    if not isinstance(example, DTensor) or example.shape != whole.shape:
        return whole
    part = distribute_tensor(whole, example.device_mesh, example.placements, src_data_rank=None)
    return part.clone()  # no longer a view, so that the whole can be freed


def whole_on_cpu(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU, gathered one at a time by all processes of a group.

    Args:
        tensors: by name.
        keep: whether this process keeps them; otherwise it only participates, and gets none.
    """
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.detach()
        if isinstance(whole, DTensor):
            whole = whole.full_tensor()
        if keep:
            gathered[name] = whole.cpu().contiguous()
    return gathered
