"""The interface of augmentation policies: transforming one mini-batch of one trajectory.

Shapes: B images of the group's whole batch, b of this process, C channels, H rows, W columns.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ohl_accel.rng import keyed_generator


@dataclass(frozen=True)
class BatchDraw:
    """Keys the random numbers of one mini-batch of one trajectory.

    They are generated for the group's whole batch, of which a process uses its own part, so that the result does not
    depend on the number of processes in a group.
    """

    seed: int
    """The seed of the run."""
    step: int
    """Inner steps done so far in the whole run."""
    trajectory: int
    """n."""
    batch_size: int
    """B."""
    own: slice
    """The slice of the group's batch for this process."""

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator that differs between trajectories."""
        return keyed_generator(self.seed, purpose, self.step, self.trajectory)

    def shared_generator(self, purpose: str) -> torch.Generator:
        """A CPU generator that is the same for all trajectories (footnote 1 of the paper)."""
        return keyed_generator(self.seed, purpose, self.step)

    def shared_integers(self, purpose: str, below: int) -> Tensor:
        """This process's part of B integers in 0..below-1, the same for all trajectories: int64 [b]."""
        numbers_B = torch.randint(below, (self.batch_size,), generator=self.shared_generator(purpose))
        return numbers_B[self.own]


@runtime_checkable
class AugmentationPolicy(Protocol):
    """Transforms each image after the basic transforms."""

    def apply(self, images_bCHW: Tensor, draw: BatchDraw) -> tuple[Tensor, Tensor | None]:
        """Transform this process's part of a batch.

        Args:
            images_bCHW: uint8 on any device; left unchanged.
            draw: keys the random numbers.

        Returns:
            uint8 [b, C, H, W] on the same device; and the operations sampled for the group's whole batch, int64 [B] on
            the CPU, or None for a policy without a space.
        """


class NoPolicy:
    """Leaves images unchanged."""

    def apply(self, images_bCHW: Tensor, draw: BatchDraw) -> tuple[Tensor, Tensor | None]:
        """The images themselves, and no operations."""
        return images_bCHW, None
