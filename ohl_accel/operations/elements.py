"""Table 1 of the paper: the 36 augmentation elements, and operations as ordered pairs of them.

This module is plain data. What an element does to pixels is in `ohl_accel.operations.kernels`.
"""

from dataclasses import dataclass

TABLE_1: tuple[tuple[str, tuple[float | None, ...]], ...] = (
    ("HorizontalShear", (0.1, 0.2, 0.3)),  # pixels of shift per pixel of height
    ("VerticalShear", (0.1, 0.2, 0.3)),
    ("HorizontalTranslate", (0.15, 0.3, 0.45)),  # fraction of the width
    ("VerticalTranslate", (0.15, 0.3, 0.45)),  # fraction of the height
    ("Rotate", (10.0, 20.0, 30.0)),  # degrees
    ("ColorAdjust", (0.3, 0.6, 0.9)),  # enhancement factor, 1 = the image itself
    ("Posterize", (4.4, 5.6, 6.8)),  # bits kept; whole bits, so 4, 5, 6
    ("Solarize", (26.0, 102.0, 179.0)),  # grey levels from this one on are inverted
    ("Contrast", (1.3, 1.6, 1.9)),  # enhancement factors
    ("Sharpness", (1.3, 1.6, 1.9)),
    ("Brightness", (1.3, 1.6, 1.9)),
    ("AutoContrast", (None,)),
    ("Equalize", (None,)),
    ("Invert", (None,)),
)
"""Transforms in the paper's order, each with its magnitudes (None: the transform has none)."""

SIGNED_TRANSFORMS = frozenset(
    {"HorizontalShear", "VerticalShear", "HorizontalTranslate", "VerticalTranslate", "Rotate"}
)
"""Transforms whose magnitude gets a random sign for every image (AutoAugment's convention)."""


@dataclass(frozen=True)
class Element:
    """One row of the search space: a transform with one magnitude (units as in `TABLE_1`)."""

    transform: str
    magnitude: float | None

    @property
    def name(self) -> str:
        """For people and tables, such as `Rotate 10` or `Invert`."""
        return self.transform if self.magnitude is None else f"{self.transform} {self.magnitude:g}"

    @property
    def signed(self) -> bool:
        """Whether the magnitude is negated at random, image by image."""
        return self.transform in SIGNED_TRANSFORMS


ELEMENTS: tuple[Element, ...] = tuple(
    Element(transform, magnitude) for transform, magnitudes in TABLE_1 for magnitude in magnitudes
)
"""The 36 elements; an element is referred to by its place in this tuple."""

NUM_ELEMENTS = len(ELEMENTS)
NUM_OPERATIONS = NUM_ELEMENTS**2
"""K = 36^2 = 1296 in the paper."""


def operation_of(first: int, second: int) -> int:
    """The operation that applies element `first`, then element `second`: `36 * first + second`."""
    return NUM_ELEMENTS * first + second


def elements_of(operation: int) -> tuple[int, int]:
    """The elements (first, second) of an operation: the inverse of `operation_of`."""
    return divmod(operation, NUM_ELEMENTS)


def operation_name(operation: int) -> str:
    """For people and tables, such as `Rotate 10 > Invert`."""
    first, second = elements_of(operation)
    return f"{ELEMENTS[first].name} > {ELEMENTS[second].name}"
