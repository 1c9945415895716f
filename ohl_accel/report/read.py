"""Read and check a run folder, finished or not, for its report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ohl_accel.errors import UserError
from ohl_accel.operations.space import PAPER, Space
from ohl_accel.operations.space_file import open_space
from ohl_accel.policy import Policy
from ohl_accel.recipe import Recipe
from ohl_accel.report.tables import Table, read_tables
from ohl_accel.run_folder.files import CLASSES_FILE, METRICS_FILE, POLICY_FILE, RECIPE_FILE, RESULT_FILE
from ohl_accel.run_folder.metrics import read_metrics
from ohl_accel.run_folder.result import REWRITE_RESULT, main_score, read_result

_Marginal = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)]


class OuterStep(BaseModel):
    """The part of a line of `metrics.jsonl` that a report shows; lists of N have one value for each trajectory."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    outer_step: Annotated[int, Field(ge=0)]
    reward: Annotated[list[float | None], Field(min_length=1)]
    """Held-out accuracies in 0..1; None if they were not measured in this step."""
    winner: Annotated[int, Field(ge=0)] | None = None
    """None if they were not measured, or for training with a fixed policy."""
    diverged: list[int] = []
    lost_trajectories: Annotated[int, Field(ge=0, le=1000)] = 0
    """How many did not take part (`run.on_loss`)."""
    entropy: float | None = None
    """In nats."""
    seconds: dict[str, Annotated[float, Field(ge=0)]]
    images_per_second: float
    train_loss: list[float | None] = []
    """Mean of the outer step, in nats."""
    heldout_loss: list[float | None] = []
    learning_rate: float | None = None
    """Of the last inner step."""
    element_probabilities: Annotated[list[_Marginal], Field(min_length=1)] | None = None
    """p(element) at each position of an operation, [A][E]; missing in runs of older versions."""

    @model_validator(mode="after")
    def _outcome_is_whole(self) -> Self:
        if self.winner is not None and self.entropy is None:
            raise ValueError("a winner needs the policy's entropy")
        if self.winner is not None and (self.winner >= len(self.reward) or None in self.reward):
            raise ValueError(f"winner {self.winner} does not fit the rewards {self.reward}")
        return self


