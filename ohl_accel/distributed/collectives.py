"""Collectives on many tensors in few messages, and a checksum over all of them."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET_BYTES = 25 * 2**20
_CHECKSUM_ROW = 512
_CHECKSUM_BYTES = 4 * 2**20


@torch.no_grad()
def checksum(tensors: Sequence[Tensor]) -> Tensor:
    """int64 [] on the device of the first tensor: changes with any single change of the tensors' bytes.

    Sums of rows of 4 KB, each multiplied by a different odd number, modulo 2^64: many times as fast as SHA-256 on
    a CPU, and only the sum leaves the device. Blind only to changes that cancel out, such as two
    words swapped within a row.
    """
    total = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    for bucket in buckets(tensors, _CHECKSUM_BYTES):
        parts = [tensor.detach().reshape(-1) for tensor in bucket]
        flat = parts[0] if len(parts) == 1 and not parts[0].storage_offset() else torch.cat(parts)
        whole = flat.nbytes - flat.nbytes % (8 * _CHECKSUM_ROW)
        words, rest = flat.view(torch.uint8).split([whole, flat.nbytes - whole])
        rows = words.view(torch.int64).view(-1, _CHECKSUM_ROW).sum(1)
        total = 3 * total + (_weighted(rows) + _weighted(rest.long())).to(total.device)
    return total


def _weighted(numbers: Tensor) -> Tensor:
    """Sum of int64 numbers, each multiplied by a different odd number, modulo 2^64: int64 []."""
    return (numbers * (2 * torch.arange(len(numbers), device=numbers.device) + 1)).sum()


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, including those that are not saved."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


@torch.no_grad()
def broadcast(tensors: Sequence[Tensor], source: int, group: dist.ProcessGroup | None) -> None:
    """Broadcast in place, in flat buckets of one dtype; `source` is the rank inside `group`."""
    for bucket in buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.broadcast(flat, group_src=source, group=group)
        scatter(flat, bucket)


def scatter(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the parts of a flat tensor into tensors, in place."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(
        list(tensors), [part.view(tensor.shape) for tensor, part in zip(tensors, parts, strict=True)]
    )


def buckets(tensors: Sequence[Tensor], bound: int = _BUCKET_BYTES) -> list[list[Tensor]]:
    """Tensors in lists of one dtype and up to `bound` bytes (a larger tensor gets its own list)."""
    buckets: list[list[Tensor]] = []
    open_bucket: dict[torch.dtype, tuple[list[Tensor], int]] = {}
    for tensor in tensors:
        bucket, size = open_bucket.get(tensor.dtype, ([], 0))
        if not bucket or size + tensor.nbytes > bound:
            bucket, size = [], 0
            buckets.append(bucket)
        bucket.append(tensor)
        open_bucket[tensor.dtype] = (bucket, size + tensor.nbytes)
    return buckets
