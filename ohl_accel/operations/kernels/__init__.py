"""Batched kernels: every image of a uint8 batch gets its own elements, equal to Pillow.

Compiled kernels (`fused.py`) apply all elements of an operation in one call on the CPU, by numba (`compiled.py`), and
in one launch for each element on a GPU, by Triton (`gpu.py`). Everywhere else (no numba, no Triton, transforms of the
user's own), and as the reference of the compiled kernels, the elements are ordinary torch code, one after the other,
which runs where the images are.

Shapes: B images, C channels (1 grey, 3 RGB), H rows, W columns; n images of the batch that share a family of
kernels; A elements for each image; E elements of a space.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from ohl_accel.operations.kernels.family import Family
from ohl_accel.operations.kernels.fused import Array, FusedElements, gpu_kernels, kept
from ohl_accel.operations.kernels.geometry import MAX_SIDE
from ohl_accel.operations.transforms import Element
from ohl_accel.rng import keyed_generator

Apply = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images [B, C, H, W], elements [B, A], signs [B, A]) -> [B, C, H, W]."""


class BatchedElements:
    """The elements of a space, prepared for batches.

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
        self._fused = FusedElements.of(elements)
        self._on_gpu_of = cache(self._on_gpu)

    def __call__(self, images_BCHW: Tensor, element_BA: Tensor, negative_BA: Tensor) -> Tensor:
        """Apply to each image the elements chosen for it, one after the other.

        Args:
            images_BCHW: uint8, C = 1 or 3, on any device; left unchanged.
            element_BA: int64 in [0, E), on the CPU.
            negative_BA: bool on the CPU; whether a signed magnitude is negated (no effect on the others).

        Returns:
            uint8 [B, C, H, W], a new tensor on the device of the images.

        Raises:
            ValueError: if the numbers of images, elements and signs differ.
        """
        if element_BA.shape != negative_BA.shape or len(element_BA) != len(images_BCHW):
            raise ValueError(
                f"{len(images_BCHW)} images need as many elements and signs, got {list(element_BA.shape)} and "
                f"{list(negative_BA.shape)}"
            )
        if images_BCHW.is_cuda and images_BCHW.numel() and max(images_BCHW.shape[2:]) <= MAX_SIDE:
            on_gpu = self._on_gpu_of(images_BCHW.device)
            if on_gpu is not None:
                return on_gpu(images_BCHW, element_BA, negative_BA)
        elif self._fused is not None:
            results_BCHW = self._fused(images_BCHW, element_BA, negative_BA)
            if results_BCHW is not None:
                return results_BCHW
        return self.by_torch(images_BCHW, element_BA, negative_BA)

    @property
    def compiled(self) -> bool:
        """Whether `single` gives results."""
        return self._fused is not None and kept() is not None

    def single(
        self, image: Array, element_A: Sequence[int], negative_A: Sequence[bool], channels_first: bool
    ) -> Array | None:
        """The same for one array, by the compiled kernels; None where they cannot be used (`FusedElements.single`)."""
        if self._fused is None:
            return None
        return self._fused.single(image, element_A, negative_A, channels_first)

    def by_torch(self, images_BCHW: Tensor, element_BA: Tensor, negative_BA: Tensor) -> Tensor:
        """The same without the compiled kernels."""
        for element_B, negative_B in zip(element_BA.T, negative_BA.T, strict=True):
            images_BCHW = self._each(images_BCHW, element_B, negative_B)
        return images_BCHW

    def _on_gpu(self, device: torch.device) -> Apply | None:
        """The kernels for a GPU, if they give what the torch code gives there; a warning and None if they do not.

        They are compiled for each kind of device, most of which nobody has tried.
        """
        gpu = gpu_kernels()
        if gpu is None or self._fused is None:
            return None
        apply = partial(self._fused.on_gpu, gpu)
        elements = len(self._family_E)
        element_S1 = torch.arange(elements).repeat(2)[:, None]
        negative_S1 = torch.arange(2).repeat_interleave(elements)[:, None] == 1
        generator = keyed_generator(0, "kernels on a GPU")
        try:
            for channels in (1, 3):
                shape = len(element_S1), channels, 40, 33
                images = torch.randint(30, 200, shape, dtype=torch.uint8, generator=generator).to(device)
                if not apply(images, element_S1, negative_S1).equal(
                    self.by_torch(images, element_S1, negative_S1)
                ):
                    raise ValueError(
                        f"their results on images of {channels} channels differ from the torch code's"
                    )
        except Exception as error:  # of a compiler or a driver: whatever it is, the torch code works
            warnings.warn(
                f"the compiled kernels cannot be used on {device}, so operations take longer: {error}",
                stacklevel=2,
            )
            return None
        return apply

    def _each(self, images_BCHW: Tensor, element_B: Tensor, negative_B: Tensor) -> Tensor:
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
