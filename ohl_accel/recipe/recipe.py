"""A recipe as a whole: read from a file and overrides, checked at once, frozen."""

import copy
import difflib
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, Self, TypeAlias, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from ohl_accel.errors import UserError
from ohl_accel.recipe.reading import override, read_yaml
from ohl_accel.recipe.sections import (
    AugmentSection,
    DataSection,
    HubSection,
    InnerSection,
    ModelSection,
    OuterSection,
    RunSection,
    Section,
    Trackers,
    TrainSection,
)

Path: TypeAlias = tuple[str, ...]
"""Of a field inside the recipe, such as `("outer", "steps")`."""


SHARDED_OPTIMIZERS = (
    "sgd",
    "momentum",
    "sgdw",
    "adam",
    "adamw",
    "nadamw",
    "adopt",
    "adan",
    "lion",
    "rmsproptf",
)
"""They treat each number by itself, so that each process can do so with its part."""


class Recipe(Section):
    """One run, whole."""

    run: RunSection
    data: DataSection
    model: ModelSection
    inner: InnerSection
    outer: OuterSection
    objective: str = Field(default="classification", min_length=1)
    """What the network learns and how it is scored: `classification` (cross-entropy, accuracy), `multilabel` (binary
    cross-entropy, mean average precision), or a class of your own, `package.module:Name` or `path/to/file.py:Name`,
    derived from `ohl_accel.engine.objective.Objective`."""
    augment: AugmentSection = AugmentSection()
    train: TrainSection = TrainSection()
    hub: HubSection = HubSection()
    track: Trackers = ()

    @classmethod
    def load(cls, path: str, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML recipe, apply dotted overrides, check everything.

        Raises:
            UserError: one message with every problem of the file and the overrides.
        """
        values, problems = read_yaml(path)
        for text in overrides:
            problems += override(values, text)
        return cls.check(values, path, problems)

    @classmethod
    def of(
        cls, recipe: "str | PathLike[str] | Mapping[str, Any] | Recipe", overrides: Sequence[str] = ()
    ) -> Self:
        """The recipe that is meant by a path, by plain values, or by a recipe itself, with dotted overrides.

        Raises:
            UserError: one message with every problem.
        """
        if isinstance(recipe, str | PathLike):
            return cls.load(os.fspath(recipe), overrides)
        values = copy.deepcopy(recipe.model_dump() if isinstance(recipe, Recipe) else dict(recipe))
        return cls.check(
            values, problems=[problem for text in overrides for problem in override(values, text)]
        )

    @classmethod
    def check(cls, values: dict[str, Any], source: str = "recipe", problems: Sequence[str] = ()) -> Self:
        """Validate plain values.

        Raises:
            UserError: one message with every problem, those in `problems` first.
        """
        found = list(problems)
        recipe, wrong = _validate(cls, values)
        found += [f"{'.'.join(path)}: {message}" for path, message in wrong]
        # rules between fields are checked even if other fields are wrong: their place is taken by a
        # value that is certainly right, and rules that look at them are left out
        candidate, repaired = recipe, values
        for _ in range(3):
            if candidate is None:
                repaired = _repaired(repaired, [path for path, _ in _validate(cls, repaired)[1]])
                candidate, _ = _validate(cls, repaired)
        if candidate is not None:
            bad = {".".join(path) for path, _ in wrong}
            found += [text for fields, text in _rules(candidate) if not bad.intersection(fields)]
        if found or recipe is None:
            count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
            raise UserError("\n  ".join([f"{source}: {count}", *found]))
        return recipe

    def with_values(self, **changes: Mapping[str, Any]) -> Self:
        """A copy in which fields of sections have other values: `with_values(data={"channels": 3})`."""
        values = self.model_dump()
        for section, fields in changes.items():
            values[section].update(fields)
        return type(self).check(values)

    def to_yaml(self) -> str:
        """YAML that `load` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


RecipeType = TypeVar("RecipeType", bound=Recipe)


def _rules(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """What several fields must fulfil together: (the fields, what is wrong)."""
    data, outer, inner, hub = recipe.data, recipe.outer, recipe.inner, recipe.hub
    optimizer, schedule = inner.optimizer, inner.schedule
    if outer.groups and outer.trajectories % outer.groups:
        fit = [g for g in range(1, outer.trajectories + 1) if outer.trajectories % g == 0]
        yield (
            ("outer.groups", "outer.trajectories"),
            f"outer.groups={outer.groups} does not divide outer.trajectories={outer.trajectories}: "
            f"use one of {fit}",
        )
    if data.heldout is not None and data.heldout_split is not None:
        yield (
            ("data.heldout", "data.heldout_split"),
            "data.heldout, data.heldout_split: give only one of them (images that score the trajectories)",
        )
    if data.heldout_split is not None and data.heldout_split in (data.train_split, data.test_split):
        yield (
            ("data.heldout_split", "data.train_split", "data.test_split"),
            f"data.heldout_split={data.heldout_split!r} is also the training or the test split",
        )
    if data.test_split is not None and data.test_split == data.train_split and data.test_path is None:
        yield (
            ("data.test_split", "data.train_split", "data.test_path"),
            f"data.test_split={data.test_split!r} is also the training split; null means that there is none",
        )
    if data.test_path is not None and data.test_split is None:
        yield (
            ("data.test_path", "data.test_split"),
            "data.test_path: has no effect while data.test_split is null",
        )
    if (data.mean is None) != (data.std is None) or len(data.mean or ()) != len(data.std or ()):
        yield ("data.mean", "data.std"), "data.mean, data.std: give both, of one length, or neither"
    if data.std is not None and min(data.std, default=1.0) <= 0:
        yield ("data.std",), f"data.std={list(data.std)}: must be above 0"
    yield from _rules_of_crops(recipe)
    if recipe.model.shard and recipe.model.compile:
        yield (
            ("model.shard", "model.compile"),
            "model.shard, model.compile: cannot be used together; give only one of them",
        )
    if recipe.model.shard and optimizer.name not in SHARDED_OPTIMIZERS:
        yield (
            ("model.shard", "inner.optimizer.name"),
            f"inner.optimizer.name={optimizer.name}: may need whole tensors, but model.shard leaves parts; "
            f"use one of {', '.join(SHARDED_OPTIMIZERS)}",
        )
    if optimizer.nesterov and (optimizer.name != "sgd" or optimizer.momentum == 0):
        yield (
            ("inner.optimizer.nesterov", "inner.optimizer.name", "inner.optimizer.momentum"),
            "inner.optimizer.nesterov: needs name sgd and a momentum above 0",
        )
    if (schedule.name == "multistep") != bool(schedule.milestones):
        yield (
            ("inner.schedule.name", "inner.schedule.milestones"),
            f"inner.schedule.milestones={list(schedule.milestones)} does not go with "
            f"inner.schedule.name={schedule.name}: multistep needs them, no other takes them",
        )
    if hub.repo is None and hub != HubSection():
        given = next(name for name, value in HubSection() if getattr(hub, name) != value)
        yield (f"hub.{given}", "hub.repo"), f"hub.{given}: has no effect without hub.repo"
    if outer.inner_steps == "epoch" and schedule.warmup_epochs >= outer.steps:
        yield (
            ("inner.schedule.warmup_epochs", "outer.steps", "outer.inner_steps"),
            f"inner.schedule.warmup_epochs={schedule.warmup_epochs:g} is not below the {outer.steps} "
            "epochs of the run (outer.steps)",
        )


def _rules_of_crops(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    data, crop = recipe.data, recipe.augment.random_resized_crop
    if crop is not None and data.image_size is None:
        yield (
            ("augment.random_resized_crop", "data.image_size"),
            "augment.random_resized_crop: needs data.image_size, the size of what is cut out",
        )
    if crop is not None and data.in_memory is True:
        yield (
            ("augment.random_resized_crop", "data.in_memory"),
            "augment.random_resized_crop: decodes images anew each time, so data.in_memory cannot be true",
        )
    if data.crop_pct != 1.0 and (data.image_size is None or data.crop_mode != "center"):
        yield (
            ("data.crop_pct", "data.image_size", "data.crop_mode"),
            f"data.crop_pct={data.crop_pct:g}: needs data.image_size, and data.crop_mode=center",
        )
    for name in ("scale", "ratio") if crop is not None else ():
        least, greatest = getattr(crop, name)
        if least > greatest:
            yield (
                ("augment.random_resized_crop",),
                f"augment.random_resized_crop.{name}=[{least:g}, {greatest:g}]: the first must not be greater",
            )


_CERTAINLY_RIGHT: dict[str, Any] = {
    "run": {"dir": "run"},
    "data": {"path": "data", "heldout": 1},
    "model": {"name": "network"},
    "inner": {"batch_size": 1, "optimizer": {"lr": 1.0}},
    "outer": {"steps": 1_000_000},
}


def _repaired(values: Any, wrong: Sequence[Path]) -> dict[str, Any]:
    """A deep copy in which wrong values have gone, and required ones that lack are `_CERTAINLY_RIGHT`."""

    def copy(value: Any, right: Any, path: Path) -> Any:
        if path in wrong and not (isinstance(value, dict) and isinstance(right, dict)):
            return right
        if not isinstance(value, dict):
            return value
        right = right if isinstance(right, dict) else {}
        keys = [key for key in value if (*path, key) not in wrong or key in right]
        lacking = [key for key in right if (*path, key) in wrong and key not in value]
        return {key: copy(value.get(key), right.get(key), (*path, str(key))) for key in [*keys, *lacking]}

    copied = copy(values, _CERTAINLY_RIGHT, ())
    return copied if isinstance(copied, dict) else {}


def _validate(model: type[RecipeType], values: Any) -> tuple[RecipeType | None, list[tuple[Path, str]]]:
    """(the recipe, no problems) or (None, [(path of the field, what is wrong)])."""
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        problems: dict[Path, str] = {}
        for detail in error.errors():
            path, known = _field_of(model, detail["loc"])
            match detail["type"]:
                case "extra_forbidden":
                    text = _unknown_key(path, known)
                case "missing":
                    text = "is required, but missing"
                case _:
                    message = detail["msg"].removeprefix("Value error, ")
                    text = f"{message[0].lower()}{message[1:]}, got {detail['input']!r}"
            problems.setdefault(path, text)  # a union gives one error for each of its types
        return None, list(problems.items())


def _field_of(model: type[BaseModel], location: Sequence[str | int]) -> tuple[Path, list[str]]:
    """Cut pydantic's location to the field itself: (path, the keys known beside it)."""
    path: list[str] = []
    for part in location:
        known = list(model.model_fields)
        path.append(str(part))
        section = model.model_fields[str(part)].annotation if str(part) in known else None
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return tuple(path), known
        model = section
    return tuple(path), []


def _unknown_key(path: Path, known: Sequence[str]) -> str:
    close = [".".join([*path[:-1], name]) for name in difflib.get_close_matches(path[-1], known, 1)]
    elsewhere = [full for full in _all_fields(Recipe) if full.split(".")[-1] == path[-1]]
    if not close and not elsewhere:
        elsewhere = difflib.get_close_matches(path[-1], _all_fields(Recipe), 1)
    if close or elsewhere:
        return f"unknown key; did you mean {(close or elsewhere)[0]!r}?"
    return f"unknown key; known here: {', '.join(known)}"


def _all_fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    fields = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, types.UnionType):
            annotation = get_args(annotation)[0]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            fields += _all_fields(annotation, f"{prefix}{name}.")
        else:
            fields.append(prefix + name)
    return fields
