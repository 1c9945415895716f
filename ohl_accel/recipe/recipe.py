"""A whole recipe: read from a file and overrides, fully checked, frozen."""

import copy
import os
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, Self, TypeAlias, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from ohl_accel.errors import UserError, did_you_mean
from ohl_accel.recipe.reading import override, read_yaml
from ohl_accel.recipe.rules import broken_rules
from ohl_accel.recipe.sections import (
    AugmentSection,
    DataSection,
    HubSection,
    InnerSection,
    ModelSection,
    Noted,
    OuterSection,
    RunSection,
    Section,
    Trackers,
    TrainSection,
)

Path: TypeAlias = tuple[str, ...]
"""The path of a field inside the recipe, such as `("outer", "steps")`."""


class Recipe(Section):
    """The whole description of one run."""

    run: RunSection
    data: DataSection
    model: ModelSection
    inner: InnerSection
    outer: OuterSection
    objective: str = Field(default="classification", min_length=1)
    """What the network learns and how it is scored: `classification` (cross-entropy, accuracy), `multilabel` (binary
    cross-entropy, mean average precision), or a class of your own, `package.module:Name` or `path/to/file.py:Name`,
    derived from `ohl_accel.engine.objective.Objective`."""
    objective_args: dict[str, Any] = Field(default={})
    """Additional arguments of the objective."""
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
        """A recipe from a path, plain values, or another recipe, with dotted overrides.

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
        right: dict[Noted, Any] = {}
        recipe, wrong = _validate(cls, values, right)
        found = [*problems, *wrong, *broken_rules(partial(_value_of, right, cls))]
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


def _value_of(right: Mapping[Noted, Any], model: type[BaseModel], field: str) -> Any:
    """The validated value of a dotted field, even if other fields are wrong; None inside a section that is None.

    Args:
        right: the fields that are valid on their own.
        model: of the recipe.
        field: such as `outer.steps`.

    Raises:
        LookupError: if the field is wrong or missing.
    """
    names = field.split(".")
    for depth, name in enumerate(names):
        if (model, name) in right:
            value = right[model, name]
            for inner in names[depth + 1 :]:
                value = getattr(value, inner, None)
            return value
        section = _section_of(model, name)
        if section is None:
            break
        model = section
    raise LookupError(field)


def _validate(
    model: type[RecipeType], values: Any, right: dict[Noted, Any]
) -> tuple[RecipeType | None, list[str]]:
    """(the recipe, no problems) or (None, what is wrong); valid fields are recorded in `right`."""
    try:
        return model.model_validate(values, context=right), []
    except ValidationError as error:
        problems: dict[Path, str] = {}
        for detail in error.errors():
            path, known = _field_of(model, detail["loc"])
            match detail["type"]:
                case "extra_forbidden":
                    text = _unknown_key(model, path, known)
                case "missing":
                    text = "is required, but missing"
                case _:
                    message = detail["msg"].removeprefix("Value error, ")
                    text = f"{message[0].lower()}{message[1:]}, got {detail['input']!r}"
            problems.setdefault(path, text)  # a union gives one error for each of its types
        return None, [f"{'.'.join(path)}: {text}" for path, text in problems.items()]


def _field_of(model: type[BaseModel], location: Sequence[str | int]) -> tuple[Path, list[str]]:
    """Cut pydantic's location to the field itself: (path, the keys of its section)."""
    path: list[str] = []
    known: list[str] = []
    for part in location:
        known = list(model.model_fields)
        path.append(str(part))
        section = _section_of(model, str(part))
        if section is None:
            break
        model = section
    return tuple(path), known


def _unknown_key(model: type[BaseModel], path: Path, known: Sequence[str]) -> str:
    *sections, name = path
    fields = _all_fields(model)
    elsewhere = [field for field in fields if field.split(".")[-1] == name]
    near = did_you_mean(name, known, 1, show=lambda key: repr(".".join([*sections, key])))
    near = near or did_you_mean(elsewhere[0] if elsewhere else name, fields, 1, show=repr)
    return f"unknown key; {near}" if near else f"unknown key; known here: {', '.join(known)}"


def _all_fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    fields: list[str] = []
    for name in model.model_fields:
        section = _section_of(model, name)
        fields += [prefix + name] if section is None else _all_fields(section, f"{prefix}{name}.")
    return fields


def _section_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section that a field holds, possibly optional; None for a plain or an unknown field."""
    if name not in model.model_fields:
        return None
    annotation = model.model_fields[name].annotation
    for kind in get_args(annotation) or (annotation,):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
