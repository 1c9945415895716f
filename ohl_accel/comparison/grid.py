"""What a sweep varies: a file of `recipes/ablations/`, one of your own, or `section.key=[values]` texts."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ohl_accel import plain_yaml
from ohl_accel.errors import UserError, did_you_mean
from ohl_accel.recipe.packaged import ABLATIONS, locate, packaged

_ALSO = "also"
_KEYS = {"recipe", "label", "points"}


@dataclass(frozen=True)
class Point:
    """One setting of a sweep."""

    values: Mapping[str, Any]
    """Field of the recipe -> value; the first field is the axis of the figure, others make lines of it."""
    also: Mapping[str, Any]
    """Further fields that this setting needs, which are not part of its name."""

    @property
    def name(self) -> str:
        """Such as `outer.lr=0.05`."""
        return " ".join(f"{field}={_text(value)}" for field, value in self.values.items())

    @property
    def overrides(self) -> list[str]:
        """What replaces values of the recipe."""
        return [f"{field}={_text(value)}" for field, value in {**self.values, **self.also}.items()]

    @property
    def x(self) -> Any:
        """The value on the axis."""
        return next(iter(self.values.values()))

    @property
    def line(self) -> str:
        """The other values, which it shares with the points of its line; "" if there are none."""
        return " ".join(f"{field}={_text(value)}" for field, value in [*self.values.items()][1:])


@dataclass(frozen=True)
class Grid:
    """The points of a sweep."""

    name: str
    recipe: str | None
    """The recipe that it varies, if the file names one."""
    label: str
    """Of the figure's axis."""
    points: Sequence[Point]


def read_grid(words: Sequence[str]) -> Grid:
    """A grid from a file or a name, or from `section.key=[value, ...]` texts, of which the product is taken.

    Raises:
        UserError: naming what is wrong.
    """
    if len(words) == 1 and "=" not in words[0]:
        return _read_file(words[0])
    axes: dict[str, list[Any]] = {}
    for word in words:
        field, equals, text = word.partition("=")
        try:
            values, problems = plain_yaml.parse(text) if equals else (None, [])
        except ValueError as error:
            raise UserError(f"--over {word}: {error}") from None
        if problems or not isinstance(values, list) or not values:
            raise UserError(f"--over {word}: must look like section.key=[value, value]")
        axes[field] = values
    points = [Point(dict(zip(axes, values, strict=True)), {}) for values in itertools.product(*axes.values())]
    return Grid("-".join(axes), None, next(iter(axes)), _different(points, " ".join(words)))


def _read_file(name: str) -> Grid:
    file = locate(name, ABLATIONS)
    known = packaged(ABLATIONS)
    try:
        document, problems = plain_yaml.parse(plain_yaml.read_text(file))
    except FileNotFoundError:
        hint = did_you_mean(name, known, otherwise=f"ablations that need no path: {', '.join(known)}")
        raise UserError(f"{name} does not exist; {hint}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be read: {error}") from None
    points = document.get("points") if isinstance(document, dict) else None
    if problems or not isinstance(points, list) or set(document) - _KEYS or "recipe" not in document:
        raise UserError(
            f"{name}: must have recipe, points and possibly label" + "".join(f"; {p}" for p in problems)
        )
    read = []
    for number, point in enumerate(points, 1):
        also = point.pop(_ALSO, {}) if isinstance(point, dict) else None
        if not isinstance(also, dict) or not point:
            raise UserError(
                f"{name}, point {number}: must be a mapping of fields to values, with `also` a mapping"
            )
        read.append(Point(point, also))
    fields = {tuple(point.values) for point in read}
    if len(fields) != 1:
        raise UserError(f"{name}: all points must give the same fields; put others under `also`")
    label = document.get("label") or next(iter(read[0].values))
    return Grid(file.stem, str(document["recipe"]), str(label), _different(read, name))


def _different(points: Sequence[Point], source: str) -> Sequence[Point]:
    names = [point.name for point in points]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{source}: {', '.join(repeated)} is given more than once")
    return points


def _text(value: Any) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | dict):
        return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
