"""All elements of an operation in one call for each image, compiled for the CPU by numba.

The results are those of the torch code in `geometry.py`, `tone.py` and `blend.py`, bit for bit, and so Pillow's. An
image keeps what is to be done to it (up to two affine maps, then a curve of each channel) as long as it can, and its
pixels are moved once: curves compose into one, a curve rides on an affine map, and two maps compose by their source
indices. Only elements that depend on the pixels themselves (a histogram, a sum, a neighbourhood) need the pixels of
the step before.

All compiled functions are in this module: numba's cache on disk notices changes of a function's own file only.
Images are flat, and indices unsigned: numba lets signed ones wrap around, and loops would not become vector code.

Shapes: B images, A steps for each, C channels, H rows, W columns, P = H * W pixels, N = C * P levels of an image; S
kinds of steps; curves of 256 levels.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from ohl_accel.operations.kernels.geometry import FILL
from ohl_accel.operations.kernels.steps import (
    AFFINE,
    AUTO_CONTRAST,
    BLEND,
    COLOR,
    CONTRAST,
    CURVE,
    EQUALIZE,
    IDENTITY,
    POSTERIZE,
    SOLARIZE,
    TABLE,
)  # fmt: skip

Array = np.ndarray[Any, Any]

_ONE = 1 << 16
_FILL = np.uint8(FILL)
_F0, _F255 = np.float32(0), np.float32(255)
_FALSE: Any = np.bool_(False)
_TRUE: Any = np.bool_(True)
_U = np.uint64
_I = np.int32


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled when it is first called, and kept on disk: beside this file or, if that is read-only, in the user's
    cache folder (or NUMBA_CACHE_DIR); otherwise in each process. Dividing by 0 gives what it gives in torch."""
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:
        global kept
        kept = False
        return numba.njit(nogil=True, error_model="numpy")(function)


kept = True
"""Whether the compiled functions are kept on disk, so that only the first process waits for them."""


@jit
def apply(
    images_BN: Array,
    results_BN: Array,
    step_BA: Array,
    kind_S: Array,
    factor_S: Array,
    formula_S: Array,
    curve_S256: Array,
    matrix_S6: Array,
    height: int,
    width: int,
) -> None:
    """Write what each image becomes by its steps, one after the other.

    Args:
        images_BN: uint8, C = 1 or 3, read-only.
        results_BN: uint8; what is written.
        step_BA: int64 in [0, S).
        kind_S: uint8, one of the kinds in `steps.py`.
        factor_S: float32; of enhancement, or the number of a formula.
        formula_S: uint8; of the curves that do not depend on the image.
        curve_S256: uint8; of the curves that do not depend on the image.
        matrix_S6: int64; affine maps in 16.16 fixed point.
        height, width: H and W.
    """
    levels = images_BN.shape[1]
    channels = levels // (height * width)
    last = step_BA.shape[1] - 1
    scratch_2N = np.empty((2, levels), np.uint8)
    curve = np.empty(channels * 256, np.uint8)
    fill = np.empty(channels, np.uint8)
    histogram = np.empty(1024, np.uint32)
    rows_3W = np.empty((3, width), np.int32)
    maps_26 = np.empty((2, 6), np.int64)
    for b in range(images_BN.shape[0]):
        source, free = images_BN[b], 0  # the pixels so far, and the scratch that they are not in
        maps, curved = np.int64(0), _FALSE  # what is still to be done to them
        formula, mean, factor = np.uint8(TABLE), _F0, _F0  # of the curve, if it is a single one
        filled = False  # whether the fill has gone through a curve
        written = False
        for a in range(step_BA.shape[1]):
            step = step_BA[b, a]
            kind = kind_S[step]
            of_histogram = kind in (EQUALIZE, AUTO_CONTRAST)
            if kind == AFFINE:
                flush = maps == 2 or (maps == 1 and filled)
            else:
                flush = kind >= CONTRAST and (maps > 0 or (curved and not of_histogram))
            if flush:
                target = scratch_2N[free]
                _write(
                    source, target, maps, maps_26, curved, curve, formula, mean, factor, fill, rows_3W, height
                )  # fmt: skip
                source, free = target, 1 - free
                maps, curved, formula = np.int64(0), _FALSE, np.uint8(TABLE)
            if kind == AFFINE:
                for i in range(6):
                    maps_26[maps, i] = matrix_S6[step, i]
                for c in range(channels):
                    fill[c] = _FILL
                maps, filled = maps + 1, False
            elif kind == CURVE:
                formula = np.uint8(TABLE) if curved else formula_S[step]
                mean, factor = _F0, factor_S[step]
                _compose(curve, curved, curve_S256[step])
                for c in range(channels):
                    fill[c] = curve_S256[step, fill[c]] if maps else _FILL
                curved, filled = _TRUE, True
            elif of_histogram:
                _curves_of_histogram(source, curve, curved, histogram, kind == EQUALIZE)
                curved, formula = _TRUE, np.uint8(TABLE)
            elif kind == CONTRAST:
                mean, factor = _contrast(source, curve, factor_S[step]), factor_S[step]
                curved, formula = _TRUE, np.uint8(BLEND)
            elif kind != IDENTITY:
                written = a == last
                target = results_BN[b] if written else scratch_2N[free]
                if kind == COLOR:
                    _adjust_color(source, target, channels, factor_S[step])
                else:
                    _sharpen(source, target, height, width, factor_S[step])
                source, free = target, 1 - free
        if not written:
            target = results_BN[b]
            _write(source, target, maps, maps_26, curved, curve, formula, mean, factor, fill, rows_3W, height)


