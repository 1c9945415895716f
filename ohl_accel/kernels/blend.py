"""Elements that blend the image with a degenerate one, pixel by pixel: ColorAdjust and Sharpness.

They are `PIL.ImageEnhance.Color` and `PIL.ImageEnhance.Sharpness`. The blend itself also serves
Contrast and Brightness, which need only a curve (`ohl_accel.kernels.tone`).
"""

import torch
from torch import Tensor

from ohl_accel.elements import ELEMENTS

BLEND_TRANSFORMS = frozenset({"ColorAdjust", "Sharpness"})

_IS_COLOR = torch.tensor([element.transform == "ColorAdjust" for element in ELEMENTS])
_FACTOR = torch.tensor(
    [
        element.magnitude if element.magnitude is not None and element.transform in BLEND_TRANSFORMS else 1.0
        for element in ELEMENTS
    ]
)


def blend_with_degenerate(images_nCHW: Tensor, element_n: Tensor, negative_n: Tensor) -> Tensor:
    """Blend each image with its grey version (ColorAdjust) or its smooth version (Sharpness).

    Args:
        images_nCHW: uint8.
        element_n: blend elements, int64 on the CPU.
        negative_n: unused; these elements have no sign.

    Returns:
        uint8 [n, C, H, W].
    """
    degenerate_nCHW = torch.empty_like(images_nCHW)
    for of_kind, degenerate_of in ((_IS_COLOR, luma), (~_IS_COLOR, smooth)):
        chosen = of_kind[element_n].nonzero().squeeze(1)
        if len(chosen):
            place = chosen.to(images_nCHW.device, non_blocking=True)
            degenerate_nCHW[place] = degenerate_of(images_nCHW.index_select(0, place))
    factor_n = _FACTOR[element_n].to(images_nCHW.device, non_blocking=True)
    return blend(degenerate_nCHW.float(), images_nCHW.float(), factor_n[:, None, None, None])


def blend(degenerate: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    """`PIL.Image.blend`: `degenerate + factor * (image - degenerate)` in float32, clipped, truncated.

    Args:
        degenerate, image: float32 with whole values in 0..255.
        factor: float32; 0 gives the degenerate image, 1 the image, above 1 exaggerates it.

    Returns:
        uint8 of the broadcast shape.
    """
    return (degenerate + factor * (image - degenerate)).clamp(0, 255).to(torch.uint8)


def luma(images_nCHW: Tensor) -> Tensor:
    """`PIL.Image.convert("L")` (ITU-R 601-2 in 16-bit fixed point): uint8 [n, 1, H, W]."""
    if images_nCHW.shape[1] == 1:
        return images_nCHW
    red, green, blue = images_nCHW.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[:, None]


def smooth(images_nCHW: Tensor) -> Tensor:
    """`PIL.ImageFilter.SMOOTH`: 3 x 3 mean with weight 5 in the middle; the border stays as it is.

    The weighted mean is s / 13 with a whole s. Rounding it in integers is exact, and equals Pillow's
    float32 result because (s + 6.5) / 13 is never within 1 / 26 of a whole number.
    """
    smoothed_nCHW = images_nCHW.clone()
    height, width = images_nCHW.shape[2:]
    if height < 3 or width < 3:
        return smoothed_nCHW
    levels = images_nCHW.int()
    rows = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * levels[:, :, 1:-1, 1:-1]
    smoothed_nCHW[:, :, 1:-1, 1:-1] = ((2 * total + 13) // 26).to(torch.uint8)
    return smoothed_nCHW
