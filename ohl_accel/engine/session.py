"""From a call to its result: join the launch, execute a run, and return what it produced."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from ohl_accel.data.source import IN_MEMORY
from ohl_accel.distributed.launch import run_on_all_ranks
from ohl_accel.engine.dry import dry_run
from ohl_accel.engine.finishing import finish
from ohl_accel.engine.process import start_accelerator
from ohl_accel.engine.run import Run
from ohl_accel.engine.setup import set_up
from ohl_accel.errors import UserError
from ohl_accel.interrupts import deferred
from ohl_accel.observers.dashboards import Dashboards
from ohl_accel.observers.display import Display
from ohl_accel.observers.files import MetricsFile, Report
from ohl_accel.observers.observer import Observer, Observers
from ohl_accel.observers.publish import HubPublisher
from ohl_accel.observers.teaching import Teaching
from ohl_accel.policy import Policy
from ohl_accel.recipe import Recipe
from ohl_accel.recipe.reading import checked_overrides
from ohl_accel.run_folder.files import METRICS_FILE
from ohl_accel.run_folder.metrics import read_metrics

RecipeSource = str | Path | Mapping[str, Any] | Recipe
"""A file, the name of a recipe that comes with the package, a mapping of its sections, or a recipe."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a finished run, on every process of the launch; with `run.dry`, of none."""

    policy: Policy | None
    """The policy, learned or fixed; None for a fixed one without a `Policy`, such as `none`."""
    network: nn.Module
    """The trained network, on its device, in evaluation mode. With `model.shard`, this process's shard. It stays in its
    process: in a pickled result it is None."""
    metrics: list[dict[str, Any]]
    """The lines of `metrics.jsonl`, on the main process; empty on the others, which do not wait for it to publish."""
    test: dict[str, float] | None
    """The scores on the test split, such as `accuracy` and `loss`; None if the recipe has no test split."""
    folder: Path
    """The run folder, on the main process's machine."""

    def __getstate__(self) -> dict[str, Any]:
        """Without the network: `notebook_launcher` pickles what its processes return, and the network may be on a GPU
        that the notebook must not use, or contain what cannot be pickled."""
        return {**vars(self), "network": None}


def read_recipe(recipe: RecipeSource, overrides: Sequence[str]) -> tuple[Recipe, Accelerator]:
    """Read the recipe, and join the launch that this process belongs to.

    Raises:
        UserError: for a recipe or a launch that cannot work.
    """
    try:
        read = Recipe.of(recipe, overrides)
    except UserError:
        start_accelerator(None)  # so that one process reports the error for all
        run_on_all_ranks(lambda: Recipe.of(recipe, overrides))
        raise
    accelerator = start_accelerator(read.run)
    run_on_all_ranks(lambda: read)
    return read, accelerator


def execute(
    recipe: RecipeSource,
    overrides: Sequence[str],
    loop: Callable[[Run], list[float] | None],
    *,
    learn: bool,
    adapt: Callable[[Recipe], Recipe] | None = None,
    dataset: Any = None,
    model: nn.Module | None = None,
    observers: Sequence[Observer] = (),
) -> Result:
    """Set up a run, execute its remaining outer steps, and finish it; with `run.dry` only check it.

    Args:
        recipe, overrides, dataset, model, observers: as in `search`.
        loop: executes every remaining outer step; returns the last rewards.
        learn: whether the policy is learned (the search) or fixed (training).
        adapt: changes the recipe for this loop.

    Raises:
        UserError: if it cannot work; before training begins whenever possible.
        RunFailedError: if it cannot continue.
    """
    _check_arguments(model, observers)
    if dataset is not None:  # a recipe for data that the caller holds need not name any
        overrides = [*checked_overrides(overrides), f"data.path={IN_MEMORY}"]
    if model is not None:
        overrides = [*checked_overrides(overrides), f"model.name={type(model).__name__}"]
    read, accelerator = read_recipe(recipe, overrides)
    if adapt is not None:
        read = adapt(read)
    main = accelerator.is_main_process
    display = Display(main, read.run.display)
    if read.run.dry:
        dry_run(read, accelerator, display, learn=learn, dataset=dataset, model=model)
        return Result(policy=None, network=nn.Identity(), metrics=[], test=None, folder=Path(read.run.dir))
    told: list[Observer] = []
    if main:
        report = [Report()] if read.run.report else []
        told = [
            *(MetricsFile(), *report, Dashboards(), *observers),
            *(display, Teaching(), HubPublisher(display.warn)),
        ]
    run = set_up(
        read,
        accelerator,
        display,
        Observers(told, display.warn),
        learn=learn,
        dataset=dataset,
        model=model,
    )
    finished = False
    try:
        if run.info is not None:
            run.observers.start(run.info)
        with deferred(run.recipe.run.grace):
            rewards = loop(run)
        result = finish(run, rewards)
        finished = True
    finally:
        if run.info is not None:
            run.observers.end(run.info, failed=not finished)
        if run.folder is not None:
            run.folder.release()
    lines = read_metrics(run.folder / METRICS_FILE) if run.folder is not None else []
    tests = {key.removeprefix("test_"): value for key, value in result.items() if key.startswith("test_")}
    fixed = run.fixed_policy if isinstance(run.fixed_policy, Policy) else None
    return Result(
        policy=fixed if run.estimator is None else run.estimator.policy,
        network=run.hosted[0].network.eval(),
        metrics=lines,
        test=tests or None,
        folder=Path(run.recipe.run.dir),
    )


def _check_arguments(model: object, observers: object) -> None:
    """Refuse what Python would accept until it is used.

    Raises:
        UserError: naming the argument.
    """
    if model is not None and not isinstance(model, nn.Module):
        hint = f"; a class was given: {model.__name__}(...)" if isinstance(model, type) else ""
        raise UserError(f"model must be a torch.nn.Module, got {model!r}{hint}")
    if not isinstance(observers, Sequence):
        raise UserError(f"observers must be a list of observers, got {observers!r}")
    for observer in observers:
        if not isinstance(observer, Observer):
            hint = f"; a class was given: {observer.__name__}()" if isinstance(observer, type) else ""
            raise UserError(f"observers must be instances of ohl_accel's Observer, got {observer!r}{hint}")