@jit
def _compose(curve: Array, curved: bool, then_256: Array) -> None:
    """Let a curve of all channels follow the curves so far."""
    for i in range(_U(len(curve))):
        curve[i] = then_256[curve[i]] if curved else then_256[i & _U(255)]


@jit
def _blend(degenerate: Any, level: Any, factor: Any) -> Any:
    """As `blend.blend`: in float32, clipped, truncated."""
    value = (level - degenerate) * factor + degenerate
    value = _F0 if value < _F0 else value
    value = _F255 if value > _F255 else value
    return np.uint8(_I(value))


@jit
def _luma(red: int, green: int, blue: int) -> Any:
    """As `blend.luma`, for one pixel."""
    total = _I(_I(red) * _I(19595) + _I(green) * _I(38470) + _I(blue) * _I(7471) + _I(0x8000))
    return _I(total >> 16)


@jit
def _adjust_color(source: Array, target: Array, channels: int, factor: float) -> None:
    """As `blend.adjust_color`, for one image."""
    if channels == 1:
        for i in range(_U(len(source))):
            target[i] = source[i]
        return
    pixels = _U(len(source)) // _U(3)
    for p in range(pixels):
        red, green, blue = source[p], source[pixels + p], source[_U(2) * pixels + p]
        grey = np.float32(_luma(red, green, blue))
        target[p] = _blend(grey, np.float32(_I(red)), factor)
        target[pixels + p] = _blend(grey, np.float32(_I(green)), factor)
        target[_U(2) * pixels + p] = _blend(grey, np.float32(_I(blue)), factor)


@jit
def _compute(source: Array, target: Array, formula: int, mean: float, factor: float) -> None:
    """A curve by its formula: that of Solarize and Invert, of Posterize, or of Brightness and Contrast."""
    if formula == SOLARIZE:
        threshold = _I(factor)
        for i in range(_U(len(source))):
            target[i] = source[i] if _I(source[i]) < threshold else ~source[i]
    elif formula == POSTERIZE:
        mask = np.uint8(_I(255) & (_I(-1) << (_I(8) - _I(factor))))
        for i in range(_U(len(source))):
            target[i] = source[i] & mask
    else:
        for i in range(_U(len(source))):
            target[i] = _blend(mean, np.float32(_I(source[i])), factor)


