"""Compare policies fairly: the same recipe, seeds in pairs, final test accuracy.

python -m ohl_accel.compare RECIPE --policies none,uniform,trivialaugment,ohl --seeds 10
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from ohl_accel.cli import run_command
from ohl_accel.comparison.contenders import Contender, arguments, check, contender, known_names
from ohl_accel.comparison.jobs import Job, default_side_by_side, last_words, run_jobs
from ohl_accel.comparison.summary import MARKDOWN_FILE, Row, rows_of, write
from ohl_accel.errors import RunFailedError, UserError
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.atomic import write_text

_SETTINGS_FILE = "settings.json"
_OWN_FIELDS = ("run.dir", "run.seed", "run.resume", "run.overwrite", "augment.policy", "train.match")


@dataclass(frozen=True)
class Comparison:
    """What was asked for on the command line."""

    recipe: str
    overrides: list[str]
    contenders: list[Contender]
    seeds: int
    reference: str
    out: Path
    side_by_side: int | None
    command: str
    """The command as it was typed."""


def compare(asked: Comparison, console: Console) -> None:
    """Run what has no result yet, then write the comparison.

    Raises:
        UserError: if a contender, the recipe or the folder cannot work; before anything runs.
        RunFailedError: if runs failed; what could be compared is written.
    """
    recipe = Recipe.load(asked.recipe, asked.overrides)
    if recipe.data.test_split is None:
        raise UserError("data.test_split=null: a comparison needs a test split")
    names = [one.name for one in asked.contenders]
    if asked.reference not in names:
        raise UserError(f"--reference {asked.reference} is none of --policies: {', '.join(names)}")
    check(asked.contenders, asked.recipe, asked.overrides)
    lock = _claim(asked.out, recipe)
    try:
        jobs = plan(asked)
        missing = _run(jobs, asked.side_by_side or default_side_by_side(recipe.run.cpu_threads), console)
        rows = _collect(jobs, asked, recipe.outer.trajectories)
        problems = [f"{job.contender} seed {job.seed}: {last_words(job)}" for job in missing]
        if rows:
            about = {"command": asked.command, "recipe": recipe.model_dump(mode="json"), "missing": problems}
            write(asked.out, rows, asked.reference, about)
            console.print(_table(rows, asked.reference))
            console.print(f"{asked.out / MARKDOWN_FILE} and beside it comparison.json, comparison.png")
    finally:
        lock.release()
    if problems:
        raise RunFailedError(
            "\n  ".join(
                [
                    f"{len(problems)} of {len(jobs)} runs failed; the same command runs them again (logs in "
                    f"{asked.out / 'logs'})",
                    *problems,
                ]
            )
        )


def plan(asked: Comparison) -> list[Job]:
    """All runs, seed by seed, so that pairs are complete early; a run that needs another follows it."""
    jobs: list[Job] = []
    for seed in range(asked.seeds):
        of_seed: dict[str, Job] = {}
        for one in sorted(asked.contenders, key=lambda one: one.after is not None):
            after = of_seed.get(one.after or "")
            folder = asked.out / "runs" / one.folder / f"seed-{seed}"
            job = Job(
                one.name,
                seed,
                folder,
                asked.out / "logs" / f"{one.folder}-seed-{seed}.log",
                partial(_command, asked, one, seed, folder, after),
                after,
            )
            of_seed[one.name] = job
            jobs.append(job)
    return jobs


def _command(asked: Comparison, one: Contender, seed: int, folder: Path, after: Job | None) -> list[str]:
    own = [f"run.seed={seed}", f"run.dir={folder}", "run.resume=auto"]
    overrides = [*asked.overrides, *arguments(one, after.folder if after else None), *own]
    return [f"ohl_accel.{one.command}", asked.recipe, *overrides]


def _claim(out: Path, recipe: Recipe) -> FileLock:
    """Take the folder, which may hold an earlier part of the same comparison and nothing else."""
    settings = recipe.model_dump(mode="json", exclude={"run": {"dir", "seed", "resume", "overwrite"}})
    file = out / _SETTINGS_FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=0)
        if file.exists():
            if json.loads(file.read_text()) != json.loads(json.dumps(settings)):
                raise UserError(
                    f"--out {out} holds a comparison of another recipe or with other overrides: choose another folder, "
                    "or give the same ones to go on with it"
                )
        elif any(entry.name != ".lock" for entry in out.iterdir()):
            raise UserError(f"--out {out} is not empty and holds no comparison: choose another folder")
        else:
            write_text(file, json.dumps(settings, indent=2) + "\n")
    except Timeout:
        raise UserError(f"--out {out} is in use by another comparison") from None
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from None
    return lock


def _run(jobs: Sequence[Job], side_by_side: int, console: Console) -> list[Job]:
    finished = sum(job.result is not None for job in jobs)
    console.print(f"{len(jobs)} runs, {finished} of them finished before, {side_by_side} side by side")
    began, count = time.monotonic(), 0

    def ended(job: Job, seconds: float) -> None:
        nonlocal count
        count += 1
        result = job.result
        text = f"{100 * result['test_accuracy']:.2f} %" if result else f"failed: {last_words(job)}"
        remaining = len(jobs) - finished - count
        left = (time.monotonic() - began) / count * remaining / 60
        console.print(
            f"{finished + count}/{len(jobs)} {job.contender} seed {job.seed}: {text} ({seconds:.0f} s), about "
            f"{left:.0f} min left",
            markup=False,
        )

    return run_jobs(jobs, side_by_side, ended)


def _collect(jobs: Sequence[Job], asked: Comparison, trajectories: int) -> list[Row]:
    accuracy: dict[str, dict[int, float]] = {one.name: {} for one in asked.contenders}
    for job in jobs:
        if job.result is not None:
            accuracy[job.contender][job.seed] = job.result["test_accuracy"]
    compute = {one.name: one.compute(trajectories) for one in asked.contenders}
    return rows_of(accuracy, compute, asked.reference)


def _table(rows: Sequence[Row], reference: str) -> Table:
    table = Table(title=f"Final test accuracy, and paired difference to {reference}", title_justify="left")
    for title in ("policy", "n", "mean", "difference", "95 % t interval", "verdict"):
        table.add_column(title, no_wrap=title != "verdict")
    for row in rows:
        found = row.difference
        interval = found.t_interval if found else None
        table.add_row(
            row.policy,
            str(len(row.accuracy)),
            f"{100 * row.mean:.2f}",
            f"{100 * found.mean:+.2f}" if found else "",
            f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}" if interval else "",
            row.verdict,
        )
    return table


def parse(argv: Sequence[str] | None) -> Comparison:
    """The command line.

    Raises:
        UserError: for overrides that a comparison sets by itself.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ohl_accel.compare",
        description="Compare policies fairly: the same recipe, seeds in pairs, final test accuracy.",
        epilog=f"Policies: {known_names()}, a policy.json, a run folder or a Hub id.",
    )
    parser.add_argument("recipe", help="a YAML recipe, such as recipes/digits.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that replace the recipe's"
    )
    parser.add_argument("--policies", required=True, help="names, separated by commas")
    parser.add_argument("--seeds", type=_count, default=5, help="how many seeds, from 0 on (default: 5)")
    parser.add_argument("--reference", help="what differences are to (default: the first of --policies)")
    parser.add_argument("--out", type=Path, help="folder (default: runs/compare-RECIPE)")
    parser.add_argument(
        "--jobs", type=_count, help="runs side by side (default: one for each GPU, or as cores allow)"
    )
    found = parser.parse_intermixed_args(argv)
    names = [name.strip() for name in found.policies.split(",") if name.strip()]
    if not names:
        raise UserError("--policies names nothing")
    for text in found.overrides:
        if text.split("=")[0] in _OWN_FIELDS:
            raise UserError(f"{text}: a comparison sets {text.split('=')[0]} by itself")
    return Comparison(
        found.recipe,
        found.overrides,
        [contender(name) for name in names],
        found.seeds,
        found.reference or names[0],
        found.out or Path("runs") / f"compare-{Path(found.recipe).stem}",
        found.jobs,
        shlex.join(["python", "-m", "ohl_accel.compare", *(sys.argv[1:] if argv is None else argv)]),
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    console = Console(highlight=False, soft_wrap=True)
    resume = "the same command goes on where it stopped"
    return run_command(lambda: compare(parse(argv), console), resume)
