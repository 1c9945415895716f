"""Batched kernels: every image of a uint8 batch gets its own element, equal to Pillow.

Shapes: B images, C channels (1 grey, 3 RGB), H rows, W columns; n images of the batch that share a family of
kernels; E elements of a space. The kernels are ordinary torch code and run where the images are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ohl_accel.operations.kernels.family import Family
from ohl_accel.operations.transforms import Element


class BatchedElements:
    """The elements of a space, compiled for batches.

    Args:
        elements: of the space, at least one.
    """

    def __init__(self, elements: Sequence[Element]) -> None:
        keys = [element.transform.kernel.family for element in elements]
        kinds = list(dict.fromkeys(keys))
        self._families: list[Family] = [
            elements[keys.index(kind)].transform.kernel.compile(elements) for kind in kinds
        ]
        number = {kind: i for i, kind in enumerate(kinds)}
        self._family_E = torch.tensor([number[key] for key in keys])

    def __call__(self, images_BCHW: Tensor, element_B: Tensor, negative_B: Tensor) -> Tensor:
        """Apply to each image the element chosen for it.

        Args:
            images_BCHW: uint8, C = 1 or 3, on any device; left unchanged.
            element_B: int64 in [0, E), on the CPU.
            negative_B: bool on the CPU; whether a signed magnitude is negated (no effect on the others).

        Returns:
            uint8 [B, C, H, W], a new tensor on the device of the images.
        """
        if len(images_BCHW) == 0:
            return images_BCHW.clone()
        family_B = self._family_E[element_B]
        order_B = family_B.argsort(stable=True)
        results, begin = [], 0
        numbers = torch.bincount(family_B, minlength=len(self._families)).tolist()
        for family, n in zip(self._families, numbers, strict=True):
            chosen_n = order_B[begin : begin + n]
            begin += n
            if n:
                images_nCHW = images_BCHW.index_select(0, chosen_n.to(images_BCHW.device, non_blocking=True))
                results.append(family(images_nCHW, element_B[chosen_n], negative_B[chosen_n]))
        # on the CPU, gathering is several times as fast as assigning by index
        index_B = order_B.argsort().to(images_BCHW.device, non_blocking=True)
        return torch.cat(results).index_select(0, index_B)
