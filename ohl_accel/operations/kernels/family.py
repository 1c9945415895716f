"""The interface of kernels: how a transform acts on a uint8 batch whose images have different magnitudes.

Shapes: n images that share a family of kernels, C channels (1 grey, 3 RGB), H rows, W columns; E elements of a
space.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ohl_accel.operations.kernels.around import send
from ohl_accel.operations.transforms import Element

BatchFunction = Callable[[Tensor, Tensor], Tensor]
"""(uint8 images [n, C, H, W], float32 magnitudes [n] with their signs on the same device, or 0 if the transform has
none) -> uint8 [n, C, H, W]."""


class Family(Protocol):
    """The kernels of one family, with tables for the elements of one space."""

    def __call__(self, images_nCHW: Tensor, element_n: Tensor, negative_n: Tensor) -> Tensor:
        """Apply to each image the element chosen for it.

        Args:
            images_nCHW: uint8 on any device; left unchanged.
            element_n: indices of elements of this family, int64 on the CPU.
            negative_n: bool on the CPU; whether a signed magnitude is negated.

        Returns:
            uint8 [n, C, H, W], a new tensor on the device of the images.
        """


class Kernel(ABC):
    """A transform of a batch. Elements whose kernels belong to the same family are applied in one call."""

    @property
    @abstractmethod
    def family(self) -> Hashable:
        """Equal for kernels that are compiled together."""

    @abstractmethod
    def compile(self, elements: Sequence[Element]) -> Family:
        """The family's tables.

        Args:
            elements: all of a space; those of other families are ignored.
        """


@dataclass(frozen=True)
class EachImage(Kernel):
    """A function of images and magnitudes: the general kernel, also for users' own transforms."""

    function: BatchFunction

    @property
    def family(self) -> Hashable:
        """The function itself."""
        return self.function

    def compile(self, elements: Sequence[Element]) -> Family:
        """A table of magnitudes."""
        magnitude_E2 = magnitudes_of(elements)

        def apply(images_nCHW: Tensor, element_n: Tensor, negative_n: Tensor) -> Tensor:
            magnitude_n = magnitude_E2[element_n, negative_n.long()]
            result = self.function(images_nCHW, send(magnitude_n, images_nCHW.device))
            if result.shape != images_nCHW.shape or result.dtype != torch.uint8:
                name = elements[int(element_n[0])].transform.name
                raise ValueError(
                    f"the kernel of {name} must return uint8 {list(images_nCHW.shape)}, got {result.dtype} "
                    f"{list(result.shape)}"
                )
            return result

        return apply


def magnitudes_of(elements: Sequence[Element]) -> Tensor:
    """float32 [E, 2]: each element's magnitude with positive and with negative sign."""
    return torch.tensor([[element.value(negative) for negative in (False, True)] for element in elements])
