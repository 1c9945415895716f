"""Operations on batches by the compiled kernels, on the CPU or a GPU: what they need to know about a space.

Shapes: B images, C channels (1 grey, 3 RGB), H rows, W columns; A elements for each image; E elements of a space,
S = 2 E steps: each element with positive and with negative sign.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ohl_accel.operations.kernels import blend, steps, tone
from ohl_accel.operations.kernels.around import RawBatch, send
from ohl_accel.operations.kernels.family import EachImage, magnitudes_of
from ohl_accel.operations.kernels.geometry import MAX_SIDE, Affine, fixed_point, fixed_point_matrices
from ohl_accel.operations.kernels.optional import compiled_kernels, read_only
from ohl_accel.operations.kernels.tone import Curve, ImageCurve, fixed_curves
from ohl_accel.operations.transforms import Element

Array = np.ndarray[Any, Any]

_KINDS: dict[Callable[..., Tensor], int] = {
    blend.unchanged: steps.IDENTITY,
    blend.adjust_color: steps.COLOR,
    blend.sharpen: steps.SHARPNESS,
    tone.contrast: steps.CONTRAST,
    tone.auto_contrast: steps.AUTO_CONTRAST,
    tone.equalize: steps.EQUALIZE,
}
"""The functions of batches that are compiled as well, and their kinds."""


def kept() -> ModuleType | None:
    """The compiled kernels, if they are kept on disk: not worth their time in a process that has a few images."""
    compiled = compiled_kernels("compiled")
    return compiled if compiled is not None and compiled.kept else None


class FusedElements:
    """The elements of a space as tables of the compiled kernels.

    Args:
        elements: of the space, all of which the compiled kernels must know.
        kind_E: each element's kind.
    """

    def __init__(self, elements: Sequence[Element], kind_E: Sequence[int]) -> None:
        self._kind_S = np.repeat(np.array(kind_E, np.uint8), 2)
        factor_S, curve_S256 = magnitudes_of(elements).flatten(), fixed_curves(elements).flatten(0, 1)
        self._factor_S, self._curve_S256 = factor_S.numpy(), curve_S256.numpy()
        formulas = [_formula(*pair) for pair in zip(curve_S256, factor_S.tolist(), strict=True)]
        self._formula_S = np.array(formulas, np.uint8)
        self._matrices_of_size = lru_cache(maxsize=64)(partial(_matrices, elements))
        self._tables_on = lru_cache(maxsize=64)(self._move_tables)

    @classmethod
    def of(cls, elements: Sequence[Element]) -> Self | None:
        """The tables of these elements; None if one of them has a kernel of the user's own."""
        kinds = [_kind(element) for element in elements]
        known = [kind for kind in kinds if kind is not None]
        return cls(elements, known) if len(known) == len(kinds) else None

    def __call__(self, images_BCHW: Tensor, element_BA: Tensor, negative_BA: Tensor) -> Tensor | None:
        """Apply to each image the elements chosen for it, in one call for each image.

        Args:
            images_BCHW: uint8, C = 1 or 3; left unchanged.
            element_BA: int64 in [0, E), on the CPU.
            negative_BA: bool on the CPU; whether signed magnitudes are negated.

        Returns:
            uint8 [B, C, H, W], a new tensor; None where the compiled kernels cannot be used: without numba, on
            another device, for images without pixels or too large for affine maps.
        """
        height, width = images_BCHW.shape[2:]
        usable = images_BCHW.device.type == "cpu" and images_BCHW.numel() and max(height, width) <= MAX_SIDE
        compiled = compiled_kernels("compiled") if usable else None
        if compiled is None:
            return None
        images_BN = images_BCHW.contiguous().flatten(1).numpy()
        step_BA = (2 * element_BA + negative_BA).contiguous().numpy()
        return torch.from_numpy(self._apply(compiled, images_BN, step_BA, height, width)).view(
            images_BCHW.shape
        )

    def single(
        self,
        image: Array,
        element_A: Sequence[int],
        negative_A: Sequence[bool],
        channels_first: bool = False,
        padded: bool = False,
    ) -> Array | None:
        """The same for one image.

        Args:
            image: uint8 [H, W] or [H, W, C], or with channels first [C, H, W], C = 1 or 3; left unchanged.
            element_A: each in [0, E).
            negative_A: their signs.
            channels_first: where the channels are.
            padded: whether the result of [H, W, 3] is [H, W, 4], with 255 after each pixel.

        Returns:
            A new array, otherwise of the same shape; None where the compiled kernels cannot be used, or would have to
            be compiled in every process.
        """
        height, width = image.shape[1:] if channels_first else image.shape[:2]
        compiled = kept()
        if compiled is None or not image.size or max(height, width) > MAX_SIDE:
            return None
        image_N = np.ascontiguousarray(image).reshape(-1)
        step_1A = np.array([[2 * e + n for e, n in zip(element_A, negative_A, strict=True)]], np.int64)
        if channels_first or image.size == height * width:
            return self._apply(compiled, image_N[None], step_1A, height, width).reshape(image.shape)
        from ohl_accel.operations.kernels import channels

        planes_1N = np.empty((1, image.size), np.uint8)
        channels.split_channels(read_only(image_N), planes_1N[0])
        result = np.empty((height, width, 4 if padded else 3), np.uint8)
        planes_1N = self._apply(compiled, planes_1N, step_1A, height, width)
        join = channels.join_padded if padded else channels.join_channels
        join(read_only(planes_1N[0]), result.reshape(-1))
        return result

    def on_gpu(
        self, gpu: ModuleType, images: Tensor | RawBatch, element_BA: Tensor, negative_BA: Tensor
    ) -> Tensor:
        """As `__call__`, by the kernel for GPUs, in one launch; the host does not wait for the device.

        All that was drawn goes to the device in one copy.

        Args:
            gpu: this kernel.
            images: as there, on a GPU, at least one; or with what is done to them before and after the elements.
            element_BA, negative_BA: as there.

        Returns:
            uint8 [B, C, H, W]; with what is done before and after, float32.
        """
        drawn_BD, finish = 2 * element_BA + negative_BA, None
        if isinstance(images, RawBatch):
            drawn_BD = torch.cat((drawn_BD, images.drawn), 1)
            finish = images.mean_C11, images.std_C11, images.side
            images = images.images_BCHW
        device, arity = images.device, element_BA.shape[1]
        tables = self._tables_on(device, *images.shape[2:])
        drawn_BD = send(drawn_BD.int(), device)
        return gpu.apply(images.contiguous(), drawn_BD, *tables, arity=arity, finish=finish)  # type: ignore[no-any-return]

    def _move_tables(self, device: torch.device, height: int, width: int) -> list[Tensor]:
        """What `gpu.apply` needs besides images and steps, on a device."""
        matrix_S6 = self._matrices_of_size(height, width).astype(np.int32)
        matrix_S6[self._kind_S != steps.AFFINE] = fixed_point((1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
        arrays = self._kind_S.astype(np.int32), self._factor_S, self._curve_S256, matrix_S6
        return [send(torch.from_numpy(array), device) for array in arrays]

    def _apply(
        self, compiled: ModuleType, images_BN: Array, step_BA: Array, height: int, width: int
    ) -> Array:
        results_BN = np.empty_like(images_BN)  # large arrays of numpy are on huge pages, where there are any
        compiled.apply(
            read_only(images_BN),
            results_BN,
            step_BA,
            self._kind_S,
            self._factor_S,
            self._formula_S,
            self._curve_S256,
            self._matrices_of_size(height, width),
            height,
            width,
        )
        return results_BN


def _matrices(elements: Sequence[Element], height: int, width: int) -> Array:
    """int64 [S, 6]"""
    return fixed_point_matrices(elements, height, width).flatten(0, 1).long().numpy()


def _kind(element: Element) -> int | None:
    """An element's kind; None if it has none."""
    match element.transform.kernel:
        case Curve():
            return steps.CURVE
        case Affine():
            return steps.AFFINE
        case ImageCurve(function) | EachImage(function):
            return _KINDS.get(function)
    return None


def _formula(curve_256: Tensor, magnitude: float) -> int:
    """The formula that gives a curve, or the table."""
    known = {
        steps.SOLARIZE: (tone.solarize, 256),
        steps.POSTERIZE: (tone.posterize, 8),
        steps.BLEND: (tone.brighten, 256),
    }
    for formula, (curve, greatest) in known.items():
        if 0 <= magnitude <= greatest and curve(magnitude).equal(curve_256):
            return formula
    return steps.TABLE
