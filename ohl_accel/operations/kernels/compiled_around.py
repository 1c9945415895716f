"""What is done to a batch before its operations and after them, compiled for the CPU by numba.

The results are those of the torch code in `around.py`, bit for bit. Images are flat, and indices unsigned, for the
reasons told in `compiled.py`; nothing of it is called here, since numba's cache would not notice its changes.

Shapes: B images, C channels, H rows, W columns, N = C * H * W levels of an image.
"""

from typing import Any

import numpy as np

from ohl_accel.operations.kernels.compiled import jit

Array = np.ndarray[Any, Any]

_U = np.uint64
_BLANK = np.float32(0)


@jit
def flip_crop(
    images_BN: Array, results_BN: Array, flip_B: Array, shift_B2: Array, height: int, width: int
) -> None:
    """Write each image flipped, then moved over a ground of zeros.

    Args:
        images_BN: uint8, read-only.
        results_BN: uint8; what is written.
        flip_B: int64: 1 for images that are flipped.
        shift_B2: int64: how much further down and to the right each pixel is read.
        height, width: H and W.
    """
    for b in range(images_BN.shape[0]):
        source, target = images_BN[b], results_BN[b]
        down, right = shift_B2[b, 0], shift_B2[b, 1]
        begin = min(max(-right, 0), width)
        end = max(min(width - right, width), begin)
        for c in range(source.shape[0] // (height * width)):
            for y in range(height):
                to, row = _U((c * height + y) * width), y + down
                if row < 0 or row >= height:
                    for i in range(to, to + _U(width)):
                        target[i] = 0
                    continue
                for i in range(to, to + _U(begin)):
                    target[i] = 0
                for i in range(to + _U(end), to + _U(width)):
                    target[i] = 0
                first = (c * height + row) * width
                to += _U(begin)
                if flip_B[b]:
                    here = _U(first + width - 1 - right - begin) if end > begin else _U(0)
                    for i in range(_U(end - begin)):
                        target[to + i] = source[here - i]
                else:
                    here = _U(first + right + begin) if end > begin else _U(0)
                    for i in range(_U(end - begin)):
                        target[to + i] = source[here + i]


@jit
def normalize_cutout(
    images_BN: Array,
    results_BN: Array,
    mean_C: Array,
    std_C: Array,
    corner_B2: Array,
    side: int,
    height: int,
    width: int,
) -> None:
    """Write each image normalized, with a square of zeros.

    Args:
        images_BN: uint8, read-only.
        results_BN: float32; what is written.
        mean_C, std_C: float32, of levels.
        corner_B2: int64: the first row and column of the square, which may extend beyond the border.
        side: of the square; 0: none.
        height, width: H and W.
    """
    for b in range(images_BN.shape[0]):
        source, target = images_BN[b], results_BN[b]
        top, left = corner_B2[b, 0], corner_B2[b, 1]
        begin = min(max(left, 0), width)
        end = max(min(left + side, width), begin)
        for c in range(len(mean_C)):
            mean, std = mean_C[c], std_C[c]
            first = _U(c * height * width)
            for i in range(first, first + _U(height * width)):
                target[i] = (np.float32(np.int32(source[i])) - mean) / std
            for y in range(max(top, 0), min(top + side, height)):
                row = first + _U(y * width)
                for i in range(row + _U(begin), row + _U(end)):
                    target[i] = _BLANK
