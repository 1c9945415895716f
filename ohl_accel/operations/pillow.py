"""The elements on one PIL image: Pillow's own functions, which the batched kernels equal bit for bit.

For a single image they are several times as fast as the kernels, and a PIL image needs no conversion.
"""

from collections.abc import Sequence

from PIL import Image, ImageEnhance, ImageOps

from ohl_accel.operations.elements import ELEMENTS, Element, elements_of
from ohl_accel.operations.kernels.geometry import FILL


def apply_operation(image: Image.Image, operation: int, negative: Sequence[bool]) -> Image.Image:
    """Apply both elements of an operation, the first, then the second (section 3.3).

    Args:
        image: of mode L or RGB; left unchanged.
        operation: in [0, 1296).
        negative: the signs of the first and of the second element.

    Returns:
        An image of the same mode and size.
    """
    for element, sign in zip(elements_of(operation), negative, strict=True):
        image = apply_element(image, ELEMENTS[element], sign)
    return image


def apply_element(image: Image.Image, element: Element, negative: bool) -> Image.Image:
    """Apply one row of Table 1 as AutoAugment, timm and torchvision do on PIL images."""
    match element.transform:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
    magnitude = element.magnitude
    assert magnitude is not None
    if negative and element.signed:
        magnitude = -magnitude
    match element.transform:
        case "HorizontalShear":
            return _affine(image, (1, magnitude, 0, 0, 1, 0))
        case "VerticalShear":
            return _affine(image, (1, 0, 0, magnitude, 1, 0))
        case "HorizontalTranslate":
            return _affine(image, (1, 0, magnitude * image.width, 0, 1, 0))
        case "VerticalTranslate":
            return _affine(image, (1, 0, 0, 0, 1, magnitude * image.height))
        case "Rotate":
            return image.rotate(magnitude, fillcolor=_grey(image))
        case "ColorAdjust":
            return ImageEnhance.Color(image).enhance(magnitude)
        case "Posterize":
            return ImageOps.posterize(image, int(magnitude))
        case "Solarize":
            return ImageOps.solarize(image, int(magnitude))
        case "Contrast":
            return ImageEnhance.Contrast(image).enhance(magnitude)
        case "Sharpness":
            return ImageEnhance.Sharpness(image).enhance(magnitude)
        case _:
            return ImageEnhance.Brightness(image).enhance(magnitude)


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=_grey(image))


def _grey(image: Image.Image) -> int | tuple[int, int, int]:
    return FILL if image.mode == "L" else (FILL, FILL, FILL)
