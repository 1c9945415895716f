"""The recipe: everything that decides a run, typed, checked at once and frozen.

A recipe is a YAML file plus dotted overrides (`outer.steps=3 run.dir=out`).
"""

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ohl_accel.errors import UserError


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _heldout(value: Any) -> Any:
    if value is None or _is_positive(value):
        return value
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise ValueError("must be a count (a whole number from 1) or a fraction (between 0 and 1)")


def _inner_steps(value: Any) -> Any:
    if value == "epoch" or _is_positive(value):
        return value
    raise ValueError("must be 'epoch' or a whole number from 1")


def _image_size(value: Any) -> Any:
    sides = [value, value] if isinstance(value, int) else value
    if value is None:
        return None
    if isinstance(sides, list | tuple) and len(sides) == 2 and all(map(_is_positive, sides)):
        return tuple(sides)
    raise ValueError("must be a side in pixels, or [height, width]")


Number = BeforeValidator(_no_bool)
Whole = Annotated[int, Number]
Real = Annotated[float, Number]
Channels = tuple[Real, ...]
Path: TypeAlias = tuple[str, ...]
"""Of a field inside the recipe, such as `("outer", "steps")`."""


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )


class RunSection(_Section):
    """Where the run lives and how its processes behave."""

    dir: str = Field(min_length=1)
    """The run folder; it is made if missing, and refused if it holds anything (see resume, overwrite)."""
    seed: Annotated[Whole, Field(ge=0)] = 0
    """Keys every random draw of the run."""
    resume: Literal["never", "auto"] = "never"
    """auto: go on from the last checkpoint in `dir`, or start where there is none."""
    overwrite: bool = False
    """Replace the files of an earlier run in `dir`."""
    checkpoint_every: Annotated[Whole, Field(ge=1)] = 1
    """Outer steps between two checkpoints (the last step is always saved)."""
    keep_checkpoints: Annotated[Whole, Field(ge=1)] = 2
    """How many of the newest checkpoints stay on disk."""
    mixed_precision: Literal["no", "bf16"] | None = None
    """None: what Accelerate's config file or flag says."""
    cpu_threads: Annotated[Whole, Field(ge=1)] = 1
    """Threads of each CPU process. Results depend on it; more processes are the better way to more cores."""
    deterministic: bool = False
    """On CUDA: only deterministic kernels (slower). The CPU always is."""
    timeout: Annotated[Real, Field(gt=0)] = 1800.0
    """Seconds after which a process that waits for another one gives up."""


class DataSection(_Section):
    """Which images, which labels, and what is held out."""

    path: str = Field(min_length=1)
    """A Hub dataset id, a folder, a file, or `sklearn:digits`."""
    name: str | None = None
    """Configuration of a dataset that has several."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    train_split: str = "train"
    test_split: str | None = "test"
    """None: there is no test split, and the run ends without a test accuracy."""
    test_path: str | None = None
    """Where the test split is, if not in `path`."""
    heldout: Annotated[int | float | None, BeforeValidator(_heldout)] = None
    """Count or fraction of the training images, stratified by label, that score the trajectories."""
    heldout_split: str | None = None
    """Instead of `heldout`: a split of its own that scores the trajectories."""
    image_column: str | None = None
    """None: the only image column."""
    label_column: str | None = None
    """None: the only label column, or the one named `label`."""
    image_size: Annotated[tuple[int, int] | None, BeforeValidator(_image_size)] = None
    """Side, or [height, width], to which images are resized; None: all are of one size already."""
    crop_mode: Literal["center", "squash"] = "center"
    """How a resized image gets its shape: fill it and cut what is over, or change the aspect ratio."""
    channels: Literal[1, 3] | None = None
    """1 grey, 3 RGB; None: 1 if the images are grey, else 3."""
    mean: Channels | None = None
    """Mean of each channel in 0..1; None: measured on the training images."""
    std: Channels | None = None
    """Standard deviation of each channel in 0..1; None: measured on the training images."""
    in_memory: Literal["auto"] | bool = "auto"
    """Decode once and keep the pixels; auto: where a split takes up to 1 GiB."""
    workers: Annotated[Whole, Field(ge=0)] = 2
    """Decoding processes for each process that trains, where images are not in memory."""
    eval_batch_size: Annotated[Whole, Field(ge=1)] = 500


class ModelSection(_Section):
    """The network: any of timm's, or of `ohl_accel.models`."""

    name: str = Field(min_length=1)
    args: dict[str, Any] = {}
    """Further arguments of `timm.create_model`; classes and channels are set from the data."""
    channels_last: bool = False
    compile: bool = False
    """`torch.compile` the network."""


class OptimizerSection(_Section):
    """The inner optimizer, by timm's name."""

    name: str = "sgd"
    lr: Annotated[Real, Field(gt=0)]
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[Real, Field(ge=0)] = 0.0
    decay_norm_and_bias: bool = True
    """Whether weight decay also shrinks biases and normalization weights (plain SGD, as in the paper)."""
    args: dict[str, Any] = {}
    """Further arguments of the optimizer."""


