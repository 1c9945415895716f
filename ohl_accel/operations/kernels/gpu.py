"""All elements of an operation, and what comes before and after them, in a single launch on a GPU, by Triton.

A program makes one image. Nothing is stored between two elements: each pixel of the result is followed back through
them to the pixels of the given image that it comes from (`_levels`, which calls itself once for each element, and
`_given` at the end). Only the curves of elements that depend on the whole image (Contrast, AutoContrast, Equalize) are
made before (`_make_curve`) and kept in memory. So an image is read once, and once more for each such element, and
written once. The results are those of the torch code in `geometry.py`, `tone.py`, `blend.py` and `around.py`, bit for
bit; so products and sums must not be fused (`enable_fp_fusion`).

Shapes: B images, A elements for each, S kinds of steps, C channels in R rows (C, or 4 for 3: a power of 2), P pixels of
H rows and W columns, all planes flat; curves of 256 levels; a block of p pixels. D numbers are drawn for each image:
its A steps, and if the transforms around them are included, those of `around.Around.drawn`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ohl_accel.operations.kernels import geometry, steps

CURVE, COLOR, SHARPNESS = map(tl.constexpr, (steps.CURVE, steps.COLOR, steps.SHARPNESS))
CONTRAST, AUTO_CONTRAST = map(tl.constexpr, (steps.CONTRAST, steps.AUTO_CONTRAST))
EQUALIZE = tl.constexpr(steps.EQUALIZE)

_FILL = tl.constexpr(geometry.FILL)
_LARGEST_BLOCK, _WARPS = 512, 4
"""As many as leave a thread enough registers: four programs at a time on each multiprocessor of an H100."""


def apply(
    images_BCHW: Tensor,
    drawn_BD: Tensor,
    kind_S: Tensor,
    factor_S: Tensor,
    curve_S256: Tensor,
    matrix_S6: Tensor,
    *,
    arity: int,
    finish: tuple[Tensor, Tensor, int] | None = None,
) -> Tensor:
    """What each image becomes by its steps.

    Args:
        images_BCHW: uint8, C = 1 or 3, contiguous, on a GPU, at least one; left unchanged.
        drawn_BD: int32, contiguous, here and below on the same device; the steps are in [0, S).
        kind_S: int32, one of the kinds in `steps.py`.
        factor_S: float32; of enhancement.
        curve_S256: uint8; of the curves that do not depend on the image.
        matrix_S6: int32; affine maps in 16.16 fixed point, that of the identity for other kinds.
        arity: A.
        finish: float32 mean and standard deviation of each level, of C numbers each, and the side of Cutout's square;
            None: the result is that of the elements alone.

    Returns:
        uint8 [B, C, H, W]; or as `around.RawBatch.finish`, float32.
    """
    mean_C, std_C, side = finish or (None, None, 0)
    results_BCHW = torch.empty_like(images_BCHW, dtype=torch.float32 if finish else torch.uint8)
    B, channels, height, width = images_BCHW.shape
    rows = triton.next_power_of_2(channels)
    curves_BAR256 = images_BCHW.new_empty(B, arity, rows, 256)
    block = min(triton.next_power_of_2(height * width), _LARGEST_BLOCK)
    with torch.cuda.device_of(images_BCHW):
        transform[(B,)](
            images_BCHW, results_BCHW, drawn_BD, kind_S, factor_S, curve_S256, matrix_S6, curves_BAR256, mean_C, std_C,
            side, height, width, arity=arity, channels=channels, rows=rows, block=block, whole=finish is not None,
            num_warps=_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return results_BCHW


@triton.jit
def transform(
    images: tl.tensor,
    results: tl.tensor,
    drawn_BD: tl.tensor,
    kind_S: tl.tensor,
    factor_S: tl.tensor,
    curve_S256: tl.tensor,
    matrix_S6: tl.tensor,
    curves_BAR256: tl.tensor,
    mean_C: tl.tensor,
    std_C: tl.tensor,
    side: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    arity: tl.constexpr,
    channels: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    whole: tl.constexpr,
) -> None:
    """The program of one image."""
    number = tl.program_id(0).to(tl.int64)
    pixels = height * width
    source, target = images + number * channels * pixels, results + number * channels * pixels
    if whole:
        step_A = drawn_BD + number * (arity + 5)
        of_given = step_A + arity
        image = (source, tl.load(of_given), tl.load(of_given + 1), tl.load(of_given + 2), height, width)
        top, left = tl.load(of_given + 3), tl.load(of_given + 4)
    else:
        step_A = drawn_BD + number * arity
        image = (source, 0, 0, 0, height, width)
    curves = curves_BAR256 + number * (arity * rows * 256)
    tables = (step_A, kind_S, factor_S, curve_S256, matrix_S6, curves)
    for depth in tl.static_range(arity):
        _make_curve(image, tables, channels, rows, block, depth)
    c = tl.arange(0, rows)[:, None]
    for first in range(0, pixels, block):
        p = first + tl.arange(0, block)[None, :]
        x, y, used = p % width, p // width, p < pixels
        level = _levels(x, y, used, image, tables, channels, rows, block, arity)
        at, written = c * pixels + p, used & (c < channels)
        if whole:
            mean, std = tl.load(mean_C + c, c < channels, 0.0), tl.load(std_C + c, c < channels, 1.0)
            value = tl.div_rn(level.to(tl.float32) - mean, std)
            blank = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
            tl.store(target + at, tl.where(blank, 0.0, value), written)
        else:
            tl.store(target + at, level.to(tl.uint8), written)


@triton.jit
def _given(
    x: tl.tensor, y: tl.tensor, used: tl.tensor, image: tl.tuple, channels: tl.constexpr, rows: tl.constexpr
) -> tl.tensor:
    """The given image, flipped, shifted and filled with zeros: as `around.RawBatch.basic`; int32 [R, p]."""
    source, flipped, down, across, height, width = image
    row, column = y + down, x + across
    inside = used & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column += flipped * (width - 1 - 2 * column)
    c = tl.arange(0, rows)[:, None]
    at = c * (height * width) + row * width + column
    return tl.load(source + at, inside & (c < channels), 0).to(tl.int32)


@triton.jit
def _levels(
    x: tl.tensor,
    y: tl.tensor,
    used: tl.tensor,
    image: tl.tuple,
    tables: tl.tuple,
    channels: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    depth: tl.constexpr,
) -> tl.tensor:
    """What the first `depth` elements make of the image, at pixels (x, y): int32 [R, p], anything where unused."""
    if depth == 0:
        level = _given(x, y, used, image, channels, rows)
    else:
        step_A, kind_S, factor_S, curve_S256, matrix_S6, curves = tables
        height, width = image[4], image[5]
        step = tl.load(step_A + (depth - 1))
        kind, factor, matrix_6 = tl.load(kind_S + step), tl.load(factor_S + step), matrix_S6 + step * 6
        # as `geometry.Affine`; other kinds have the identity
        column = (tl.load(matrix_6) * x + tl.load(matrix_6 + 1) * y + tl.load(matrix_6 + 2)) >> 16
        row = (tl.load(matrix_6 + 3) * x + tl.load(matrix_6 + 4) * y + tl.load(matrix_6 + 5)) >> 16
        inside = used & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        # Sharpness needs 3 x 3 pixels, all others the middle one
        sharp = (kind == SHARPNESS).to(tl.int32)
        level = tl.full((rows, block), 0, tl.int32)
        total = level
        for near in range(4 - 4 * sharp, 5 + 4 * sharp):
            near_x, near_y = column + (near % 3 - 1), row + (near // 3 - 1)
            there = _levels(near_x, near_y, inside, image, tables, channels, rows, block, depth - 1)
            level = tl.where(near == 4, there, level)
            total += there
        if kind == SHARPNESS:  # as `blend.sharpen`
            # (s + 6.5) / 13 truncated is (s + 6) // 13 of the whole number s
            within = (column > 0) & (column < width - 1) & (row > 0) & (row < height - 1)
            smooth = (total + 4 * level + 6) // 13
            level = tl.where(within, _blend(smooth, level, factor), level)
        elif kind == COLOR and channels == 3:  # as `blend.adjust_color`
            level = _blend(_luma(level, rows)[None, :], level, factor)
        elif kind == CURVE:
            level = tl.load(curve_S256 + step * 256 + level).to(tl.int32)
        elif (kind == CONTRAST) | (kind == AUTO_CONTRAST) | (kind == EQUALIZE):
            curve = curves + ((depth - 1) * rows + tl.arange(0, rows)[:, None]) * 256
            level = tl.load(curve + level).to(tl.int32)
        level = tl.where(inside, level, _FILL)
    return level


@triton.jit
def _make_curve(
    image: tl.tuple,
    tables: tl.tuple,
    channels: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    depth: tl.constexpr,
) -> None:
    """If the element after the first `depth` depends on the whole image: its curve for each channel, in memory."""
    step_A, kind_S, factor_S, _, _, curves = tables
    step = tl.load(step_A + depth)
    kind, factor = tl.load(kind_S + step), tl.load(factor_S + step)
    if (kind == CONTRAST) | (kind == AUTO_CONTRAST) | (kind == EQUALIZE):
        height, width = image[4], image[5]
        pixels = height * width
        c, levels_1v = tl.arange(0, rows)[:, None], tl.arange(0, 256)[None, :]
        total = tl.full((), 0, tl.int64)
        lowest_R, highest_R = tl.full((rows,), 255, tl.int32), tl.full((rows,), 0, tl.int32)
        histogram_Rv = tl.full((rows, 256), 0, tl.int32)
        for first in range(0, pixels, block):
            p = first + tl.arange(0, block)
            used = p < pixels
            x, y, used_1p = (p % width)[None, :], (p // width)[None, :], used[None, :]
            level = _levels(x, y, used_1p, image, tables, channels, rows, block, depth)
            if kind == CONTRAST:
                total += tl.sum(tl.where(used, _luma(level, rows), 0), 0).to(tl.int64)
            elif kind == AUTO_CONTRAST:
                lowest_R = tl.minimum(lowest_R, tl.min(tl.where(used_1p, level, 255), 1))
                highest_R = tl.maximum(highest_R, tl.max(tl.where(used_1p, level, 0), 1))
            else:
                for channel in tl.static_range(channels):
                    of_channel = tl.sum(tl.where(c == channel, level, 0), 0)
                    counts_v = tl.histogram(of_channel, 256, mask=used)
                    histogram_Rv += tl.where(c == channel, counts_v[None, :], 0)
        if kind == CONTRAST:
            mean = ((2 * total + pixels) // (2 * pixels)).to(tl.int32)
            curve_Rv = _blend(mean, levels_1v, factor) + tl.full((rows, 256), 0, tl.int32)
        elif kind == AUTO_CONTRAST:
            curve_Rv = _stretched(levels_1v, lowest_R[:, None], highest_R[:, None])
        else:
            curve_Rv = _flattened(levels_1v, histogram_Rv, pixels)
        tl.store(curves + (depth * rows + c) * 256 + levels_1v, curve_Rv.to(tl.uint8))
        tl.debug_barrier()  # all threads read what all have written


@triton.jit
def _stretched(levels_1v: tl.tensor, lowest_R1: tl.tensor, highest_R1: tl.tensor) -> tl.tensor:
    """The curves of `tone.auto_contrast`."""
    full, one = tl.full((), 255.0, tl.float64), tl.full((), 1.0, tl.float64)
    scale = full / tl.maximum((highest_R1 - lowest_R1).to(tl.float64), one)
    value = levels_1v.to(tl.float64) * scale + -lowest_R1.to(tl.float64) * scale
    value = tl.minimum(tl.maximum(value, full - full), full)
    return tl.where(highest_R1 > lowest_R1, value.to(tl.int32), levels_1v)


@triton.jit
def _flattened(levels_1v: tl.tensor, histogram_Rv: tl.tensor, pixels: tl.tensor) -> tl.tensor:
    """The curves of `tone.equalize`."""
    highest_R1 = tl.max(tl.where(histogram_Rv > 0, levels_1v, 0), 1)[:, None]
    of_highest_R1 = tl.sum(tl.where(levels_1v == highest_R1, histogram_Rv, 0), 1)[:, None]
    step_R1 = (pixels - of_highest_R1) // 255
    below_Rv = tl.cumsum(histogram_Rv, 1) - histogram_Rv
    flattened_Rv = tl.minimum((step_R1 // 2 + below_Rv) // tl.maximum(step_R1, 1), 255)
    return tl.where(step_R1 > 0, flattened_Rv, levels_1v)


@triton.jit
def _blend(degenerate: tl.tensor, level: tl.tensor, factor: tl.tensor) -> tl.tensor:
    """As `blend.blend`, of whole numbers: int32."""
    from_ = degenerate.to(tl.float32)
    value = (level.to(tl.float32) - from_) * factor + from_
    return tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.int32)


@triton.jit
def _luma(level_Rp: tl.tensor, rows: tl.constexpr) -> tl.tensor:
    """As `blend.luma`: int32 [p]."""
    if rows == 1:
        return tl.sum(level_Rp, 0)
    c = tl.arange(0, rows)[:, None]
    weight = tl.where(c == 0, 19595, tl.where(c == 1, 38470, tl.where(c == 2, 7471, 0)))
    return (tl.sum(level_Rp * weight, 0) + 0x8000) >> 16
