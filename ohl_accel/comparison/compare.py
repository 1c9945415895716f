"""Compare policies fairly: the same recipe, paired seeds, final test accuracy.

python -m ohl_accel.compare RECIPE --policies none,uniform,trivialaugment,ohl --seeds 10
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ohl_accel.comparison.contenders import Contender, arguments, check, contender
from ohl_accel.comparison.folder import claim, run_all
from ohl_accel.comparison.jobs import Job, default_side_by_side, last_words
from ohl_accel.comparison.summary import MARKDOWN_FILE, Row, rows_of, write
from ohl_accel.errors import RunFailedError, UserError
from ohl_accel.recipe import Recipe
from ohl_accel.report.write import write_at_end
from ohl_accel.run_folder.atomic import write_text
from ohl_accel.run_folder.files import RECIPE_FILE, REPORT_FILE

_OWN_FIELDS = ("run.dir", "run.seed", "run.resume", "run.overwrite", "augment.policy", "train.match")


@dataclass(frozen=True)
class Comparison:
    """What is to be compared, and where."""

    recipe: Recipe
    contenders: Sequence[Contender]
    seeds: range
    out: Path


def compare(
    recipe: str | PathLike[str] | Mapping[str, Any] | Recipe,
    policies: Sequence[str],
    seeds: int = 5,
    *,
    overrides: Sequence[str] = (),
    reference: str | None = None,
    out: str | PathLike[str] | None = None,
    jobs: int | None = None,
    first_seed: int = 0,
    console: Console | None = None,
) -> list[Row]:
    """Train one recipe with several policies, in pairs of equal seeds, and compare final test accuracies.

    Each run is a separate process. Runs whose result is in `out` are not repeated, so the same call continues an
    interrupted comparison. It is written to `out` as comparison.json, comparison.md and comparison.png.

    Args:
        recipe: a path or name, plain values, or a recipe.
        policies: names (`ohl_accel.comparison.contenders`), paths or Hub ids.
        seeds: how many; they are `first_seed` to `first_seed + seeds - 1`.
        overrides: `section.key=value`, of the recipe.
        reference: the policy that the others are compared with; the first one if None.
        out: the folder; runs/compare-RECIPE if None.
        jobs: parallel runs; one per GPU, or as many as the cores allow, if None.
        first_seed: another one reports on seeds that were not used to choose settings.
        console: shows progress and the table; None for standard output.

    Returns:
        A row for each policy that has a result, in the order of `policies`.

    Raises:
        UserError: if a policy, the recipe or the folder cannot work; before anything runs.
        RunFailedError: if runs failed; what could be compared is written.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    names = list(policies)
    if not names:
        raise UserError("--policies is empty")
    for text in overrides:
        if text.split("=")[0] in _OWN_FIELDS:
            raise UserError(f"{text}: {text.split('=')[0]} is set by the comparison")
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be 1 or more")
    if first_seed < 0:
        raise UserError(f"--first-seed {first_seed}: must be 0 or more")
    resolved = Recipe.of(recipe, overrides)
    if resolved.data.test_split is None:
        raise UserError("data.test_split=null: a comparison needs a test split")
    reference = reference or names[0]
    if reference not in names:
        raise UserError(f"--reference {reference} is not one of --policies: {', '.join(names)}")
    named = isinstance(recipe, str | PathLike)
    stem = Path(recipe if isinstance(recipe, str | PathLike) else resolved.run.dir).stem
    asked = Comparison(
        recipe=resolved,
        contenders=[contender(name) for name in names],
        seeds=range(first_seed, first_seed + seeds),
        out=Path(out or Path("runs") / f"compare-{stem}"),
    )
    check(asked.contenders, resolved)
    command = [
        "python",
        "-m",
        "ohl_accel.compare",
        str(recipe if named else asked.out / RECIPE_FILE),
        *overrides,
    ]
    command += ["--policies", ",".join(names), "--seeds", str(seeds)]
    command += [*(["--first-seed", str(first_seed)] if first_seed else []), "--reference", reference]
    lock = claim(asked.out, resolved, "comparison")
    try:
        write_text(asked.out / RECIPE_FILE, resolved.to_yaml())
        planned = plan(asked)
        missing = run_all(planned, jobs or default_side_by_side(resolved.run.cpu_threads), console)
        rows = _collect(planned, asked, reference)
        problems = [f"{job.contender} seed {job.seed}: {last_words(job)}" for job in missing]
        if rows:
            about = {
                "command": shlex.join(command),
                "recipe": resolved.model_dump(mode="json"),
                "missing": problems,
            }
            write(asked.out, rows, reference, about)
            console.print(_table(rows, reference))
            write_at_end(asked.out, console.print)
            console.print(
                f"{asked.out / MARKDOWN_FILE} and beside it comparison.json, .png and {REPORT_FILE}"
            )
    finally:
        lock.release()
    if problems:
        raise RunFailedError(
            "\n  ".join(
                [
                    f"{len(problems)} of {len(planned)} runs failed; the same command runs them again (logs in "
                    f"{asked.out / 'logs'})",
                    *problems,
                ]
            )
        )
    return rows


def plan(asked: Comparison) -> list[Job]:
    """All runs, seed by seed, so that pairs are complete early; a run that needs another follows it."""
    jobs: list[Job] = []
    for seed in asked.seeds:
        of_seed: dict[str, Job] = {}
        for one in sorted(asked.contenders, key=lambda one: one.after is not None):
            after = of_seed.get(one.after or "")
            share = one.compute(asked.recipe.outer.trajectories) if after is None else 1
            folder = asked.out / "runs" / one.folder / f"seed-{seed}"
            job = Job(
                one.name,
                seed,
                folder,
                asked.out / "logs" / f"{one.folder}-seed-{seed}.log",
                partial(_command, asked, one, seed, folder, after),
                after,
                share,
            )
            of_seed[one.name] = job
            jobs.append(job)
    return jobs


def _command(asked: Comparison, one: Contender, seed: int, folder: Path, after: Job | None) -> list[str]:
    own = [f"run.seed={seed}", f"run.dir={folder}", "run.resume=auto"]
    if asked.recipe.track and asked.recipe.run.group is None:
        own.append(f"run.group={one.folder}")
    overrides = [*arguments(one, after.folder if after else None), *own]
    return [f"ohl_accel.{one.command}", str(asked.out / RECIPE_FILE), *overrides]


def _collect(jobs: Sequence[Job], asked: Comparison, reference: str) -> list[Row]:
    accuracy: dict[str, dict[int, float]] = {one.name: {} for one in asked.contenders}
    for job in jobs:
        if (score := job.test_score) is not None:
            accuracy[job.contender][job.seed] = score
    compute = {one.name: one.compute(asked.recipe.outer.trajectories) for one in asked.contenders}
    return rows_of(accuracy, compute, reference)


def _table(rows: Sequence[Row], reference: str) -> Table:
    table = Table(title=f"Final test accuracy, and paired difference from {reference}", title_justify="left")
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
