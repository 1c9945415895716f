"""Kernels that blend the image with a degenerate one, pixel by pixel: ColorAdjust and Sharpness.

They are `PIL.ImageEnhance.Color` and `PIL.ImageEnhance.Sharpness`. The blend itself also serves
Contrast and Brightness, which need only a curve (`ohl_accel.operations.kernels.tone`).

Shapes: n images, C channels (1 grey, 3 RGB), H rows, W columns.
"""

import torch
from torch import Tensor


def adjust_color(images_nCHW: Tensor, factor_n: Tensor) -> Tensor:
    """`PIL.ImageEnhance.Color`: blend each image with its grey version.

    Args:
        images_nCHW: uint8.
        factor_n: float32 on the same device.

    Returns:
        uint8 [n, C, H, W].
    """
    return _blend_with(luma(images_nCHW), images_nCHW, factor_n)


def sharpen(images_nCHW: Tensor, factor_n: Tensor) -> Tensor:
    """`PIL.ImageEnhance.Sharpness`: blend each image with its smooth version; arguments as above."""
    return _blend_with(smooth(images_nCHW), images_nCHW, factor_n)


def _blend_with(degenerate_nCHW: Tensor, images_nCHW: Tensor, factor_n: Tensor) -> Tensor:
    return blend(degenerate_nCHW.float(), images_nCHW.float(), factor_n[:, None, None, None])


def blend(degenerate: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    """`PIL.Image.blend`: `degenerate + factor * (image - degenerate)` in float32, clipped, truncated.

    Args:
        degenerate, image: float32 with whole values in 0..255.
        factor: float32; 0 gives the degenerate image, 1 the image, above 1 exaggerates it.

    Returns:
        uint8 of the broadcast shape.
    """
    return (image - degenerate).mul_(factor).add_(degenerate).clamp_(0, 255).to(torch.uint8)


def luma(images_nCHW: Tensor) -> Tensor:
    """`PIL.Image.convert("L")` (ITU-R 601-2 in 16-bit fixed point): uint8 [n, 1, H, W]."""
    if images_nCHW.shape[1] == 1:
        return images_nCHW
    red, green, blue = images_nCHW.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[:, None]


def smooth(images_nCHW: Tensor) -> Tensor:
    """`PIL.ImageFilter.SMOOTH`: 3 x 3 mean with weight 5 in the middle; the border stays as it is.

    The weighted mean is s / 13 with an integer s. Float32 gives the same result as Pillow despite rounding errors,
    because (s + 6.5) / 13 is never within 1 / 26 of an integer.
    """
    smoothed_nCHW = images_nCHW.clone()
    height, width = images_nCHW.shape[2:]
    if height < 3 or width < 3:
        return smoothed_nCHW
    levels = images_nCHW.float()
    rows = (levels[:, :, :-2] + levels[:, :, 1:-1]).add_(levels[:, :, 2:])
    total = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    total.add_(levels[:, :, 1:-1, 1:-1], alpha=4)
    smoothed_nCHW[:, :, 1:-1, 1:-1] = total.add_(6.5).div_(13).to(torch.uint8)
    return smoothed_nCHW


def unchanged(images_nCHW: Tensor, magnitude_n: Tensor) -> Tensor:
    """The images themselves."""
    return images_nCHW
