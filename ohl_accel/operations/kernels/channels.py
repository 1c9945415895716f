"""The channels of one image, side by side in PIL and numpy, one after the other in the compiled kernels.

Images are flat: uint8 [3 P] of P pixels, [4 P] if they are padded.
"""

import numpy as np

from ohl_accel.operations.kernels.compiled import Array, jit

_U = np.uint64


@jit
def split_channels(image_3P: Array, planes_3P: Array) -> None:
    """Write an image [H, W, 3] as [3, H, W]."""
    pixels = _U(len(image_3P)) // _U(3)
    for p in range(pixels):
        planes_3P[p] = image_3P[_U(3) * p]
        planes_3P[pixels + p] = image_3P[_U(3) * p + _U(1)]
        planes_3P[_U(2) * pixels + p] = image_3P[_U(3) * p + _U(2)]


@jit
def join_channels(planes_3P: Array, image_3P: Array) -> None:
    """The inverse of `split_channels`."""
    pixels = _U(len(image_3P)) // _U(3)
    for p in range(pixels):
        image_3P[_U(3) * p] = planes_3P[p]
        image_3P[_U(3) * p + _U(1)] = planes_3P[pixels + p]
        image_3P[_U(3) * p + _U(2)] = planes_3P[_U(2) * pixels + p]


@jit
def join_padded(planes_3P: Array, image_4P: Array) -> None:
    """The same with 255 after each pixel, as in the memory of a PIL image, which is copied in half the time."""
    pixels = _U(len(image_4P)) // _U(4)
    for p in range(pixels):
        image_4P[_U(4) * p] = planes_3P[p]
        image_4P[_U(4) * p + _U(1)] = planes_3P[pixels + p]
        image_4P[_U(4) * p + _U(2)] = planes_3P[_U(2) * pixels + p]
        image_4P[_U(4) * p + _U(3)] = 255
