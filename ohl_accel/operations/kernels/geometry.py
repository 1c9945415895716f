"""Kernels that move pixels: shear, translate, rotate.

Each is `PIL.Image.transform(size, AFFINE, ..., resample=NEAREST, fillcolor=(128, 128, 128))`, with the
matrix of AutoAugment for shear and translate and of `PIL.Image.rotate` for rotate. Pillow computes
the source of each pixel in 16.16 fixed point (`affine_fixed` in libImaging/Geometry.c), so the same
integers give the same image on every device.

Shapes: n images, C channels (1 grey, 3 RGB), H rows, W columns, P = H * W pixels; E elements of a space; matrices
of 6 numbers.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from ohl_accel.operations.kernels.around import send
from ohl_accel.operations.kernels.family import Family, Kernel
from ohl_accel.operations.transforms import Element

FILL = 128
"""AutoAugment's grey, for pixels whose source lies outside the image."""

MAX_SIDE = 16_384
"""Longest side in pixels for which Pillow's fixed point, and this code's int32, hold for every built-in element."""

Matrix = tuple[float, float, float, float, float, float]
"""(a0..a5): the pixel at (x, y) comes from (a0 x + a1 y + a2, a3 x + a4 y + a5)."""

_ONE = 1 << 16


@dataclass(frozen=True)
class Affine(Kernel):
    """A nearest-neighbour affine transform that does not scale."""

    matrix: Callable[[float, int, int], Matrix]
    """(magnitude with its sign, height, width) -> the matrix."""

    @property
    def family(self) -> Hashable:
        """One for all affine transforms."""
        return Affine

    def compile(self, elements: Sequence[Element]) -> Family:
        """A table of matrices for each image size that occurs."""
        return _Moves(elements)


class _Moves:
    """All affine elements of a space.

    Args:
        elements: of the space.
    """

    def __init__(self, elements: Sequence[Element]) -> None:
        self._matrices_of_size = lru_cache(maxsize=64)(partial(fixed_point_matrices, elements))

    def __call__(self, images_nCHW: Tensor, element_n: Tensor, negative_n: Tensor) -> Tensor:
        """Raises ValueError for images with a side above `MAX_SIDE`."""
        n, channels, height, width = images_nCHW.shape
        if max(height, width) > MAX_SIDE:
            raise ValueError(f"images of {height} x {width} are too large: at most {MAX_SIDE} pixels a side")
        device = images_nCHW.device
        matrix_n6 = self._matrices_of_size(height, width)[element_n, negative_n.long()]
        a0, a1, a2, a3, a4, a5 = send(matrix_n6, device).T[:, :, None, None]
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


def fixed_point_matrices(elements: Sequence[Element], height: int, width: int) -> Tensor:
    """int32 [E, 2, 6]: matrix of each element and sign in 16.16 fixed point (zeros: not affine)."""
    nothing = [[0] * 6] * 2
    rows = []
    for element in elements:
        kernel = element.transform.kernel
        if isinstance(kernel, Affine):
            pair = [kernel.matrix(element.value(negative), height, width) for negative in (False, True)]
            rows.append([fixed_point(matrix) for matrix in pair])
        else:
            rows.append(nothing)
    return torch.tensor(rows, dtype=torch.int32)


def fixed_point(matrix: Matrix) -> list[int]:
    """A matrix as used by Pillow's C code, in 16.16 fixed point.

    Pillow samples at pixel centres: `a2 + a0 / 2 + a1 / 2` and `a5 + a3 / 2 + a4 / 2`, and rounds each
    number by `floor(65536 v + 0.5)` (affine_fixed). For a pure translation it uses a different code path,
    in floating point, which truncates (ImagingScaleAffine): the shift is then a whole number of pixels.
    """
    a0, a1, a2, a3, a4, a5 = matrix
    if (a0, a1, a3, a4) == (1, 0, 0, 1):
        return [_ONE, 0, math.floor(a2 + 0.5) * _ONE, 0, _ONE, math.floor(a5 + 0.5) * _ONE]
    centred = (a0, a1, a2 + a0 * 0.5 + a1 * 0.5, a3, a4, a5 + a3 * 0.5 + a4 * 0.5)
    return [math.floor(v * 65536.0 + 0.5) for v in centred]


def horizontal_shear(magnitude: float, height: int, width: int) -> Matrix:
    """Pixels of shift per row."""
    return 1.0, magnitude, 0.0, 0.0, 1.0, 0.0


def vertical_shear(magnitude: float, height: int, width: int) -> Matrix:
    """Pixels of shift per column."""
    return 1.0, 0.0, 0.0, magnitude, 1.0, 0.0


def horizontal_translate(magnitude: float, height: int, width: int) -> Matrix:
    """A shift by a fraction of the width."""
    return 1.0, 0.0, magnitude * width, 0.0, 1.0, 0.0


def vertical_translate(magnitude: float, height: int, width: int) -> Matrix:
    """A shift by a fraction of the height."""
    return 1.0, 0.0, 0.0, 0.0, 1.0, magnitude * height


def rotate(degrees: float, height: int, width: int) -> Matrix:
    """As `PIL.Image.Image.rotate` builds it: about the centre, counter-clockwise, 15 decimals."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    minus_sin = round(-math.sin(angle), 15)
    x, y = width / 2, height / 2
    return cos, sin, cos * -x + sin * -y + 0.0 + x, minus_sin, cos, minus_sin * -x + cos * -y + 0.0 + y