@jit
def _contrast(source: Array, curve: Array, factor: float) -> Any:
    """As `tone.contrast`: write the curve of one image; returns its mean grey level."""
    channels = _U(len(curve)) // _U(256)
    pixels = _U(len(source)) // channels
    total = _U(0)
    if channels == _U(1):
        for p in range(pixels):
            total += _U(source[p])
    else:
        for p in range(pixels):
            total += _U(_luma(source[p], source[pixels + p], source[_U(2) * pixels + p]))
    mean = np.float32(np.floor(np.float64(total) / np.float64(pixels) + 0.5))
    for i in range(_U(len(curve))):
        curve[i] = _blend(mean, np.float32(_I(i & _U(255))), factor)
    return mean


@jit
def _curves_of_histogram(source: Array, curve: Array, curved: bool, histogram: Array, flatten: bool) -> None:
    """The curve so far and Equalize or AutoContrast after it, from the histogram of each channel."""
    channels = _U(len(curve)) // _U(256)
    pixels = _U(len(source)) // channels
    total, then = np.empty(256, np.uint32), np.empty(256, np.uint8)
    for c in range(channels):
        lowest, highest = np.uint8(255), np.uint8(0)
        if not curved and not flatten:
            for p in range(c * pixels, (c + _U(1)) * pixels):
                lowest = min(lowest, source[p])
                highest = max(highest, source[p])
        else:
            _count(source, c * pixels, pixels, histogram)
            for level in range(_U(256)):
                total[level] = 0
            for level in range(_U(256)):
                seen = curve[c * _U(256) + level] if curved else np.uint8(level)
                total[seen] += histogram[level]
                if histogram[level]:
                    lowest, highest = min(lowest, seen), max(highest, seen)
        if flatten:
            _equalize(total, pixels, highest, then)
        else:
            _auto_contrast(lowest, highest, then)
        for level in range(_U(256)):
            i = c * _U(256) + level
            curve[i] = then[curve[i]] if curved else then[level]


