"""The folder of a comparison or of a sweep, and running its jobs."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from ohl_accel.comparison.jobs import Job, last_words, run_jobs
from ohl_accel.errors import UserError
from ohl_accel.plain_json import read_object
from ohl_accel.recipe import Recipe
from ohl_accel.report.page import duration
from ohl_accel.run_folder.atomic import write_text
from ohl_accel.run_folder.files import METRICS_FILE
from ohl_accel.run_folder.metrics import read_metrics

_SETTINGS_FILE = "settings.json"


def claim(out: Path, recipe: Recipe, kind: str) -> FileLock:
    """Lock the folder, which may hold an earlier part of the same comparison and nothing else.

    Args:
        out: the folder, created if missing.
        recipe: what all of its runs have in common.
        kind: what it is for, in messages: comparison or sweep.

    Raises:
        UserError: if it is in use, holds something else, or cannot be written.
    """
    file = out / _SETTINGS_FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=0)
        if file.exists():
            try:
                settings = read_object(file)
            except ValueError as error:
                raise UserError(f"{file} is damaged: {error}; choose another --out") from None
            if not _is_of(recipe, settings):
                raise UserError(
                    f"--out {out} holds a {kind} of another recipe or with other overrides: choose another folder, "
                    "or give the same ones to continue it"
                )
        elif any(entry.name != ".lock" for entry in out.iterdir()):
            raise UserError(f"--out {out} is not empty and not a {kind}: choose another folder")
        else:
            write_text(file, json.dumps(_settings(recipe), indent=2) + "\n")
    except Timeout:
        raise UserError(f"--out {out} is in use by another {kind}") from None
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from None
    return lock


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What all runs of a comparison have in common."""
    return recipe.model_dump(mode="json", exclude={"run": {"dir", "seed", "resume", "overwrite"}})


def _is_of(recipe: Recipe, settings: dict[str, Any]) -> bool:
    """Whether a recipe has these settings, possibly written before a field was added to recipes."""
    try:
        earlier = Recipe.check({**settings, "run": {**settings["run"], "dir": recipe.run.dir}})
    except (UserError, KeyError, TypeError):
        return False
    return _settings(earlier) == _settings(recipe)


def run_all(jobs: Sequence[Job], side_by_side: int, console: Console) -> list[Job]:
    """Say what it will cost, run the jobs that have no result yet, and say how each ended.

    Args:
        jobs: all of them, in order.
        side_by_side: how many at once.
        console: shows progress.

    Returns:
        Those without a result.
    """
    to_do = [job for job in jobs if job.result is None]
    console.print(cost_in_words(jobs, side_by_side), markup=False)
    began, done, count = time.monotonic(), 0, 0
    whole = sum(job.share for job in to_do)

    def ended(job: Job, seconds: float) -> None:
        nonlocal count, done
        count += 1
        done += job.share
        score = job.test_score
        text = f"{100 * score:.2f} %" if score is not None else f"failed: {last_words(job)}"
        left = duration((time.monotonic() - began) / done * (whole - done))
        console.print(
            f"{len(jobs) - len(to_do) + count}/{len(jobs)} {job.contender} seed {job.seed}: {text} "
            f"({seconds:.0f} s), about {left} left",
            markup=False,
        )

    return run_jobs(jobs, side_by_side, ended)


def cost_in_words(jobs: Sequence[Job], side_by_side: int) -> str:
    """What jobs will cost: their number, in multiples of one plain training, and the time if one has finished.

    Args:
        jobs: all of them, finished or not.
        side_by_side: jobs in parallel.
    """
    to_do = [job for job in jobs if job.result is None]
    finished = len(jobs) - len(to_do)
    amount = sum(job.share for job in to_do)
    text = f"{len(jobs)} runs, {finished} of them already finished, {side_by_side} in parallel"
    if not to_do:
        return text
    text += f"\nto do: as much training as {amount} plain trainings"
    seconds = [(_seconds(job), job.share) for job in jobs if job.result is not None]
    measured = sum(share for spent, share in seconds if spent)
    if measured:
        each = sum(spent for spent, _ in seconds) / measured
        return f"{text}, about {duration(each * amount / side_by_side)} by the runs that are finished"
    return f"{text}; the time is known once the first run is finished"


def _seconds(job: Job) -> float:
    """How long a finished run took, by its metrics; 0 if they are not there."""
    try:
        lines = read_metrics(job.folder / METRICS_FILE)
        return float(sum(sum(line["seconds"].values()) for line in lines))
    except (UserError, KeyError, TypeError, AttributeError):
        return 0.0
