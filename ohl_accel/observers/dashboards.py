"""Dashboards: what is in metrics.jsonl, and pictures of the policy, in W&B, TensorBoard and trackio.

They are Accelerate's trackers: one run of each for one search, also when it is resumed. A dashboard that fails is
disabled; the run continues.
"""

import contextlib
import importlib.util
import io
import json
import math
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
from ohl_accel.policy import Policy
from ohl_accel.recipe import Recipe
from ohl_accel.report import figures
from ohl_accel.run_folder.files import TENSORBOARD, TRACKERS_FILE

PICTURES = 20
"""So often in a run, at most, pictures and tables are made."""
SAMPLES = 32
"""Training images on a dashboard's picture."""
ORDINALS = ("first", "second", "third")
"""Positions of an operation's elements."""
_PER_TRAJECTORY = ("reward", "advantage", "train_loss", "heldout_loss")


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]


class Dashboard(Protocol):
    """One tracker."""

    name: str

    def begin(self) -> str:
        """Start or resume; returns where to look."""

    def log(self, values: Mapping[str, float | str], step: int | None = None) -> None:
        """Numbers and words of an outer step."""

    def show(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """Pictures of an outer step."""

    def keep(self, tables: Mapping[str, Table], files: Sequence[Path], step: int) -> None:
        """What the run ends with."""

    def end(self, failed: bool) -> str:
        """Send what is not sent yet, for a bounded time; returns the command that sends the rest, or nothing."""


class Dashboards(Observer):
    """All dashboards of one run: lines of metrics, pictures from time to time, tables and files at the end."""

    def __init__(self) -> None:
        self._begun: list[Dashboard] = []
        self._failed: set[tuple[str, str]] = set()

    def check(self, recipe: Recipe) -> None:
        """Make sure that the packages of trackers are installed.

        Raises:
            UserError: with the command that installs what is missing.
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
        """Log a line of `metrics.jsonl`; from time to time, and at the end, pictures as well."""
        step, steps = line["outer_step"], run.recipe.outer.steps
        values = flatten(line)
        self._each(run, "numbers", lambda dashboard: dashboard.log(values, step=step))
        every = max(1, steps // PICTURES)
        if self._begun and ((step + 1) % every == 0 or step + 1 == steps):
            images = pictures_of(run, step)
            self._each(run, "pictures", lambda dashboard: dashboard.show(images, step))

    def finish(self, run: RunInfo, result: Mapping[str, Any]) -> None:
        """Log the result, and keep tables and files."""
        step = run.recipe.outer.steps - 1
        values = {f"result/{key}": value for key, value in flatten(result).items()}
        tables, files = tables_of(run.policy) if run.policy else {}, run.folder.results()
        self._each(run, "numbers", lambda dashboard: dashboard.log(values, step=step))
        self._each(run, "files", lambda dashboard: dashboard.keep(tables, files, step))

    def end(self, run: RunInfo, failed: bool) -> None:
        """End all; what could not be sent stays on the disk, and the command that sends it is said."""

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
        except Exception as error:  # a dashboard is no reason to lose a run
            self._failed.add((dashboard.name, what))
            run.warn(f"{dashboard.name} failed ({first_line(error)}): {what} disabled for this run")


def pictures_of(run: RunInfo, outer_step: int) -> dict[str, np.ndarray]:
    """The policy, and training images as the network sees them but for Cutout: uint8 [height, width, 3]."""
    pictures = {"images/augmented": figures.image_grid(run.augmented_images(outer_step)[:SAMPLES], columns=8)}
    if run.policy is not None:
        pictures["policy/heatmap"] = figures.pixels_of(figures.policy_heatmap(run.policy))
        pictures["policy/marginals"] = figures.pixels_of(figures.policy_marginals(run.policy))
    return pictures


def tables_of(policy: Policy) -> dict[str, Table]:
    """A policy as numbers: each element's probability at every position, and each operation's."""
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


def flatten(line: Mapping[str, Any]) -> dict[str, float | str]:
    """Stable names for everything in a line of `metrics.jsonl`.

    `trajectory/0/reward` and so on for what each trajectory has, with `reward/best` and means over the
    trajectories; `seconds/train`, `top_operations/0/probability` for what is nested; `diverged` is a count.
    What was not measured is omitted.
    """
    flat: dict[str, Any] = {}
    for key, value in line.items():
        if key in _PER_TRAJECTORY and isinstance(value, list):
            flat |= {f"trajectory/{number}/{key}": one for number, one in enumerate(value)}
            if key != "advantage":
                flat[f"{key}/mean"] = float(np.mean(np.array(value, dtype=float)))
        elif key == "diverged":
            flat[key] = len(value)
        else:
            flat |= _leaves(key, value)
    if "reward" in line:
        flat["reward/best"] = float(np.max(np.array(line["reward"], dtype=float)))
    known = {key: value for key, value in flat.items() if value is not None}
    return {key: value for key, value in known.items() if isinstance(value, str) or math.isfinite(value)}


def _leaves(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        value = {str(number): one for number, one in enumerate(value)}
    if not isinstance(value, Mapping):
        return {name: value}
    return {key: leaf for part, one in value.items() for key, leaf in _leaves(f"{name}/{part}", one).items()}


class _WandB(WandBTracker):
    """Online where there is a key and a server, else offline; `wandb sync` sends it later."""

    def __init__(self, recipe: Recipe, folder: Path, identity: str, first_outer_step: int) -> None:
        super().__init__(
            recipe.run.project,
            id=identity,
            name=_name(recipe),
            dir=str(folder),
            resume="allow",
            config=recipe.model_dump(mode="json"),
        )

    def begin(self) -> str:
        """As in `Dashboard`."""
        import wandb

        def seconds(variable: str, default: float) -> float:
            return float(os.environ.get(variable, default))

        wandb.setup(wandb.Settings(silent=True))  # it would ask for a key on a terminal, and wait
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
        """As in `Dashboard`; tables only here, because W&B asks its server, and waits, before it takes one."""
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
        except Exception:  # it timed out, or its process is gone: everything logged is on the disk
            return self._sync
        return self._sync if offline and not failed else ""

    @property
    def _sync(self) -> str:
        return f"wandb sync {self.run.settings.sync_dir}"


class _TensorBoard(TensorBoardTracker):
    """Event files in the run folder."""

    def __init__(self, recipe: Recipe, folder: Path, identity: str, first_outer_step: int) -> None:
        # what a resumed run logs again replaces what is there
        super().__init__(TENSORBOARD, folder, purge_step=first_outer_step or None)
        self._recipe = recipe

    def begin(self) -> str:
        """As in `Dashboard`."""
        self.start()
        self.writer.add_text("recipe", f"```yaml\n{self._recipe.to_yaml()}```")
        return f"tensorboard --logdir {self.logging_dir}"

    def show(self, images: Mapping[str, np.ndarray], step: int) -> None:
        """As in `Dashboard`."""
        for name, image in images.items():
            self.writer.add_image(name, image, step, dataformats="HWC")

    def keep(self, tables: Mapping[str, Table], files: Sequence[Path], step: int) -> None:
        """As in `Dashboard`; of the files, where they are."""
        for name, table in tables.items():
            rows = [table.columns, ["---"] * len(table.columns), *table.rows]
            self.writer.add_text(name, "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows), step)
        self.writer.add_text("files", "\n".join(f"- {file}" for file in files), step)

    def end(self, failed: bool) -> str:
        """As in `Dashboard`."""
        self.finish()
        return ""


class _Trackio(TrackioTracker):
    """On this machine, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says."""

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
            trackio.finish()  # the tracker's own would leave the run to be finished once more at exit
        return ""


_KINDS: dict[str, Callable[[Recipe, Path, str, int], Dashboard]] = {
    "wandb": _WandB,
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
}


def _name(recipe: Recipe) -> str:
    return recipe.run.name or Path(recipe.run.dir).resolve().name


def _bounded(action: Callable[[], None], seconds: float) -> None:
    """Do something that may wait for a server, and continue without it after some time."""
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
    """trackio prints what `begin` says in one line."""
    return contextlib.redirect_stdout(io.StringIO())
