"""Observers are notified of a run's progress: display, metrics, dashboards, report, Hub, and the user's own.

They exist on the main process only, and never change the result of a run.

Shapes: n images, C channels, H rows, W columns.
"""

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ohl_accel.engine.objective import Objective
from ohl_accel.errors import RunFailedError, UserError, first_line
from ohl_accel.policy import Policy
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """A run, as observers see it."""

    recipe: Recipe
    """Resolved: completed with what was found in the data and the launch."""
    recipe_is_whole: bool
    """Whether the recipe alone describes the run: dataset and model were not given in Python."""
    objective: Objective
    """What the network learns; `objective.metric` is the score behind the rewards."""
    folder: RunFolder
    first_outer_step: int
    """0, or the first one of a resumed run."""
    inner_steps: int
    """I."""
    policy: Policy | None
    """The policy being learned, in its current state; None if nothing is learned."""
    augmented_images: Callable[[int], Tensor]
    """Outer step -> uint8 [n, C, H, W]: the first training images, with the flips and crops of its last inner step and
    operations sampled from the current policy (in a group of several processes, those of the first one)."""
    say: Callable[[str], None]
    """Shows a line to the user."""
    warn: Callable[[str], None]
    """Shows a line that the user may want to act on, in every mode."""


class Observer:
    """Override the events you are interested in; by default they do nothing.

    An exception disables the observer for the rest of the run, with a warning; a `UserError` or `RunFailedError`
    ends the run.
    """

    def check(self, recipe: Recipe) -> None:
        """Called before anything is built: raise UserError for what cannot work."""

    def start(self, run: RunInfo) -> None:
        """Training is about to begin, or to resume."""

    def inner_step(self, run: RunInfo) -> None:
        """All hosted trajectories have done one more inner step."""

    def phase(self, run: RunInfo, name: str, done: int, total: int) -> None:
        """A phase that can take long, `scoring` or the final `test`, has done so many of all its chunks of images."""

    def outer_step(self, run: RunInfo, line: Mapping[str, Any]) -> None:
        """An outer step is finished; `line` is its line of `metrics.jsonl`."""

    def finish(self, run: RunInfo, result: Mapping[str, Any]) -> None:
        """The run is finished; the network is saved, and `result` holds the test scores."""

    def end(self, run: RunInfo, failed: bool) -> None:
        """The last call, after `finish`, or after the run failed or was stopped."""


class Observers(Observer):
    """Several observers as one; one that fails is disabled for the rest of the run.

    Args:
        observers: notified in this order.
        warn: shows which one was disabled.
    """

    def __init__(self, observers: Sequence[Observer], warn: Callable[[str], None]) -> None:
        self._observers = list(observers)
        self._warn = warn

    def check(self, recipe: Recipe) -> None:
        """As in `Observer`."""
        for observer in self._observers:
            observer.check(recipe)

    def start(self, run: RunInfo) -> None:
        """As in `Observer`."""
        self._tell(lambda observer: observer.start(run))

    def inner_step(self, run: RunInfo) -> None:
        """As in `Observer`."""
        self._tell(lambda observer: observer.inner_step(run))

    def phase(self, run: RunInfo, name: str, done: int, total: int) -> None:
        """As in `Observer`."""
        self._tell(lambda observer: observer.phase(run, name, done, total))

    def outer_step(self, run: RunInfo, line: Mapping[str, Any]) -> None:
        """As in `Observer`."""
        self._tell(lambda observer: observer.outer_step(run, line))

    def finish(self, run: RunInfo, result: Mapping[str, Any]) -> None:
        """As in `Observer`."""
        self._tell(lambda observer: observer.finish(run, result))

    def end(self, run: RunInfo, failed: bool) -> None:
        """As in `Observer`."""
        self._tell(lambda observer: observer.end(run, failed))

    def _tell(self, what: Callable[[Observer], None]) -> None:
        for observer in list(self._observers):
            try:
                what(observer)
            except (UserError, RunFailedError):
                raise
            except Exception as error:  # a failing observer must not end the run
                self._observers.remove(observer)
                frame = traceback.extract_tb(error.__traceback__)[-1]
                self._warn(
                    f"{type(observer).__name__} failed ({first_line(error)}, in {Path(frame.filename).name} line "
                    f"{frame.lineno}): disabled for this run"
                )
