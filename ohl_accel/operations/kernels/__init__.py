"""Batched kernels: every image of a uint8 batch gets its own elements, equal to Pillow.

Compiled kernels (`fused.py`) apply all elements of an operation in one call on the CPU, by numba (`compiled.py`), and
in one launch on a GPU, by Triton (`gpu.py`), with what is done before and after them (`around.py`). Everywhere else (no
numba, no Triton, transforms of the user's own), and as the reference of the compiled kernels, the elements are ordinary
torch code, one after the other, which runs where the images are.

Shapes: B images, C channels (1 grey, 3 RGB), H rows, W columns; n images of the batch that share a family of
kernels; A elements for each image; E elements of a space.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from ohl_accel.operations.kernels.around import RawBatch, send
from ohl_accel.operations.kernels.family import Family
from ohl_accel.operations.kernels.fused import Array, FusedElements, kept
from ohl_accel.operations.kernels.geometry import MAX_SIDE
from ohl_accel.operations.kernels.optional import compiled_kernels
from ohl_accel.operations.transforms import Element
from ohl_accel.rng import keyed_generator

Apply = Callable[[Tensor | RawBatch, Tensor, Tensor], Tensor]
"""(images [B, C, H, W] or a raw batch, elements [B, A], signs [B, A]) -> [B, C, H, W]."""


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
        on_gpu = self._for(images_BCHW, element_BA)
        if on_gpu is not None:
            return on_gpu(images_BCHW, element_BA, negative_BA)
        if self._fused is not None:
            results_BCHW = self._fused(images_BCHW, element_BA, negative_BA)
            if results_BCHW is not None:
                return results_BCHW
        return self.by_torch(images_BCHW, element_BA, negative_BA)

    def augment(self, batch: RawBatch, element_BA: Tensor, negative_BA: Tensor) -> Tensor:
        """The same with what is done before and after: the inputs of a network, in one launch where that is possible.

        Args:
            batch: the images, and what was drawn for them.
            element_BA, negative_BA: as above.

        Returns:
            float32 [B, C, H, W] on the device of the images.
        """
        on_gpu = self._for(batch.images_BCHW, element_BA)
        if on_gpu is not None:
            return on_gpu(batch, element_BA, negative_BA)
        return batch.finish(self(batch.basic, element_BA, negative_BA))

    def _for(self, images_BCHW: Tensor, element_BA: Tensor) -> Apply | None:
        """The kernel for these images' GPU, if they are on one, and it can be used."""
        usable = images_BCHW.is_cuda and images_BCHW.numel() and max(images_BCHW.shape[2:]) <= MAX_SIDE
        return self._on_gpu_of(images_BCHW.device, element_BA.shape[1]) if usable else None

    @property
    def compiled(self) -> bool:
        """Whether `single` gives results."""
        return self._fused is not None and kept() is not None

    def single(
        self, image: Array, element_A: Sequence[int], negative_A: Sequence[bool], **layout: bool
    ) -> Array | None:
        """The same for one array, by the compiled kernels; None where they cannot be used (`FusedElements.single`)."""
        if self._fused is None:
            return None
        return self._fused.single(image, element_A, negative_A, **layout)

    def by_torch(self, images_BCHW: Tensor, element_BA: Tensor, negative_BA: Tensor) -> Tensor:
        """The same without the compiled kernels."""
        for element_B, negative_B in zip(element_BA.T, negative_BA.T, strict=True):
            images_BCHW = self._each(images_BCHW, element_B, negative_B)
        return images_BCHW

    def _on_gpu(self, device: torch.device, arity: int) -> Apply | None:
        """The kernel for a GPU, if it gives what the torch code gives there; a warning and None if it does not.

        It is compiled for each kind of device, most of which nobody has tried. Every element takes every position.
        """
        gpu = compiled_kernels("gpu")
        if gpu is None or self._fused is None:
            return None
        apply = partial(self._fused.on_gpu, gpu)
        S = 2 * len(self._family_E)
        step_SA = torch.stack([torch.arange(S).roll(7 * position) for position in range(arity)], 1)
        element_SA, negative_SA = step_SA // 2, step_SA % 2 == 1
        generator = keyed_generator(0, "kernels on a GPU")
        try:
            for channels in (1, 3):
                shape = S, channels, 40, 33
                levels = torch.randint(30, 200, shape, dtype=torch.uint8, generator=generator)
                mean_C11, std_C11 = 60 + 100 * torch.rand(2, channels, 1, 1, generator=generator)
                batch = RawBatch(
                    images_BCHW=send(levels, device),
                    mean_C11=send(mean_C11, device),
                    std_C11=send(std_C11, device),
                    flip_B=torch.arange(S) % 2,
                    padding=4,
                    corner_B2=torch.randint(9, (S, 2), generator=generator),
                    side=11,
                    centre_B2=torch.randint(33, (S, 2), generator=generator),
                )
                by_torch = self.by_torch(batch.basic, element_SA, negative_SA)
                same = apply(batch.basic, element_SA, negative_SA).equal(by_torch)
                if not same or not apply(batch, element_SA, negative_SA).equal(batch.finish(by_torch)):
                    raise ValueError(
                        f"its results on images of {channels} channels differ from the torch code's"
                    )
        except Exception as error:  # of a compiler or a driver: whatever it is, the torch code works
            warnings.warn(
                f"the compiled kernel cannot be used on {device}, so operations take longer: {error}",
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
                images_nCHW = images_BCHW.index_select(0, send(chosen_n, images_BCHW.device))
                results.append(family(images_nCHW, element_B[chosen_n], negative_B[chosen_n]))
        # on the CPU, gathering is several times as fast as assigning by index
        index_B = send(order_B.argsort(), images_BCHW.device)
        return torch.cat(results).index_select(0, index_B)