@jit
def _count(source: Array, begin: int, pixels: int, histogram: Array) -> None:
    """The histogram of a part of an image, in the first 256 entries."""
    for i in range(_U(1024)):
        histogram[i] = 0
    for p in range(begin, begin + pixels // _U(4) * _U(4), _U(4)):  # equal levels in a row need not wait
        histogram[_U(source[p])] += np.uint32(1)
        histogram[_U(source[p + _U(1)]) + _U(256)] += np.uint32(1)
        histogram[_U(source[p + _U(2)]) + _U(512)] += np.uint32(1)
        histogram[_U(source[p + _U(3)]) + _U(768)] += np.uint32(1)
    for p in range(begin + pixels // _U(4) * _U(4), begin + pixels):
        histogram[source[p]] += np.uint32(1)
    for i in range(_U(256)):
        histogram[i] += histogram[i + _U(256)] + histogram[i + _U(512)] + histogram[i + _U(768)]


@jit
def _equalize(histogram_256: Array, pixels: int, highest: int, curve_256: Array) -> None:
    """As `tone.equalize`, for one channel."""
    step = np.uint32(np.uint32(pixels - _U(histogram_256[highest])) // np.uint32(255))
    below = np.uint32(step >> np.uint32(1))
    for level in range(_U(256)):
        curve_256[level] = min(np.uint32(below // step), np.uint32(255)) if step else level
        below = np.uint32(below + histogram_256[level])


@jit
def _auto_contrast(lowest: int, highest: int, curve_256: Array) -> None:
    """As `tone.auto_contrast`, for one channel."""
    scale = 255.0 / max(np.float64(highest) - np.float64(lowest), 1.0)
    offset = -np.float64(lowest) * scale
    for level in range(_U(256)):
        value: Any = np.float64(_I(level)) * scale + offset
        value = 0.0 if value < 0.0 else value
        value = 255.0 if value > 255.0 else value
        curve_256[level] = np.uint8(_I(value)) if highest > lowest else np.uint8(level)


@jit
def _sharpen(source: Array, target: Array, height: int, width: int, factor: float) -> None:
    """As `blend.sharpen`, for one image: (s + 6.5) / 13 truncated is (s + 6) // 13 of the whole number s."""
    above, rows, one = _U(width), _U(len(source)) // _U(width), _U(1)
    smooth_W = np.empty(width, np.uint8)  # in a loop of its own: levels make longer vectors than floats
    for row in range(rows):
        begin, end = row * above, (row + one) * above
        if row % _U(height) in (_U(0), _U(height - 1)) or width < 3:
            for i in range(begin, end):
                target[i] = source[i]
            continue
        for x in range(one, above - one):
            h, p, j = begin + x - above, begin + x, begin + x + above
            total = np.uint16(
                np.uint16(np.uint16(source[h - one]) + np.uint16(source[h]) + np.uint16(source[h + one]))
                + np.uint16(np.uint16(source[j - one]) + np.uint16(source[j]) + np.uint16(source[j + one]))
                + np.uint16(np.uint16(source[p - one]) + np.uint16(source[p + one]))
                + np.uint16(np.uint16(source[p]) * np.uint16(5) + np.uint16(6))
            )
            smooth_W[x] = np.uint8(np.uint16(total // np.uint16(13)))
        smooth_W[0], smooth_W[above - one] = source[begin], source[end - one]
        for x in range(above):
            target[begin + x] = _blend(np.float32(_I(smooth_W[x])), np.float32(_I(source[begin + x])), factor)


@jit
def _write(
    source: Array, target: Array, maps: int, maps_26: Array, curved: bool, curve: Array, formula: int,
    mean: float, factor: float, fill: Array, rows_3W: Array, height: int,
) -> None:  # fmt: skip
    """Do what is still to be done to the pixels of an image: up to two maps, then a curve."""
    channels = len(fill)
    pixels = _U(len(source)) // _U(channels)
    if maps == 0 and not curved:
        for i in range(_U(len(source))):
            target[i] = source[i]
    elif maps == 0 and formula != TABLE:
        _compute(source, target, formula, mean, factor)
    elif maps == 0:
        for c in range(_U(channels)):
            for i in range(c * pixels, (c + _U(1)) * pixels):
                target[i] = curve[c * _U(256) + _U(source[i])]
    elif _shifts_rows(maps_26[0]) and (maps == 1 or _shifts_rows(maps_26[1])):
        _shift(source, target, maps, maps_26, curved, curve, fill, height, rows_3W.shape[1])
    else:
        _gather(source, target, maps, maps_26, curved, curve, fill, rows_3W, height)


@jit
def _shifts_rows(matrix_6: Array) -> bool:
    """Whether each row is a part of another row: shears along the row, translations."""
    return matrix_6[0] == _ONE and matrix_6[3] == 0 and matrix_6[4] == _ONE  # type: ignore[no-any-return]


@jit
def _shift(
    source: Array, target: Array, maps: int, maps_26: Array, curved: bool,
    curve: Array, fill: Array, height: int, width: int,
) -> None:  # fmt: skip
    """Maps that make each row from a part of another row, and a curve."""
    for y in range(height):
        row, shift, begin, end = y, 0, 0, width
        for i in range(maps):  # the last map's source is what the map before it has made
            m = maps - 1 - i
            shift += (maps_26[m, 1] * row + maps_26[m, 2]) >> 16
            row += maps_26[m, 5] >> 16
            begin, end = max(begin, -shift), min(end, width - shift)
            if row < 0 or row >= height or begin >= end:
                row, shift, begin, end = 0, 0, 0, 0
                break
        for c in range(len(fill)):
            to, here = _U((c * height + y) * width), _U((c * height + row) * width + shift + begin)
            for i in range(to, to + _U(begin)):
                target[i] = fill[c]
            for i in range(to + _U(end), to + _U(width)):
                target[i] = fill[c]
            to += _U(begin)
            if curved:
                for i in range(_U(end - begin)):
                    target[to + i] = curve[_U(c * 256) + _U(source[here + i])]
            else:
                for i in range(_U(end - begin)):
                    target[to + i] = source[here + i]


@jit
def _gather(
    source: Array, target: Array, maps: int, maps_26: Array, curved: bool,
    curve: Array, fill: Array, rows_3W: Array, height: int,
) -> None:  # fmt: skip
    """Maps of any kind, and a curve; `geometry.py` says why these integers are Pillow's."""
    width = rows_3W.shape[1]
    pixels = _U(height * width)
    index_W, across_W, down_W = rows_3W[0], rows_3W[1], rows_3W[2]
    index_W[0] = _read(source)  # pixels are fetched across the rows, which takes twice as long from memory
    for x in range(_U(width)):
        across_W[x], down_W[x] = _I(x) * _I(maps_26[maps - 1, 0]), _I(x) * _I(maps_26[maps - 1, 3])
    for y in range(height):
        outside = _sources(y, height, maps, maps_26, index_W, across_W, down_W)
        begin, end = 0, width
        while begin < end and index_W[begin] < 0:
            begin += 1
        while end > begin and index_W[end - 1] < 0:
            end -= 1
        holes = outside > width - (end - begin)
        for c in range(len(fill)):
            to, plane, level_0, grey = _U((c * height + y) * width), _U(c) * pixels, _U(c * 256), fill[c]
            for i in range(to, to + _U(begin)):
                target[i] = grey
            for i in range(to + _U(end), to + _U(width)):
                target[i] = grey
            if holes:
                for i in range(_U(begin), _U(end)):
                    index = index_W[i]
                    level = source[plane + _U(max(index, _I(0)))]
                    level = curve[level_0 + _U(level)] if curved else level
                    target[to + i] = level if index >= _I(0) else grey
            elif curved:
                for i in range(_U(begin), _U(end)):
                    target[to + i] = curve[level_0 + _U(source[plane + _U(np.uint32(index_W[i]))])]
            else:
                for i in range(_U(begin), _U(end)):
                    target[to + i] = source[plane + _U(np.uint32(index_W[i]))]


@jit
def _read(source: Array) -> Any:
    """Bring an image into the cache, in order. The sum is returned lest the compiler leave this out."""
    total = _I(0)
    for i in range(_U(0), _U(len(source)), _U(64)):
        total = _I(total + _I(source[i]))
    return total


@jit
def _sources(
    y: int, height: int, maps: int, maps_26: Array, index_W: Array, across_W: Array, down_W: Array
) -> Any:
    """Write the index from which each pixel of a row comes, or -1 if that is outside; return how many are outside.

    All in int32, as vectors of eight: products with x are read, since numba would count x in int64.
    """
    width = len(index_W)
    rows, columns, outside = np.uint32(height), np.uint32(width), _I(0)
    x_0 = _I(maps_26[maps - 1, 1] * y + maps_26[maps - 1, 2])
    y_0 = _I(maps_26[maps - 1, 4] * y + maps_26[maps - 1, 5])
    a0, a1, a2 = _I(maps_26[0, 0]), _I(maps_26[0, 1]), _I(maps_26[0, 2])
    a3, a4, a5 = _I(maps_26[0, 3]), _I(maps_26[0, 4]), _I(maps_26[0, 5])
    for x in range(_U(width)):
        column, row = _I(_I(across_W[x] + x_0) >> _I(16)), _I(_I(down_W[x] + y_0) >> _I(16))
        inside = (np.uint32(column) < columns) & (np.uint32(row) < rows)
        if maps == 2:
            from_column = _I(_I(a0 * column + a1 * row + a2) >> _I(16))
            row = _I(_I(a3 * column + a4 * row + a5) >> _I(16))
            column = from_column
            inside &= (np.uint32(column) < columns) & (np.uint32(row) < rows)
        index_W[x] = _I(row * _I(width) + column) if inside else _I(-1)
        outside = _I(outside + _I(not inside))
    return outside
