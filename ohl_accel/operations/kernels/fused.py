"""Operations on CPU batches by the compiled kernels: what they need to know about a space.

Shapes: B images, C channels (1 grey, 3 RGB), H rows, W columns; A elements for each image; E elements of a space,
S = 2 E steps: each element with positive and with negative sign.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from types import ModuleType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ohl_accel.operations.kernels import blend, tone
from ohl_accel.operations.kernels.family import EachImage, magnitudes_of
from ohl_accel.operations.kernels.geometry import MAX_SIDE, Affine, fixed_point_matrices
from ohl_accel.operations.kernels.tone import Curve, ImageCurve, fixed_curves
from ohl_accel.operations.transforms import Element

_KINDS: dict[Callable[..., Tensor], str] = {
    blend.unchanged: "IDENTITY",
    blend.adjust_color: "COLOR",
    blend.sharpen: "SHARPNESS",
    tone.contrast: "CONTRAST",
    tone.auto_contrast: "AUTO_CONTRAST",
    tone.equalize: "EQUALIZE",
}
"""The functions of batches that are compiled as well, and the names of their kinds in `compiled`."""


@cache
def _compiled() -> ModuleType | None:
    """The compiled kernels, or None without numba (it is optional, and imported only when it is needed)."""
    try:
        from ohl_accel.operations.kernels import compiled
    except ImportError:
        return None
    return compiled


class FusedElements:
    """The elements of a space as tables of the compiled kernels.

    Args:
        elements: of the space, all of which the compiled kernels must know.
        kind_E: the name of each element's kind in `compiled`.
    """

    def __init__(self, elements: Sequence[Element], kind_E: Sequence[str]) -> None:
        self._kind_S = [kind for kind in kind_E for _ in range(2)]
        self._factor_S = magnitudes_of(elements).flatten().numpy()
        self._curve_S256 = fixed_curves(elements).flatten(0, 1).numpy()
        self._matrices_of_size = lru_cache(maxsize=64)(partial(fixed_point_matrices, elements))

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
        compiled = _compiled() if usable else None
        if compiled is None:
            return None
        images_BN = images_BCHW.contiguous().flatten(1).numpy()
        images_BN.flags.writeable = False  # one type of arguments, thus one compilation
        results_BN = np.empty_like(images_BN)  # large arrays of numpy are on huge pages, where there are any
        compiled.apply(
            images_BN,
            results_BN,
            (2 * element_BA + negative_BA).contiguous().numpy(),
            np.array([getattr(compiled, kind) for kind in self._kind_S], np.uint8),
            self._factor_S,
            self._curve_S256,
            self._matrices_of_size(height, width).flatten(0, 1).long().numpy(),
            height,
            width,
        )
        return torch.from_numpy(results_BN).view(images_BCHW.shape)


def _kind(element: Element) -> str | None:
    """The name of an element's kind in `compiled`; None if it has none."""
    match element.transform.kernel:
        case Curve():
            return "CURVE"
        case Affine():
            return "AFFINE"
        case ImageCurve(function) | EachImage(function):
            return _KINDS.get(function)
    return None
