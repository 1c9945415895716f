"""One element for each image of a batch on a GPU, in a single launch, compiled by Triton.

A program transforms an image, in blocks of pixels: it reads what the element needs to know about the whole image (a
sum, the extremes, a histogram), then computes every pixel of the result. The results are those of the torch code in
`geometry.py`, `tone.py` and `blend.py`, bit for bit; so products and sums must not be fused (`enable_fp_fusion`).

Shapes: B images, S kinds of steps, C channels, P pixels of H rows and W columns, all planes flat; curves of 256 levels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ohl_accel.operations.kernels import geometry, steps

AFFINE, CONTRAST, AUTO_CONTRAST = map(tl.constexpr, (steps.AFFINE, steps.CONTRAST, steps.AUTO_CONTRAST))
EQUALIZE, COLOR, SHARPNESS = map(tl.constexpr, (steps.EQUALIZE, steps.COLOR, steps.SHARPNESS))

_FILL = tl.constexpr(geometry.FILL)
_LARGEST_BLOCK = 1024


def apply(
    images_BCHW: Tensor,
    step_B: Tensor,
    kind_S: Tensor,
    factor_S: Tensor,
    curve_S256: Tensor,
    matrix_S6: Tensor,
) -> Tensor:
    """What each image becomes by its step.

    Args:
        images_BCHW: uint8, C = 1 or 3, contiguous, on a GPU; left unchanged.
        step_B: int32 in [0, S), here and below on the same device.
        kind_S: int32, one of the kinds in `steps.py`.
        factor_S: float32; of enhancement.
        curve_S256: uint8; of the curves that do not depend on the image, and each level itself for other kinds.
        matrix_S6: int32; affine maps in 16.16 fixed point.

    Returns:
        uint8 [B, C, H, W].
    """
    results_BCHW = images_BCHW.new_empty(images_BCHW.shape)
    B, channels, height, width = images_BCHW.shape
    block = min(triton.next_power_of_2(height * width), _LARGEST_BLOCK)
    with torch.cuda.device_of(images_BCHW):
        transform[(B,)](
            images_BCHW, results_BCHW, step_B, kind_S, factor_S, curve_S256, matrix_S6, height, width,
            channels=channels, block=block, enable_fp_fusion=False,
        )  # fmt: skip
    return results_BCHW


@triton.jit
def transform(
    images: tl.tensor,
    results: tl.tensor,
    step_B: tl.tensor,
    kind_S: tl.tensor,
    factor_S: tl.tensor,
    curve_S256: tl.tensor,
    matrix_S6: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """The program of one image."""
    pixels = height * width
    begin = tl.program_id(0).to(tl.int64) * channels * pixels
    source, target = images + begin, results + begin
    step = tl.load(step_B + tl.program_id(0))
    kind, factor = tl.load(kind_S + step), tl.load(factor_S + step)
    if kind == AFFINE:
        _move(source, target, matrix_S6 + step * 6, height, width, channels, block)
    elif kind == CONTRAST:
        _contrast(source, target, factor, pixels, channels, block)
    elif kind == AUTO_CONTRAST:
        _auto_contrast(source, target, pixels, channels, block)
    elif kind == EQUALIZE:
        _equalize(source, target, pixels, channels, block)
    elif kind == COLOR and channels == 3:
        _adjust_color(source, target, factor, pixels, block)
    elif kind == SHARPNESS:
        _sharpen(source, target, factor, height, width, channels, block)
    else:  # a curve; for Identity, and ColorAdjust of a grey image, each level itself
        for c in tl.static_range(channels):
            for first in range(0, pixels, block):
                at, used = _block(first, pixels, c, block)
                level = tl.load(source + at, used, 0).to(tl.int32)
                tl.store(target + at, tl.load(curve_S256 + step * 256 + level), used)


@triton.jit
def _block(first: tl.tensor, pixels: tl.tensor, c: tl.tensor, block: tl.constexpr) -> tl.tensor:
    """Where a block of pixels is in the image, and which of them are pixels of its channel."""
    p = first + tl.arange(0, block)
    return c * pixels + p, p < pixels


@triton.jit
def _blend(degenerate: tl.tensor, level: tl.tensor, factor: tl.tensor) -> tl.tensor:
    """As `blend.blend`."""
    value = (level - degenerate) * factor + degenerate
    return tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.int32).to(tl.uint8)


@triton.jit
def _luma(
    source: tl.tensor, at: tl.tensor, used: tl.tensor, pixels: tl.tensor, channels: tl.constexpr
) -> tl.tensor:
    """As `blend.luma`: int32."""
    red = tl.load(source + at, used, 0).to(tl.int32)
    if channels == 1:
        return red
    green = tl.load(source + at + pixels, used, 0).to(tl.int32)
    blue = tl.load(source + at + 2 * pixels, used, 0).to(tl.int32)
    return tl.where(used, (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16, 0)


@triton.jit
def _move(
    source: tl.tensor,
    target: tl.tensor,
    matrix_6: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """As `geometry.Affine`."""
    a0, a1, a2 = tl.load(matrix_6), tl.load(matrix_6 + 1), tl.load(matrix_6 + 2)
    a3, a4, a5 = tl.load(matrix_6 + 3), tl.load(matrix_6 + 4), tl.load(matrix_6 + 5)
    pixels = height * width
    for first in range(0, pixels, block):
        p, used = _block(first, pixels, 0, block)
        x, y = p % width, p // width
        column, row = (a0 * x + a1 * y + a2) >> 16, (a3 * x + a4 * y + a5) >> 16
        inside = used & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        index = tl.where(inside, row * width + column, 0)
        for c in tl.static_range(channels):
            level = tl.load(source + c * pixels + index, inside, _FILL)
            tl.store(target + c * pixels + p, level, used)


@triton.jit
def _contrast(
    source: tl.tensor,
    target: tl.tensor,
    factor: tl.tensor,
    pixels: tl.tensor,
    channels: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """As `tone.contrast`."""
    total = tl.zeros((), tl.int64)
    for first in range(0, pixels, block):
        at, used = _block(first, pixels, 0, block)
        total += tl.sum(_luma(source, at, used, pixels, channels), 0).to(tl.int64)
    mean = ((2 * total + pixels) // (2 * pixels)).to(tl.float32)
    for c in tl.static_range(channels):
        for first in range(0, pixels, block):
            at, used = _block(first, pixels, c, block)
            level = tl.load(source + at, used, 0).to(tl.float32)
            tl.store(target + at, _blend(mean, level, factor), used)


@triton.jit
def _auto_contrast(
    source: tl.tensor, target: tl.tensor, pixels: tl.tensor, channels: tl.constexpr, block: tl.constexpr
) -> None:
    """As `tone.auto_contrast`."""
    for c in tl.static_range(channels):
        lowest, highest = tl.full((), 255, tl.int32), tl.full((), 0, tl.int32)
        for first in range(0, pixels, block):
            at, used = _block(first, pixels, c, block)
            lowest = tl.minimum(lowest, tl.min(tl.load(source + at, used, 255).to(tl.int32), 0))
            highest = tl.maximum(highest, tl.max(tl.load(source + at, used, 0).to(tl.int32), 0))
        full, one = tl.full((), 255.0, tl.float64), tl.full((), 1.0, tl.float64)
        scale = full / tl.maximum((highest - lowest).to(tl.float64), one)
        offset = -lowest.to(tl.float64) * scale
        for first in range(0, pixels, block):
            at, used = _block(first, pixels, c, block)
            level = tl.load(source + at, used, 0)
            value = level.to(tl.int32).to(tl.float64) * scale + offset
            value = tl.minimum(tl.maximum(value, full - full), full)
            stretched = value.to(tl.int32).to(tl.uint8)
            tl.store(target + at, tl.where(highest > lowest, stretched, level), used)


@triton.jit
def _equalize(
    source: tl.tensor, target: tl.tensor, pixels: tl.tensor, channels: tl.constexpr, block: tl.constexpr
) -> None:
    """As `tone.equalize`."""
    levels_256 = tl.arange(0, 256)
    for c in tl.static_range(channels):
        histogram_256 = tl.zeros((256,), tl.int32)
        for first in range(0, pixels, block):
            at, used = _block(first, pixels, c, block)
            level = tl.load(source + at, used, 0).to(tl.int32)
            histogram_256 += tl.histogram(level, 256, mask=used)
        highest = tl.max(tl.where(histogram_256 > 0, levels_256, 0), 0)
        of_highest = tl.sum(tl.where(levels_256 == highest, histogram_256, 0), 0)
        step = (pixels - of_highest) // 255
        below_256 = tl.cumsum(histogram_256, 0) - histogram_256
        flattened_256 = tl.minimum((step // 2 + below_256) // tl.maximum(step, 1), 255)
        curve_256 = tl.where(step > 0, flattened_256, levels_256)
        for first in range(0, pixels, block):
            at, used = _block(first, pixels, c, block)
            level = tl.load(source + at, used, 0).to(tl.int32)
            tl.store(target + at, tl.gather(curve_256, level, 0).to(tl.uint8), used)


@triton.jit
def _adjust_color(
    source: tl.tensor, target: tl.tensor, factor: tl.tensor, pixels: tl.tensor, block: tl.constexpr
) -> None:
    """As `blend.adjust_color`."""
    for first in range(0, pixels, block):
        at, used = _block(first, pixels, 0, block)
        grey = _luma(source, at, used, pixels, 3).to(tl.float32)
        for c in tl.static_range(3):
            level = tl.load(source + at + c * pixels, used, 0).to(tl.float32)
            tl.store(target + at + c * pixels, _blend(grey, level, factor), used)


@triton.jit
def _sharpen(
    source: tl.tensor,
    target: tl.tensor,
    factor: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """As `blend.sharpen`: (s + 6.5) / 13 truncated is (s + 6) // 13 of the whole number s."""
    pixels = height * width
    for c in tl.static_range(channels):
        for first in range(0, pixels, block):
            at, used = _block(first, pixels, c, block)
            x, y = (at - c * pixels) % width, (at - c * pixels) // width
            within = used & (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
            level = tl.load(source + at, used, 0)
            total = 4 * level.to(tl.int32) + 6
            for down in tl.static_range(-1, 2):
                for across in tl.static_range(-1, 2):
                    total += tl.load(source + at + down * width + across, within, 0).to(tl.int32)
            smooth = tl.where(within, total // 13, level.to(tl.int32))
            blended = _blend(smooth.to(tl.float32), level.to(tl.float32), factor)
            tl.store(target + at, tl.where(within, blended, level), used)
