"""Learned policies that come with the package: `Policy.from_pretrained("zoo:NAME")`.

Each is a `policy.json` in this folder, whose provenance says where it was learned, and says what it was shown to gain:
an object `gain` with

| key | what |
|---|---|
| command | that measured it |
| data | what was trained on, in words |
| seeds | of the pairs, at least 2 |
| learned, uniform | test accuracy in 0..1 of training with this policy, and with the uniform one, for each seed |
| difference | mean of learned minus uniform |
| interval | its 95 % interval (Student's t), above 0 |

`benchmarks/zoo_entry.py` makes such a file from the results of `ohl-accel compare`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isclose, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from ohl_accel.errors import did_you_mean

PREFIX = "zoo:"
FOLDER = Path(__file__).resolve().parent
"""Where the files are."""
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a policy of the zoo was shown to be worth; accuracies in 0..1."""

    command: str
    data: str
    seeds: tuple[int, ...]
    learned: tuple[float, ...]
    uniform: tuple[float, ...]
    difference: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{100 * self.difference:+.2f} points of test accuracy over uniform ({100 * low:+.2f} to "
            f"{100 * high:+.2f}, {len(self.seeds)} seeds): {self.data}"
        )


def names() -> list[str]:
    """The policies that come with the package, as in `zoo:NAME`."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def path_of(name: str) -> Path:
    """The file of a policy.

    Args:
        name: with `zoo:` before it.

    Raises:
        ValueError: if there is none; the message lists the known ones.
    """
    own = name.removeprefix(PREFIX)
    path = FOLDER / f"{own}.json"
    if _NAME.fullmatch(own) and path.is_file():
        return path
    known = [PREFIX + other for other in names()]
    hint = did_you_mean(name, known, 1)
    there = f"known: {', '.join(known)}" if known else "this version comes with none"
    raise ValueError(f"there is no policy {name}; {f'{hint} ' if hint else ''}{there}")


def gain_of(provenance: Mapping[str, Any]) -> Gain:
    """What a policy was shown to gain, from its provenance, checked.

    Raises:
        ValueError: if it is missing or incomplete, contradicts itself, or does not show a gain.
    """
    given = provenance.get("gain")
    if not isinstance(given, Mapping):
        raise ValueError(
            "its provenance has no `gain`, an object that says what the policy was shown to gain"
        )
    for key in ("command", "data"):
        if not isinstance(given.get(key), str) or not given[key]:
            raise ValueError(f"gain.{key} must be a text, got {given.get(key)!r}")
    seeds = given.get("seeds")
    if not isinstance(seeds, list) or len(seeds) < 2 or len({*map(str, seeds)}) < len(seeds):
        raise ValueError(f"gain.seeds must list at least 2 different seeds, got {seeds!r}")
    learned, uniform = (_numbers(given, key, len(seeds)) for key in ("learned", "uniform"))
    (difference,) = _numbers({"difference": [given.get("difference")]}, "difference", 1)
    low, high = _numbers(given, "interval", 2)
    mean = fmean(learned) - fmean(uniform)
    if not isclose(difference, mean, abs_tol=1e-6):
        raise ValueError(f"gain.difference is {difference:g}, but learned minus uniform is {mean:g}")
    if not 0 < low <= difference <= high:
        raise ValueError(f"gain.interval must lie above 0, around {difference:g}, got {[low, high]}")
    return Gain(
        command=given["command"],
        data=given["data"],
        seeds=tuple(seeds),
        learned=learned,
        uniform=uniform,
        difference=difference,
        interval=(low, high),
    )


def _numbers(given: Mapping[str, Any], key: str, length: int) -> tuple[float, ...]:
    values = given.get(key)
    is_list = isinstance(values, list) and len(values) == length
    if not is_list or not all(type(value) in (int, float) and isfinite(value) for value in values or ()):
        raise ValueError(f"gain.{key} must have {length} finite numbers, got {values!r}")
    return tuple(float(value) for value in values or ())
