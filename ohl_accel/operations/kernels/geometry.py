"""Elements that move pixels: shear, translate, rotate.

Each is `PIL.Image.transform(size, AFFINE, ..., resample=NEAREST, fillcolor=(128, 128, 128))`, with the
matrix of AutoAugment for shear and translate and of `PIL.Image.rotate` for rotate. Pillow computes
the source of each pixel in 16.16 fixed point (`affine_fixed` in libImaging/Geometry.c), so the same
integers give the same image on every device.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from ohl_accel.operations.elements import ELEMENTS, SIGNED_TRANSFORMS, Element

GEOMETRIC_TRANSFORMS = SIGNED_TRANSFORMS
FILL = 128
"""AutoAugment's grey, for pixels whose source lies outside the image."""

MAX_SIDE = 16_384
"""Longest side in pixels for which Pillow's fixed point, and this code's int32, hold for every element."""

_ONE = 1 << 16


def move_pixels(images_nCHW: Tensor, element_n: Tensor, negative_n: Tensor) -> Tensor:
    """Nearest-neighbour shear, translate or rotate of each image.

    Args:
        images_nCHW: uint8.
        element_n: geometric elements, int64 on the CPU.
        negative_n: bool on the CPU; negates the magnitude.

    Returns:
        uint8 [n, C, H, W].

    Raises:
        ValueError: for images with a side above `MAX_SIDE`.
    """
    n, channels, height, width = images_nCHW.shape
    if max(height, width) > MAX_SIDE:
        raise ValueError(f"images of {height} x {width} are too large: at most {MAX_SIDE} pixels a side")
    device = images_nCHW.device
    matrix_n6 = _fixed_point_matrices(height, width)[element_n, negative_n.long()]
    a0, a1, a2, a3, a4, a5 = matrix_n6.to(device, non_blocking=True).T[:, :, None, None]
    row_H1 = torch.arange(height, dtype=torch.int32, device=device)[:, None]
    column_W = torch.arange(width, dtype=torch.int32, device=device)
    source_column_nHW = (a0 * column_W + a1 * row_H1 + a2) >> 16
    source_row_nHW = (a3 * column_W + a4 * row_H1 + a5) >> 16
    inside_nHW = (
        (source_column_nHW >= 0)
        & (source_column_nHW < width)
        & (source_row_nHW >= 0)
        & (source_row_nHW < height)
    )
    source_nHW = torch.where(inside_nHW, source_row_nHW * width + source_column_nHW, 0)
    source_nCP = source_nHW.long().flatten(1)[:, None].expand(n, channels, height * width)
    moved_nCHW = images_nCHW.flatten(2).gather(2, source_nCP).view_as(images_nCHW)
    return torch.where(inside_nHW[:, None], moved_nCHW, FILL)


@lru_cache(maxsize=64)
def _fixed_point_matrices(height: int, width: int) -> Tensor:
    """int32 [36, 2, 6]: matrix of each element and sign in 16.16 fixed point (zeros: not geometric).

    Pillow samples at pixel centres: `a2 + a0 / 2 + a1 / 2` and `a5 + a3 / 2 + a4 / 2`, and rounds each
    number by `floor(65536 v + 0.5)` (affine_fixed). A pure translation it takes through another path,
    in floating point, which truncates (ImagingScaleAffine): the shift is then a whole number of pixels.
    """
    matrices = torch.zeros(len(ELEMENTS), 2, 6, dtype=torch.int32)
    for index, element in enumerate(ELEMENTS):
        if element.transform not in GEOMETRIC_TRANSFORMS:
            continue
        for negative in (False, True):
            a0, a1, a2, a3, a4, a5 = _affine_matrix(element, negative, height, width)
            if a1 == 0 and a3 == 0:
                fixed = [_ONE, 0, math.floor(a2 + 0.5) * _ONE, 0, _ONE, math.floor(a5 + 0.5) * _ONE]
            else:
                centred = (a0, a1, a2 + a0 * 0.5 + a1 * 0.5, a3, a4, a5 + a3 * 0.5 + a4 * 0.5)
                fixed = [math.floor(v * 65536.0 + 0.5) for v in centred]
            matrices[index, int(negative)] = torch.tensor(fixed, dtype=torch.int32)
    return matrices


def _affine_matrix(element: Element, negative: bool, height: int, width: int) -> tuple[float, ...]:
    """(a0..a5) so that the pixel at (x, y) comes from (a0 x + a1 y + a2, a3 x + a4 y + a5)."""
    assert element.magnitude is not None
    magnitude = -element.magnitude if negative else element.magnitude
    match element.transform:
        case "HorizontalShear":
            return 1.0, magnitude, 0.0, 0.0, 1.0, 0.0
        case "VerticalShear":
            return 1.0, 0.0, 0.0, magnitude, 1.0, 0.0
        case "HorizontalTranslate":
            return 1.0, 0.0, magnitude * width, 0.0, 1.0, 0.0
        case "VerticalTranslate":
            return 1.0, 0.0, 0.0, 0.0, 1.0, magnitude * height
        case _:
            return _rotation_matrix(magnitude, height, width)


def _rotation_matrix(degrees: float, height: int, width: int) -> tuple[float, ...]:
    """As `PIL.Image.Image.rotate` builds it: about the centre, counter-clockwise, 15 decimals."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    minus_sin = round(-math.sin(angle), 15)
    x, y = width / 2, height / 2
    return cos, sin, cos * -x + sin * -y + 0.0 + x, minus_sin, cos, minus_sin * -x + cos * -y + 0.0 + y
