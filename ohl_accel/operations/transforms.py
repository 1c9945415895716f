"""Transforms, one row each: a `Transform` has everything that a search space needs to know about it.

The registry has the built-in rows (`ohl_accel.operations.table_1`) and those that users register. An element of
a space is a transform with one magnitude.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from ohl_accel.errors import did_you_mean

if TYPE_CHECKING:
    from ohl_accel.operations.kernels.family import Kernel

PillowFunction = Callable[[Image.Image, float], Image.Image]
"""(image of mode L or RGB, magnitude with its sign, or 0 if the transform has none) -> an image of the same mode and
size."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")


@dataclass(frozen=True)
class Magnitude:
    """What a transform's magnitude means, and which values are legal."""

    unit: str
    """Unit in words, such as `degrees`."""
    least: float
    greatest: float

    def __post_init__(self) -> None:
        if not -math.inf < self.least <= self.greatest < math.inf:
            raise ValueError(f"{self.least:g}..{self.greatest:g} is not a valid range of magnitudes")


@dataclass(frozen=True)
class Transform:
    """One row: everything about a transform."""

    name: str
    kernel: "Kernel"
    """The transform of a uint8 batch, on any device."""
    pillow: PillowFunction | None = None
    """The transform of one PIL image: the kernel's reference, bit for bit. None: the kernel on a batch of one."""
    magnitude: Magnitude | None = None
    """None: the transform has no magnitude."""
    signed: bool = False
    """Whether the magnitude is negated at random for each image (AutoAugment's convention)."""
    family: str | None = None
    """Transforms of a family change images in a similar way, so estimators may expect similar effects; how similar is
    learned. None: on its own. The paper's have `geometry`, `enhance` and `tone`: Pillow's `Image.transform`,
    `ImageEnhance` and `ImageOps`."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"transform name {self.name!r} must be a letter followed by letters, digits or _ (at most 40)"
            )
        if self.signed and (self.magnitude is None or self.magnitude.least < 0):
            raise ValueError(f"{self.name} is signed: it needs a magnitude whose minimum is at least 0")

    def check(self, magnitude: float | None) -> None:
        """Raise ValueError if this is not a legal magnitude of the transform."""
        legal = self.magnitude
        if legal is None:
            if magnitude is not None:
                raise ValueError(f"{self.name} has no magnitude, got {magnitude:g}")
            return
        allowed = f"{legal.least:g}..{legal.greatest:g} ({legal.unit})"
        if magnitude is None:
            raise ValueError(f"{self.name} needs a magnitude in {allowed}")
        if not legal.least <= magnitude <= legal.greatest:
            raise ValueError(f"{self.name} takes magnitudes in {allowed}, got {magnitude:g}")


@dataclass(frozen=True)
class Element:
    """An element of a search space: a transform with one magnitude.

    Raises:
        ValueError: for a magnitude that is not valid for the transform.
    """

    transform: Transform
    magnitude: float | None = None

    def __post_init__(self) -> None:
        self.transform.check(self.magnitude)

    @property
    def name(self) -> str:
        """Such as `Rotate 10` or `Invert`."""
        name = self.transform.name
        return name if self.magnitude is None else f"{name} {self.magnitude:g}"

    @property
    def signed(self) -> bool:
        """Whether the magnitude is negated at random for each image."""
        return self.transform.signed

    def value(self, negative: bool) -> float:
        """The magnitude with its sign; 0 if the transform has none."""
        if self.magnitude is None:
            return 0.0
        return -self.magnitude if negative and self.signed else self.magnitude


_registered: dict[str, Transform] = {}
_built_in: set[str] = set()


def register_transform(transform: Transform) -> Transform:
    """Register a transform by its name, for use in spaces and policy files.

    A name that was registered before is replaced (a notebook cell may run twice).

    Raises:
        ValueError: for the name of a built-in transform.
    """
    if transform.name in _built_in:
        raise ValueError(f"transform {transform.name} is built in: choose another name")
    _registered[transform.name] = transform
    return transform


def register_built_in(*transforms: Transform) -> None:
    """Register transforms that cannot be replaced."""
    for transform in transforms:
        register_transform(transform)
        _built_in.add(transform.name)


def transform_named(name: str) -> Transform:
    """The registered transform with this name.

    Raises:
        ValueError: if there is none; the message lists close names, or all.
    """
    if name not in _registered:
        hint = did_you_mean(name, _registered, 1, f"registered: {', '.join(_registered)}")
        raise ValueError(
            f"unknown transform {name[:60]!r}; {hint} (your own transforms must be registered first: "
            "`import` in the space's YAML file, or ohl_accel.operations.transforms.register_transform)"
        )
    return _registered[name]