class ScheduleSection(_Section):
    """The inner learning rate over the whole run, set before each inner step."""

    name: Literal["cosine", "multistep", "constant"] = "cosine"
    warmup_epochs: Annotated[Real, Field(ge=0)] = 0.0
    """Linear warm-up from `warmup_lr`, before the schedule itself."""
    warmup_lr: Annotated[Real, Field(ge=0)] = 0.0
    min_lr: Annotated[Real, Field(ge=0)] = 0.0
    """Where the cosine ends."""
    milestones: tuple[Annotated[Real, Field(gt=0)], ...] = ()
    """Epochs, counted after the warm-up, at which multistep multiplies the rate by `decay_rate`."""
    decay_rate: Annotated[Real, Field(gt=0, le=1)] = 0.1


class InnerSection(_Section):
    """The inner loop: SGD on the training images (Eq 2)."""

    batch_size: Annotated[Whole, Field(ge=1)]
    """B: images of one inner step of one trajectory, over all processes of its group."""
    optimizer: OptimizerSection
    schedule: ScheduleSection = ScheduleSection()


class OuterSection(_Section):
    """The outer loop: trajectories and the policy's update (Algorithm 1)."""

    trajectories: Annotated[Whole, Field(ge=1)] = 8
    """N."""
    groups: Annotated[Whole, Field(ge=1)] | None = None
    """Groups of processes; None: as many as there are trajectories or processes, the smaller."""
    steps: Annotated[Whole, Field(ge=1)]
    """T_max."""
    inner_steps: Annotated[Literal["epoch"] | int, BeforeValidator(_inner_steps)] = "epoch"
    """I: inner steps per outer step, or `epoch`."""
    lr: Annotated[Real, Field(ge=0)] = 0.05
    """eta_theta; 0 freezes the policy."""
    betas: tuple[Annotated[Real, Field(ge=0, lt=1)], Annotated[Real, Field(ge=0, lt=1)]] = (0.5, 0.999)


class AugmentSection(_Section):
    """What surrounds the learned operation: basic transforms before, Cutout after (section 4.1)."""

    flip: bool = True
    """Horizontal flip with probability 1/2."""
    pad_crop: Annotated[Whole, Field(ge=0)] = 0
    """Zero-pad by so many pixels and crop back at random; 0: off."""
    cutout: Annotated[Whole, Field(ge=0)] = 0
    """Side of the square that Cutout blanks, in pixels; 0: off."""


class Recipe(_Section):
    """One run, whole."""

    run: RunSection
    data: DataSection
    model: ModelSection
    inner: InnerSection
    outer: OuterSection
    augment: AugmentSection = AugmentSection()

    @classmethod
    def load(cls, path: str, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML recipe, apply dotted overrides, check everything.

        Raises:
            UserError: one message with every problem of the file and the overrides.
        """
        values, problems = _read_yaml(path)
        for override in overrides:
            problems += _override(values, override)
        return cls.check(values, path, problems)

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
    data, outer, inner = recipe.data, recipe.outer, recipe.inner
    optimizer, schedule = inner.optimizer, inner.schedule
    if outer.groups and outer.trajectories % outer.groups:
        fit = [g for g in range(1, outer.trajectories + 1) if outer.trajectories % g == 0]
        yield (
            ("outer.groups", "outer.trajectories"),
            f"outer.groups={outer.groups} does not divide outer.trajectories={outer.trajectories}: "
            f"use one of {fit}",
        )
    if (data.heldout is None) == (data.heldout_split is None):
        yield (
            ("data.heldout", "data.heldout_split"),
            "data.heldout, data.heldout_split: give exactly one of them (images that score the trajectories)",
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
    if outer.inner_steps == "epoch" and schedule.warmup_epochs >= outer.steps:
        yield (
            ("inner.schedule.warmup_epochs", "outer.steps", "outer.inner_steps"),
            f"inner.schedule.warmup_epochs={schedule.warmup_epochs:g} is not below the {outer.steps} "
            "epochs of the run (outer.steps)",
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
    close = difflib.get_close_matches(path[-1], known, 1)
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


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key that is given twice is noted instead of silently replaced."""

    duplicates: list[str]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in seen:
                self.duplicates.append(f"{key}: given twice, in lines {seen[key]} and {line}")
            seen[key] = line
        return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> tuple[dict[str, Any], list[str]]:
    """(values, duplicate keys).

    Raises:
        UserError: if the file cannot be read or is no YAML mapping.
    """
    try:
        text = FilePath(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = FilePath(path).parent
        others = sorted(str(other) for pattern in ("*.yaml", "*.yml") for other in folder.glob(pattern))
        hint = f"; in that folder there are: {', '.join(others)}" if others else ""
        raise UserError(f"recipe {path} does not exist{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} cannot be read: {error}") from None
    loader = _Loader(text)
    loader.duplicates = []
    try:
        values = loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not valid YAML: {error}") from None
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise UserError(f"recipe {path} must be a mapping of sections, got {type(values).__name__}")
    return values, loader.duplicates


def _override(values: dict[str, Any], override: str) -> list[str]:
    """Apply `section.key=value` in place; returns problems instead of raising."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        return [f"override {override!r}: must look like section.key=value"]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return [f"override {override!r}: {text!r} is not valid YAML; quote it"]
    target = values
    for depth, key in enumerate(keys[:-1]):
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            return [f"override {override!r}: {'.'.join(keys[: depth + 1])} is not a section"]
    target[keys[-1]] = value
    return []
