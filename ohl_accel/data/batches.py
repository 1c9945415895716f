"""Mini-batches in an order that every trajectory and every layout of processes shares.

The order of an epoch is keyed by (seed, epoch), so training can be entered at any inner step.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ohl_accel.data.images import Images
from ohl_accel.draws import keyed_generator

Batch = tuple[Tensor, Tensor]
"""Images, uint8 [b, C, H, W], and labels, int64 [b], on the CPU."""


class TrainingOrder(Sampler[list[int]]):
    """The rows of each mini-batch that fall to one process of a group.

    An epoch is a keyed permutation cut into `len(images) // batch_size` batches; the rest of the
    permutation is left out, and another rest in the next epoch.

    Args:
        num_images: training images.
        batch_size: B, over the whole group.
        seed: of the run.
        first, last: the range of inner steps, counted over the whole run, `last` excluded.
        share, shares: this process takes the share-th of `shares` equal slices of each batch.
    """

    def __init__(
        self, num_images: int, batch_size: int, seed: int, first: int, last: int, share: int, shares: int
    ) -> None:
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.first, self.last = first, last
        own = batch_size // shares
        self.own = slice(share * own, (share + 1) * own)

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.num_images // self.batch_size
        epoch, order = -1, torch.empty(0)
        for step in range(self.first, self.last):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = torch.randperm(self.num_images, generator=keyed_generator(self.seed, "order", epoch))
            place = step % per_epoch * self.batch_size
            yield order[place : place + self.batch_size][self.own].tolist()


def training_batches(images: Images, order: TrainingOrder, workers: int, pin: bool) -> Iterator[Batch]:
    """The batches of `order`, decoded ahead by `workers` processes unless pixels are in memory."""
    if images.kept:
        return (images.__getitems__(rows) for rows in order)
    return iter(
        DataLoader(images, batch_sampler=order, num_workers=workers, collate_fn=_as_is, pin_memory=pin)
    )


def evaluation_batches(
    images: Images, batch_size: int, share: int, shares: int
) -> Iterator[tuple[int, Batch]]:
    """Every `shares`-th chunk of a split, beginning with the `share`-th, as (number of the chunk, batch)."""
    for chunk in range(share, num_chunks(images, batch_size), shares):
        first = chunk * batch_size
        yield chunk, images.__getitems__(range(first, min(first + batch_size, len(images))))


def num_chunks(images: Images, batch_size: int) -> int:
    """How many chunks of `batch_size` a split has, the last one perhaps smaller."""
    return -(-len(images) // batch_size)


def _as_is(batch: Any) -> Any:
    return batch
