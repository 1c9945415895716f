"""Dashboards: the numbers that a person reads, and images of the policy, in W&B, TensorBoard and trackio.

They are Accelerate's trackers: one run in each for one search, even if it is resumed. A dashboard that fails is
disabled; the run continues.
"""

import contextlib
import importlib.util
import io
import json
import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

from ohl_accel.errors import UserError, first_line
from ohl_accel.observers.observer import Observer, RunInfo
from ohl_accel.observers.scalars import LAYOUT, memory, results_of, scalars_of
from ohl_accel.policy import Policy
from ohl_accel.policy.evidence import ORDINALS
from ohl_accel.recipe import Recipe
from ohl_accel.report import figures
from ohl_accel.run_folder.files import TENSORBOARD, TRACKERS_FILE

PICTURES = 20
"""Maximum number of times that images are logged in a run."""
_TAG = 64
"""Characters of a tag, at most, as W&B has it."""
SAMPLES = 32
"""Training images in the logged image grid."""


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers, with column names."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]


class Dashboard(Protocol):
    """One tracker."""

    name: str

    def begin(self) -> str:
        """Start or resume; returns where to find the dashboard."""

    def log(self, values: Mapping[str, float | str], step: int | None = None) -> None:
        """Log numbers and text of an outer step."""

    def show(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Log images of an outer step."""

    def keep(self, tables: Mapping[str, Table], files: Sequence[Path], step: int) -> None:
        """Log the final tables and files of the run."""

    def end(self, failed: bool) -> str:
        """Send what has not been sent, within a time limit; returns the command that sends the rest, or ""."""


class Dashboards(Observer):
    """All dashboards of one run: metrics of each outer step, images at intervals, tables and files at the end."""

    def __init__(self) -> None:
        self._begun: list[Dashboard] = []
        self._failed: set[tuple[str, str]] = set()

    def check(self, recipe: Recipe) -> None:
        """Check that the trackers' packages are installed.

        Raises:
            UserError: with the command that installs the missing ones.
        """
        missing = [name for name in recipe.track if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"track: {', '.join(missing)} is not installed: pip install {' '.join(missing)}")

    def start(self, run: RunInfo) -> None:
        """Begin a run on each dashboard, or resume it."""
        folder, recipe = run.folder, run.recipe
        if recipe.track and not (folder / TRACKERS_FILE).exists():
            folder.write_json(TRACKERS_FILE, {"id": secrets.token_hex(4)})
        for name in recipe.track:
            identity = json.loads((folder / TRACKERS_FILE).read_text(encoding="utf-8"))["id"]
            dashboard = _KINDS[name](recipe, folder.path, identity, run.first_outer_step)

            def begin(dashboard: Dashboard) -> None:
                run.say(f"{dashboard.name}: {dashboard.begin()}")
                self._begun.append(dashboard)

            self._try(run, dashboard, "all", begin)

    def outer_step(self, run: RunInfo, line: Mapping[str, Any]) -> None:
        """Log the numbers of an outer step; at intervals, and at the end, also images."""
        step, steps = line["outer_step"], run.recipe.outer.steps
        values = {**scalars_of(line, run.policy), **memory()}
        self._each(run, "numbers", lambda dashboard: dashboard.log(values, step=step))
        every = max(1, steps // PICTURES)
        if self._begun and ((step + 1) % every == 0 or step + 1 == steps):
            images = pictures_of(run, step)
            self._each(run, "images", lambda dashboard: dashboard.show(images, step))

    def finish(self, run: RunInfo, result: Mapping[str, Any]) -> None:
        """Log the result, tables and files."""
        step = run.recipe.outer.steps - 1
        values = results_of(result)
        tables, files = tables_of(run.policy) if run.policy else {}, run.folder.results()
        self._each(run, "numbers", lambda dashboard: dashboard.log(values, step=step))
        self._each(run, "files", lambda dashboard: dashboard.keep(tables, files, step))

    def end(self, run: RunInfo, failed: bool) -> None:
        """End all; what could not be sent stays on disk, and the command that sends it is shown."""

        def end(dashboard: Dashboard) -> None:
            if command := dashboard.end(failed):
                run.say(f"{dashboard.name}: not everything was sent; to send it: {command}")

        self._each(run, "the end", end)
        self._begun.clear()

    def _each(self, run: RunInfo, what: str, action: Callable[[Dashboard], None]) -> None:
        for dashboard in self._begun:
            if (dashboard.name, what) not in self._failed:
                self._try(run, dashboard, what, action)

    def _try(
        self, run: RunInfo, dashboard: Dashboard, what: str, action: Callable[[Dashboard], None]
    ) -> None:
        try:
            action(dashboard)
        except Exception as error:  # a failing dashboard must not end the run
            self._failed.add((dashboard.name, what))
            run.warn(f"{dashboard.name} failed ({first_line(error)}): {what} disabled for this run")


def pictures_of(run: RunInfo, outer_step: int) -> dict[str, np.ndarray]:
    """The policy, and training images as the network sees them but without Cutout: uint8 [height, width, 3]."""
    pictures = {"images/augmented": figures.image_grid(run.augmented_images(outer_step)[:SAMPLES], columns=8)}
    if run.policy is not None:
        pictures["policy/heatmap"] = figures.pixels_of(figures.policy_heatmap(run.policy))
        pictures["policy/marginals"] = figures.pixels_of(figures.policy_marginals(run.policy))
    return pictures


def tables_of(policy: Policy) -> dict[str, Table]:
    """A policy's probabilities: of each element at every position, and of each operation."""
    space = policy.space
    names = [element.name for element in space.elements]
    positions = ORDINALS[: space.arity]
    elements = list(zip(names, *policy.element_probabilities.tolist(), strict=True))
    operations = [
        (*(names[element] for element in space.elements_of(operation)), probability)
        for operation, probability in enumerate(policy.probabilities.tolist())
    ]
    return {
        "policy/elements": Table(("element", *positions), elements),
        "policy/operations": Table((*positions, "probability"), operations),
    }


class _WandB(WandBTracker):
    """Online if there is a key and a server, else offline; `wandb sync` sends it later."""

    def __init__(self, recipe: Recipe, folder: Path, identity: str, first_outer_step: int) -> None:
        super().__init__(
            recipe.run.project,
            id=identity,
            name=_name(recipe),
            dir=str(folder),
            resume="allow",
            group=recipe.run.group,
            job_type="train" if recipe.augment.policy is not None else "search",
            tags=tags_of(recipe),
            config=recipe.model_dump(mode="json"),
        )

    def begin(self) -> str:
        """As in `Dashboard`."""
        import wandb

        def seconds(variable: str, default: float) -> float:
            return float(os.environ.get(variable, default))

        wandb.setup(wandb.Settings(silent=True))  # otherwise it would ask for a key on a terminal, and wait
        self.init_kwargs["settings"] = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=seconds("WANDB_INIT_TIMEOUT", 30),
            finish_timeout=seconds("WANDB_FINISH_TIMEOUT", 120),
            finish_timeout_raises=True,
        )
        because = ""
        try:
            self.start()
        except wandb.Error as error:
            because = f" ({next(iter(str(error).splitlines()), '')})"
            self.init_kwargs["mode"] = "offline"
            self.start()
        self.run.define_metric("*", step_metric="outer_step")
        if self.run.offline:
            return f"offline{because}; to send it: {self._sync}"
        return str(self.run.url)

    def show(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """As in `Dashboard`."""
        import wandb

        self.log({name: wandb.Image(image) for name, image in images.items()}, step=step)

    def keep(self, tables: Mapping[str, Table], files: Sequence[Path], step: int) -> None:
        """As in `Dashboard`; within a time limit, because W&B waits for its server before it accepts a table."""
        import wandb

        def send() -> None:
            self.log(
                {name: wandb.Table(list(t.columns), [*map(list, t.rows)]) for name, t in tables.items()}, step
            )
            artifact = wandb.Artifact(f"run-{self.run.id}", type="run")
            for file in files:
                artifact.add_file(str(file))
            self.run.log_artifact(artifact)

        _bounded(send, self.run.settings.finish_timeout)

    def end(self, failed: bool) -> str:
        """As in `Dashboard`."""
        offline = self.run.offline
        try:
            self.run.finish(exit_code=int(failed))
        except Exception:  # it timed out, or its process is gone: everything logged is on disk
            return self._sync
        return self._sync if offline and not failed else ""

    @property
    def _sync(self) -> str:
        return f"wandb sync {self.run.settings.sync_dir}"


class _TensorBoard(TensorBoardTracker):
    """Event files in the run folder."""

    def __init__(self, recipe: Recipe, folder: Path, identity: str, first_outer_step: int) -> None:
        # steps logged again by a resumed run replace the old ones
        super().__init__(TENSORBOARD, folder, purge_step=first_outer_step or None)
        self._recipe = recipe

    def begin(self) -> str:
        """As in `Dashboard`."""
        self.start()
        self.writer.add_custom_scalars(LAYOUT)
        self.writer.add_text("recipe", f"```yaml\n{self._recipe.to_yaml()}```")
        return f"tensorboard --logdir {self.logging_dir}"

    def show(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """As in `Dashboard`."""
        for name, image in images.items():
            self.writer.add_image(name, image, step, dataformats="HWC")

    def keep(self, tables: Mapping[str, Table], files: Sequence[Path], step: int) -> None:
        """As in `Dashboard`; only the paths of files."""
        for name, table in tables.items():
            rows = [table.columns, ["---"] * len(table.columns), *table.rows]
            self.writer.add_text(name, "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows), step)
        self.writer.add_text("files", "\n".join(f"- {file}" for file in files), step)

    def end(self, failed: bool) -> str:
        """As in `Dashboard`."""
        self.finish()
        return ""


class _Trackio(TrackioTracker):
    """On this machine, or at TRACKIO_SPACE_ID or TRACKIO_SERVER_URL."""

    def __init__(self, recipe: Recipe, folder: Path, identity: str, first_outer_step: int) -> None:
        super().__init__(
            recipe.run.project,
            name=f"{_name(recipe)}-{identity}",
            resume="allow",
            config=recipe.model_dump(mode="json"),
            embed=False,
        )

    def begin(self) -> str:
        """As in `Dashboard`."""
        with _silence():
            self.start()
        return f"trackio show --project {self.run_name}"

    def show(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """As in `Dashboard`."""
        import trackio

        self.log({name: trackio.Image(image) for name, image in images.items()}, step=step)

    def keep(self, tables: Mapping[str, Table], files: Sequence[Path], step: int) -> None:
        """As in `Dashboard`."""
        import trackio

        self.log(
            {name: trackio.Table(list(t.columns), [*map(list, t.rows)]) for name, t in tables.items()},
            step=step,
        )
        artifact = trackio.Artifact(f"run-{self.run.name}", type="run")
        for file in files:
            artifact.add_file(str(file), name=file.name)
        with _silence():
            trackio.log_artifact(artifact)

    def end(self, failed: bool) -> str:
        """As in `Dashboard`."""
        import trackio

        with _silence():
            trackio.finish()  # the tracker's own `finish` would cause a second one at exit
        return ""


_KINDS: dict[str, Callable[[Recipe, Path, str, int], Dashboard]] = {
    "wandb": _WandB,
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
}


def tags_of(recipe: Recipe) -> list[str]:
    """What runs are filtered by: the recipe's own tags, data, network, and how the policy is learned or which it is."""
    fixed = recipe.augment.policy
    how = recipe.outer.estimator if fixed is None else Path(str(fixed)).name
    kinds = (Path(recipe.data.path).name, recipe.model.name, how)
    return list(dict.fromkeys(tag[:_TAG] for tag in (*recipe.run.tags, *map(str, kinds)) if tag))


def _name(recipe: Recipe) -> str:
    return recipe.run.name or Path(recipe.run.dir).resolve().name


def _bounded(action: Callable[[], None], seconds: float) -> None:
    """Run an action that may wait for a server, and raise TimeoutError if it takes too long."""
    errors: list[Exception] = []

    def attempt() -> None:
        try:
            action()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {seconds:g} s")
    if errors:
        raise errors[0]


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    """Suppress trackio's output; `begin` returns the essence in one line."""
    return contextlib.redirect_stdout(io.StringIO())
