"""The transforms of a single PIL image: Pillow's own functions, which the batched kernels match bit for bit.

They are used as AutoAugment, timm and torchvision do for PIL images. For a single image they are several times
as fast as the kernels' torch code, and a PIL image needs no conversion.
"""

from collections.abc import Callable
from typing import Any

from PIL import Image, ImageEnhance, ImageOps

from ohl_accel.operations.kernels.geometry import FILL, Matrix
from ohl_accel.operations.transforms import PillowFunction


def affine(matrix: Callable[[float, int, int], Matrix]) -> PillowFunction:
    """`Image.transform(size, AFFINE)` with nearest neighbour, filled with grey.

    Args:
        matrix: (magnitude with its sign, height, width) -> the matrix.
    """

    def apply(image: Image.Image, magnitude: float) -> Image.Image:
        numbers = matrix(magnitude, image.height, image.width)
        return image.transform(image.size, Image.Transform.AFFINE, numbers, fillcolor=_grey(image))

    return apply


def enhance(kind: Callable[[Image.Image], Any]) -> PillowFunction:
    """One of the classes of `ImageEnhance`; the magnitude is its factor, 1 the image itself."""

    def apply(image: Image.Image, magnitude: float) -> Image.Image:
        enhanced: Image.Image = kind(image).enhance(magnitude)
        return enhanced

    return apply


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """`Image.rotate`, counter-clockwise, filled with grey."""
    return image.rotate(degrees, fillcolor=_grey(image))


def posterize(image: Image.Image, bits: float) -> Image.Image:
    """`ImageOps.posterize` with the integer part of the number of bits."""
    return ImageOps.posterize(image, int(bits))


def solarize(image: Image.Image, threshold: float) -> Image.Image:
    """`ImageOps.solarize` with the integer part of the threshold."""
    return ImageOps.solarize(image, int(threshold))


def auto_contrast(image: Image.Image, magnitude: float) -> Image.Image:
    """`ImageOps.autocontrast`."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, magnitude: float) -> Image.Image:
    """`ImageOps.equalize`."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, magnitude: float) -> Image.Image:
    """`ImageOps.invert`."""
    return ImageOps.invert(image)


def identity(image: Image.Image, magnitude: float) -> Image.Image:
    """A copy."""
    return image.copy()


color, contrast, sharpness, brightness = map(
    enhance, (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Sharpness, ImageEnhance.Brightness)
)


def _grey(image: Image.Image) -> int | tuple[int, int, int]:
    return FILL if image.mode == "L" else (FILL, FILL, FILL)
