"""The transforms of the paper's Table 1, one row each, and Identity, which is not in it."""

from ohl_accel.operations import pillow
from ohl_accel.operations.kernels import blend, geometry, tone
from ohl_accel.operations.kernels.family import EachImage
from ohl_accel.operations.kernels.geometry import Affine
from ohl_accel.operations.kernels.tone import Curve, ImageCurve
from ohl_accel.operations.transforms import Element, Magnitude, Transform, register_built_in

SHEAR = Magnitude("pixels of shift per pixel across", 0, 1)
TRANSLATION = Magnitude("fraction of the side", 0, 1)
FACTOR = Magnitude("enhancement factor, 1 = the image itself", 0, 10)

_ROWS: tuple[tuple[Transform, tuple[float | None, ...]], ...] = (
    (
        Transform(
            "HorizontalShear",
            kernel=Affine(geometry.horizontal_shear),
            pillow=pillow.affine(geometry.horizontal_shear),
            magnitude=SHEAR,
            signed=True,
            family="geometry",
        ),
        (0.1, 0.2, 0.3),
    ),
    (
        Transform(
            "VerticalShear",
            kernel=Affine(geometry.vertical_shear),
            pillow=pillow.affine(geometry.vertical_shear),
            magnitude=SHEAR,
            signed=True,
            family="geometry",
        ),
        (0.1, 0.2, 0.3),
    ),
    (
        Transform(
            "HorizontalTranslate",
            kernel=Affine(geometry.horizontal_translate),
            pillow=pillow.affine(geometry.horizontal_translate),
            magnitude=TRANSLATION,
            signed=True,
            family="geometry",
        ),
        (0.15, 0.3, 0.45),
    ),
    (
        Transform(
            "VerticalTranslate",
            kernel=Affine(geometry.vertical_translate),
            pillow=pillow.affine(geometry.vertical_translate),
            magnitude=TRANSLATION,
            signed=True,
            family="geometry",
        ),
        (0.15, 0.3, 0.45),
    ),
    (
        Transform(
            "Rotate",
            kernel=Affine(geometry.rotate),
            pillow=pillow.rotate,
            magnitude=Magnitude("degrees, counter-clockwise", 0, 180),
            signed=True,
            family="geometry",
        ),
        (10.0, 20.0, 30.0),
    ),
    (
        Transform(
            "ColorAdjust",
            kernel=EachImage(blend.adjust_color),
            pillow=pillow.color,
            magnitude=FACTOR,
            family="enhance",
        ),
        (0.3, 0.6, 0.9),
    ),
    (
        Transform(
            "Posterize",
            kernel=Curve(tone.posterize),
            pillow=pillow.posterize,
            magnitude=Magnitude("bits kept, integer part", 1, 8),
            family="tone",
        ),
        (4.4, 5.6, 6.8),
    ),
    (
        Transform(
            "Solarize",
            kernel=Curve(tone.solarize),
            pillow=pillow.solarize,
            magnitude=Magnitude("grey level from which levels are inverted, integer part", 0, 256),
            family="tone",
        ),
        (26.0, 102.0, 179.0),
    ),
    (
        Transform(
            "Contrast",
            kernel=ImageCurve(tone.contrast),
            pillow=pillow.contrast,
            magnitude=FACTOR,
            family="enhance",
        ),
        (1.3, 1.6, 1.9),
    ),
    (
        Transform(
            "Sharpness",
            kernel=EachImage(blend.sharpen),
            pillow=pillow.sharpness,
            magnitude=FACTOR,
            family="enhance",
        ),
        (1.3, 1.6, 1.9),
    ),
    (
        Transform(
            "Brightness",
            kernel=Curve(tone.brighten),
            pillow=pillow.brightness,
            magnitude=FACTOR,
            family="enhance",
        ),
        (1.3, 1.6, 1.9),
    ),
    (
        Transform(
            "AutoContrast", kernel=ImageCurve(tone.auto_contrast), pillow=pillow.auto_contrast, family="tone"
        ),
        (None,),
    ),
    (Transform("Equalize", kernel=ImageCurve(tone.equalize), pillow=pillow.equalize, family="tone"), (None,)),
    (Transform("Invert", kernel=Curve(tone.invert), pillow=pillow.invert, family="tone"), (None,)),
)
"""In the paper's order, each with the magnitudes of Table 1 (None: the transform has none)."""

IDENTITY = Transform("Identity", kernel=EachImage(blend.unchanged), pillow=pillow.identity)
"""Leaves the image unchanged."""

TABLE_1: tuple[Element, ...] = tuple(
    Element(transform, magnitude) for transform, magnitudes in _ROWS for magnitude in magnitudes
)
"""The 36 elements of the paper."""

register_built_in(*(transform for transform, _ in _ROWS), IDENTITY)
