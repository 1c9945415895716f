"""Comparisons (`ohl-accel compare`) of a run: those in which it, its policy or its recipe took part.

They are found beside the run folder, and above it for a run of a comparison.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.files import POLICY_FILE

COMPARISON_FILE = "comparison.json"
_RUNS = "runs"
_LEARNED = ("ohl", "ohl-fresh")
"""Contenders that learn with the recipe itself."""
_OF_ONE_RUN = frozenset({"run", "hub", "track", "train"})
"""Sections of a recipe in which a run may differ from a comparison by the same recipe."""


class Contender(BaseModel):
    """The part of a row of `comparison.json` that is shown; accuracies in 0..1."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    policy: str
    n: int
    mean: float
    difference: float | None = None
    """Mean paired difference from the reference; None for the reference itself."""
    t_interval: tuple[float, float] | None = None
    verdict: str = ""


class Comparison(BaseModel):
    """The part of `comparison.json` that is shown."""

    model_config = ConfigDict(frozen=True)

    reference: str
    command: str
    rows: list[Contender]
    recipe: dict[str, Any] = {}


@dataclass(frozen=True)
class Found:
    """A comparison that says something about a run."""

    folder: Path
    comparison: Comparison
    why: str
    """How the run is related to it, in words."""
    own: frozenset[str]
    """The contenders that are the run, or as the run."""

    @classmethod
    def of(cls, folder: Path, comparison: Comparison, run: Path, recipe: Recipe | None) -> Self | None:
        """The comparison in a folder, if it says something about a run."""
        names = [row.policy for row in comparison.rows]
        files = {run.resolve(), (run / POLICY_FILE).resolve()}
        itself = frozenset(name for name in names if "/" in name and Path(name).resolve() in files)
        if itself:
            return cls(folder, comparison, "this run's policy was compared with others", itself)
        if run.resolve().is_relative_to((folder / _RUNS).resolve()):
            part = run.resolve().relative_to((folder / _RUNS).resolve()).parts[0]
            own = frozenset(name for name in names if name == part)
            return cls(folder, comparison, "this run is one of a comparison", own)
        compared = comparison.recipe
        if recipe is not None and compared and _same(compared, recipe.model_dump(mode="json"), _OF_ONE_RUN):
            why = "the recipe of this run was compared, with seeds of its own"
            return cls(folder, comparison, why, frozenset(name for name in names if name in _LEARNED))
        return None


def comparisons_of(run: Path, recipe: Recipe | None) -> list[Found]:
    """The comparisons beside a run folder, or around it, that say something about the run; those that cannot be read
    are left out."""
    here = run.resolve()
    around = [folder.parent for folder in here.parents if folder.name == _RUNS]
    beside = sorted(file.parent for file in here.parent.glob(f"*/{COMPARISON_FILE}"))
    found = []
    for folder in dict.fromkeys([*around, *beside]):
        comparison = _read(folder / COMPARISON_FILE)
        related = Found.of(folder, comparison, run, recipe) if comparison is not None else None
        if related is not None:
            found.append(related)
    return found


def _read(path: Path) -> Comparison | None:
    try:
        return Comparison.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError, RecursionError):
        return None


def _same(one: Any, other: Any, ignored: frozenset[str] = frozenset()) -> bool:
    """Whether two settings agree where both are given: a run's recipe is completed with what was found in the data."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        names = (one.keys() | other.keys()) - ignored
        return all(_same(one.get(name), other.get(name)) for name in names)
    return one is None or other is None or one == other
