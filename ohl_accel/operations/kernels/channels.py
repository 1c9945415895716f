"""The channels of one image, side by side in PIL and numpy, one after the other in the compiled kernels.

Both images are flat: uint8 [3 P] of P pixels.
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
