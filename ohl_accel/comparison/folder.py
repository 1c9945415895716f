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
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.atomic import write_text

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
            if not _is_of(recipe, json.loads(file.read_text())):
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
    except UserError:
        return False
    return _settings(earlier) == _settings(recipe)


def run_all(jobs: Sequence[Job], side_by_side: int, console: Console) -> list[Job]:
    """Run the jobs that have no result yet, and say how each ended; returns those without a result.

    Args:
        jobs: all of them, in order.
        side_by_side: how many at once.
        console: shows progress.
    """
    finished = sum(job.result is not None for job in jobs)
    console.print(f"{len(jobs)} runs, {finished} of them already finished, {side_by_side} in parallel")
    began, count = time.monotonic(), 0

    def ended(job: Job, seconds: float) -> None:
        nonlocal count
        count += 1
        score = job.test_score
        text = f"{100 * score:.2f} %" if score is not None else f"failed: {last_words(job)}"
        remaining = len(jobs) - finished - count
        left = (time.monotonic() - began) / count * remaining / 60
        console.print(
            f"{finished + count}/{len(jobs)} {job.contender} seed {job.seed}: {text} ({seconds:.0f} s), about "
            f"{left:.0f} min left",
            markup=False,
        )

    return run_jobs(jobs, side_by_side, ended)
