"""Batched element kernels: every image of a uint8 batch gets its own element, equal to Pillow.

Shapes: B images, C channels (1 grey, 3 RGB), H rows, W columns; n images of the batch that share a
family of kernels; P = H * W pixels. The kernels are ordinary torch code and run where the images are.
"""

import torch
from torch import Tensor

from ohl_accel.operations.elements import ELEMENTS, NUM_ELEMENTS
from ohl_accel.operations.kernels.blend import adjust_color, sharpen
from ohl_accel.operations.kernels.geometry import GEOMETRIC_TRANSFORMS, move_pixels
from ohl_accel.operations.kernels.tone import TONE_TRANSFORMS, apply_tone_curve

_FAMILIES = (
    (GEOMETRIC_TRANSFORMS, move_pixels),
    (TONE_TRANSFORMS, apply_tone_curve),
    ({"ColorAdjust"}, adjust_color),
    ({"Sharpness"}, sharpen),
)
_FAMILY_OF_ELEMENT = torch.tensor(
    [
        next(i for i, (transforms, _) in enumerate(_FAMILIES) if element.transform in transforms)
        for element in ELEMENTS
    ]
)


def apply_elements(images_BCHW: Tensor, element_B: Tensor, negative_B: Tensor) -> Tensor:
    """Apply to each image the element chosen for it (Table 1, semantics of Pillow).

    Args:
        images_BCHW: uint8, C = 1 or 3, on any device; left unchanged.
        element_B: int64 in [0, 36), on the CPU.
        negative_B: bool on the CPU; whether a signed magnitude is negated (no effect on the others).

    Returns:
        uint8 [B, C, H, W], a new tensor on the device of the images.

    Raises:
        ValueError: for another dtype or shape, or an element outside Table 1.
    """
    _check_images(images_BCHW)
    if not bool(((element_B >= 0) & (element_B < NUM_ELEMENTS)).all()):
        raise ValueError(f"elements must lie in 0..{NUM_ELEMENTS - 1}, got {element_B.tolist()}")
    if len(images_BCHW) == 0:
        return images_BCHW.clone()
    family_B = _FAMILY_OF_ELEMENT[element_B]
    order_B = family_B.argsort(stable=True)
    results, begin = [], 0
    for (_, kernel), n in zip(
        _FAMILIES, torch.bincount(family_B, minlength=len(_FAMILIES)).tolist(), strict=True
    ):
        chosen_n = order_B[begin : begin + n]
        begin += n
        if n:
            images_nCHW = images_BCHW.index_select(0, chosen_n.to(images_BCHW.device, non_blocking=True))
            results.append(kernel(images_nCHW, element_B[chosen_n], negative_B[chosen_n]))
    # on the CPU gathering is several times as fast as assigning to the places
    place_B = order_B.argsort().to(images_BCHW.device, non_blocking=True)
    return torch.cat(results).index_select(0, place_B)


def apply_operations(images_BCHW: Tensor, operation_B: Tensor, negative_B2: Tensor) -> Tensor:
    """Apply to each image both elements of its operation, the first, then the second (section 3.3).

    Args:
        images_BCHW: uint8, C = 1 or 3, on any device; left unchanged.
        operation_B: int64 in [0, 1296), on the CPU.
        negative_B2: bool on the CPU; the signs of the first and of the second element.

    Returns:
        uint8 [B, C, H, W] on the device of the images.
    """
    first_B = operation_B // NUM_ELEMENTS
    second_B = operation_B % NUM_ELEMENTS
    once_BCHW = apply_elements(images_BCHW, first_B, negative_B2[:, 0])
    return apply_elements(once_BCHW, second_B, negative_B2[:, 1])


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 in 0..255, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be [B, C, H, W] with C = 1 or 3, got {list(images.shape)}")