class Result(BaseModel):
    """`result.json`; None for what was not measured. Other scores are `test_NAME`."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, extra="allow")
    __pydantic_extra__: dict[str, float | int | str | None]

    outer_steps: int
    metric: str = "accuracy"
    test_images: int | None = None

    @property
    def test(self) -> float | None:
        """The main score on the test images."""
        return main_score(self.model_dump())

    @property
    def heldout(self) -> float | None:
        """The main score of the last winner on the held-out images."""
        return main_score(self.model_dump(), "heldout")

    @property
    def other_tests(self) -> dict[str, float]:
        """The other scores on the test images by name."""
        known = {f"test_{self.metric}", "test_images"}
        return {
            name.removeprefix("test_"): float(value)
            for name, value in self.model_dump().items()
            if name.startswith("test_") and name not in known and isinstance(value, float | int)
        }


class Classes(BaseModel):
    """`classes.json`: test scores of each class, and which classes were taken for which others."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    images: int
    classes: Annotated[list[dict[str, float | int | str | None]], Field(min_length=1)]
    """As `Objective.table`: `class`, `images` and scores."""
    confusions: list[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], int]]
    """(class, the class it was taken for, how many images)."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if any(not isinstance(row.get("class"), str) or "images" not in row for row in self.classes):
            raise ValueError("every row needs its class and images")
        if any(max(pair[:2]) >= len(self.classes) for pair in self.confusions):
            raise ValueError("a confusion of a class that is not in the table")
        return self

    @property
    def names(self) -> list[str]:
        """Of the classes, in their order."""
        return [str(row["class"]) for row in self.classes]


@dataclass(frozen=True)
class Run:
    """The contents of a run folder."""

    folder: Path
    steps: list[OuterStep]
    policy: Policy | None
    """None before the first checkpoint."""
    result: Result | None
    """None until the search is finished."""
    classes: Classes | None
    """None without a test split, and for runs of older versions."""
    space: Space
    """The space of the policy."""
    recipe: Recipe | None
    """None if the file is missing or of a different version."""
    recipe_text: str
    tables: list[Table]
    notes: list[str]
    """What is missing and what to do about it."""

    @property
    def is_run(self) -> bool:
        """False for a folder with only a comparison or a sweep."""
        return bool(self.steps or self.policy or (self.recipe_text and not self.tables))

    @property
    def finished(self) -> bool:
        """Whether the run has finished, so that nothing will change."""
        return self.result is not None or not self.is_run

    @property
    def learned(self) -> bool:
        """Whether a policy is learned; False for training with a fixed one."""
        return not self.steps or self.steps[0].entropy is not None

    @property
    def outer_steps(self) -> int | None:
        """Total number of outer steps, if known."""
        if self.recipe is not None:
            return self.recipe.outer.steps
        return self.result.outer_steps if self.result else None


def read_run(folder: Path) -> Run:
    """Read everything that a report shows.

    Raises:
        UserError: if it is not a run folder, or a file in it is damaged; names the file and what to do.
    """
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {problem}: give a run folder, such as runs/digits")
    tables = read_tables(folder)
    names = (RECIPE_FILE, METRICS_FILE, POLICY_FILE)
    if not tables and not any((folder / name).exists() for name in names):
        raise UserError(
            f"{folder} has none of {', '.join(names)}: it is not a run folder, or its search has not begun"
        )
    notes: list[str] = []
    recipe, recipe_text = _read_recipe(folder / RECIPE_FILE, notes)
    result = _read_result(folder)
    space = _space_of(recipe)  # first: it registers transforms of the user's own, which the policy may name
    policy = _read_policy(folder)
    space = policy.space if policy is not None else space
    steps = _read_steps(folder / METRICS_FILE, space)
    classes = _read_classes(folder / CLASSES_FILE) if result is not None else None
    run = Run(folder, steps, policy, result, classes, space, recipe, recipe_text, tables, notes)
    if run.is_run:
        notes += _missing(run)
    return run


def _missing(run: Run) -> list[str]:
    """What is missing on the page of this run, and why."""
    notes = []
    if not run.recipe_text:
        notes.append(f"There is no {RECIPE_FILE}: copy it into the folder to see the recipe and examples.")
    if run.learned and run.policy is None:
        when = "it was removed; copy it back" if run.finished else "it is written with the first checkpoint"
        notes.append(f"There is no {POLICY_FILE}: {when}.")
    if not run.steps:
        notes.append(f"{METRICS_FILE} has no lines yet: the first outer step is not finished.")
    elif run.learned and any(step.element_probabilities is None for step in run.steps):
        notes.append(
            f"{METRICS_FILE} does not have the policy of every outer step (element_probabilities): it was "
            "written by an older version. A new run with this version has the heatmaps over time."
        )
    return notes


def _read_recipe(path: Path, notes: list[str]) -> tuple[Recipe | None, str]:
    if not path.exists():
        return None, ""
    try:
        return Recipe.load(str(path)), path.read_text(encoding="utf-8")
    except UserError as error:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{error}; copy the file back, or move it away to continue without it") from None
        notes.append(
            f"{RECIPE_FILE} is of a different version or damaged, so there are no examples. {error}. "
            "Draw the report with the version that made the run, or correct these fields."
        )
        return None, text


def _space_of(recipe: Recipe | None) -> Space:
    """The space that the recipe names."""
    source = None if recipe is None else recipe.augment.space
    return PAPER if source is None else open_space(source)


def _read_steps(path: Path, space: Space) -> list[OuterStep]:
    steps: list[OuterStep] = []
    for number, values in enumerate(read_metrics(path), 1):
        step = _checked(OuterStep, values, f"{path}, line {number}", "delete the line to continue without it")
        if steps and step.outer_step <= steps[-1].outer_step:
            raise UserError(
                f"{path}, line {number}: outer_step {step.outer_step} comes after {steps[-1].outer_step}: two runs "
                "are mixed in this file; delete the lines of the other one"
            )
        if steps and _kind(step) != _kind(steps[0]):
            raise UserError(
                f"{path}, line {number}: a different kind of run than in the previous lines (trajectories, or whether "
                "a policy is learned): two runs are mixed in this file; delete the lines of the other one"
            )
        shape = [len(marginal) for marginal in step.element_probabilities or ()]
        if shape and shape != [space.num_elements] * space.arity:
            raise UserError(
                f"{path}, line {number}: element_probabilities must be {space.arity} lists of {space.num_elements} "
                f"(space {space.name}), got lists of {shape}: it is damaged or of another run; delete the line to "
                "continue without it"
            )
        steps.append(step)
    return steps


def _kind(step: OuterStep) -> tuple[int, bool]:
    """What is the same in all outer steps of a run: all its trajectories, and whether the policy is fixed."""
    return len(step.reward) + step.lost_trajectories, step.entropy is None


def _read_result(folder: Path) -> Result | None:
    values = read_result(folder)
    if values is None:
        return None
    path = folder / RESULT_FILE
    result = _checked(Result, values, str(path), REWRITE_RESULT)
    if f"heldout_{result.metric}" not in values:
        raise UserError(f"{path}: heldout_{result.metric}: Field required: it is damaged; {REWRITE_RESULT}")
    return result


def _read_classes(path: Path) -> Classes | None:
    if not path.exists():
        return None
    way_out = "move it away to continue without it"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; {way_out}") from None
    return _checked(Classes, values, str(path), way_out)


def _read_policy(folder: Path) -> Policy | None:
    if not (folder / POLICY_FILE).exists():
        return None
    try:
        return Policy.load(folder)
    except ValueError as error:
        raise UserError(
            f"{error}; rerun the search's command with run.resume=auto, which writes it again, or draw the report "
            "with the version that wrote it"
        ) from None


Model = TypeVar("Model", bound=BaseModel)


def _checked(model: type[Model], values: Any, source: str, way_out: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{source}: {field or 'the line'}: {first['msg']}: it is damaged or of a different version; {way_out}"
        ) from None
