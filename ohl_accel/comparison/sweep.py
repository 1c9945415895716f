"""Run a search for each point of a grid and each seed, and draw final test accuracies with error bars.

ohl-accel sweep policy_lr --seeds 3
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from ohl_accel.comparison.contenders import Contender, check
from ohl_accel.comparison.folder import claim, run_all
from ohl_accel.comparison.grid import Grid, Point, read_grid
from ohl_accel.comparison.jobs import Job, default_side_by_side, last_words
from ohl_accel.comparison.statistics import mean_interval
from ohl_accel.comparison.summary import Row, environment, rows_of
from ohl_accel.errors import RunFailedError, UserError
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.atomic import replacing, write_text
from ohl_accel.run_folder.files import RECIPE_FILE

JSON_FILE, MARKDOWN_FILE, FIGURE_FILE = "sweep.json", "sweep.md", "sweep.png"
_OWN_FIELDS = ("run.dir", "run.seed", "run.resume", "run.overwrite")


def sweep(
    grid: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    recipe: str | None = None,
    seeds: int = 3,
    first_seed: int = 0,
    out: str | PathLike[str] | None = None,
    jobs: int | None = None,
    console: Console | None = None,
) -> list[Row]:
    """Run a recipe's search once for each point of a grid and each seed.

    Each run is a separate process. Runs whose result is in `out` are not repeated, so the same call continues an
    interrupted sweep. It is written to `out` as sweep.json, sweep.md and sweep.png.

    Args:
        grid: the name or file of an ablation, or `section.key=[value, ...]` texts, of which the product is taken.
        overrides: `section.key=value`, of the recipe, for all points.
        recipe: instead of the ablation's: a path or name.
        seeds: how many; they are `first_seed` to `first_seed + seeds - 1`.
        first_seed: the first.
        out: the folder; runs/sweep-GRID if None.
        jobs: parallel runs; one per GPU, or as many as the cores allow, if None.
        console: shows progress and the table; None for standard output.

    Returns:
        A row for each point that has a result; differences are from the first point.

    Raises:
        UserError: if the grid, the recipe or the folder cannot work; before anything runs.
        RunFailedError: if runs failed; what there is, is written.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    asked = read_grid(grid)
    name = recipe or asked.recipe
    if name is None:
        raise UserError("--recipe: name the recipe to vary")
    given = [text.split("=")[0] for text in overrides] + [
        field for point in asked.points for field in point.values
    ]
    for field in given:
        if field in _OWN_FIELDS:
            raise UserError(f"{field} is set by the sweep")
    if seeds < 1 or first_seed < 0:
        raise UserError(f"--seeds {seeds} --first-seed {first_seed}: must be 1 or more, and 0 or more")
    resolved = Recipe.load(name, overrides)
    if resolved.data.test_split is None:
        raise UserError("data.test_split=null: a sweep needs a test split")
    check([Contender(point.name, "search", tuple(point.overrides)) for point in asked.points], resolved)
    folder = Path(out or Path("runs") / f"sweep-{asked.name}")
    command = ["ohl-accel", "sweep", *_arguments(grid), "--recipe", name, *overrides, "--seeds", str(seeds)]
    command += ["--first-seed", str(first_seed)] if first_seed else []
    lock = claim(folder, resolved, "sweep")
    try:
        write_text(folder / RECIPE_FILE, resolved.to_yaml())
        planned = plan(asked, resolved, folder, range(first_seed, first_seed + seeds))
        missing = run_all(planned, jobs or default_side_by_side(resolved.run.cpu_threads), console)
        problems = [f"{job.contender} seed {job.seed}: {last_words(job)}" for job in missing]
        rows = _collect(planned, asked, resolved)
        if rows:
            about = {"command": shlex.join(command), "missing": problems, **environment()}
            _write(folder, asked, rows, about)
            console.print(markdown(asked, rows, about), markup=False)
            console.print(f"{folder / MARKDOWN_FILE} and beside it {JSON_FILE}, {FIGURE_FILE}")
    finally:
        lock.release()
    if problems:
        first = f"{len(problems)} of {len(planned)} runs failed; the same command runs them again (logs in {folder})"
        raise RunFailedError("\n  ".join([first, *problems]))
    return rows


def _arguments(grid: Sequence[str]) -> list[str]:
    if "=" not in grid[0]:
        return [*grid]
    return [word for text in grid for word in ("--over", text)]


def plan(grid: Grid, recipe: Recipe, out: Path, seeds: range) -> list[Job]:
    """All runs, seed by seed, so that the whole figure is complete early."""
    jobs, shares = [], _trajectories(grid, recipe)
    for seed in seeds:
        for point in grid.points:
            place = Contender(point.name, "search", ()).folder
            folder, log = out / "runs" / place / f"seed-{seed}", out / "logs" / f"{place}-seed-{seed}.log"
            command = partial(_command, out, point, seed, folder)
            jobs.append(Job(point.name, seed, folder, log, command, share=shares[point.name]))
    return jobs


def _command(out: Path, point: Point, seed: int, folder: Path) -> list[str]:
    own = [f"run.seed={seed}", f"run.dir={folder}", "run.resume=auto"]
    return ["ohl_accel.search", str(out / RECIPE_FILE), *point.overrides, *own]


def _collect(jobs: Sequence[Job], grid: Grid, recipe: Recipe) -> list[Row]:
    accuracy: dict[str, dict[int, float]] = {point.name: {} for point in grid.points}
    for job in jobs:
        if (score := job.test_score) is not None:
            accuracy[job.contender][job.seed] = score
    return rows_of(accuracy, _trajectories(grid, recipe), grid.points[0].name)


def _trajectories(grid: Grid, recipe: Recipe) -> dict[str, int]:
    """N of each point."""
    return {point.name: Recipe.of(recipe, point.overrides).outer.trajectories for point in grid.points}


def markdown(grid: Grid, rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """The points as a Markdown table, with the notes needed to judge them."""
    reference = grid.points[0].name
    text = [
        f"# Sweep: {grid.label}",
        "",
        f"Final test accuracy in %; paired differences from {reference} in points.",
    ]
    text += [
        "",
        "| setting | n | mean | 95 % interval of the mean | difference | 95 % t interval | p (Holm) | seeds |",
    ]
    text += ["|---|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = [
            row.policy,
            str(len(row.accuracy)),
            f"{100 * row.mean:.2f}",
            _percent(mean_interval([*row.accuracy.values()])),
        ]
        found = row.difference
        cells += [f"{100 * found.mean:+.2f}", _percent(found.t_interval, "+")] if found else ["", ""]
        cells += ["" if row.p_holm is None else f"{row.p_holm:.3f}"]
        cells += [", ".join(f"{100 * value:.2f}" for value in row.accuracy.values())]
        text.append("| " + " | ".join(cells) + " |")
    text += ["", f"![test accuracy by {grid.label}]({FIGURE_FILE})", ""]
    also = [
        f"- {point.name}: with {', '.join(point.overrides[len(point.values) :])}"
        for point in grid.points
        if point.also
    ]
    text += [*also, *([""] if also else [])]
    text += [f"**Missing**: {'; '.join(about['missing'])}", ""] if about["missing"] else []
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return "\n".join([*text, f"Command: `{about['command']}`", "", f"{about['device']}, {versions}", ""])


def _percent(bounds: tuple[float, float] | None, sign: str = "") -> str:
    return "" if bounds is None else " to ".join(f"{100 * bound:{sign}.2f}" for bound in bounds)


def _write(folder: Path, grid: Grid, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    by_name = {point.name: point for point in grid.points}
    document = {
        "format": "ohl_accel.sweep",
        "schema_version": 1,
        "label": grid.label,
        **about,
        "rows": [
            {
                **by_name[row.policy].values,
                "n": len(row.accuracy),
                "mean": row.mean,
                "interval": mean_interval([*row.accuracy.values()]),
                "difference": row.difference and row.difference.mean,
                "p_holm": row.p_holm,
                "accuracy": {str(seed): value for seed, value in row.accuracy.items()},
            }
            for row in rows
        ],
    }
    write_text(folder / JSON_FILE, json.dumps(document, indent=2, allow_nan=False) + "\n")
    write_text(folder / MARKDOWN_FILE, markdown(grid, rows, about))
    _draw(grid, rows, folder / FIGURE_FILE)


def _draw(grid: Grid, rows: Sequence[Row], path: Path) -> None:
    """Every seed, the mean and its 95 % interval, at equal distances on the axis: values may be 0, or words."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    ticks = list(dict.fromkeys(str(point.x) for point in grid.points))
    lines = list(dict.fromkeys(point.line for point in grid.points))
    by_name = {row.policy: row for row in rows}
    for number, line in enumerate(lines):
        shift, colour = 0.1 * (number - (len(lines) - 1) / 2), f"C{number}"
        found = [
            (point, by_name[point.name])
            for point in grid.points
            if point.line == line and point.name in by_name
        ]
        xs = [ticks.index(str(point.x)) + shift for point, _ in found]
        means = [100 * row.mean for _, row in found]
        for x, (_, row) in zip(xs, found, strict=True):
            axes.plot(
                [x] * len(row.accuracy), [100 * value for value in row.accuracy.values()], ".", color="0.65"
            )
        bounds = [mean_interval([*row.accuracy.values()]) or (row.mean, row.mean) for _, row in found]
        errors = [[mean - 100 * low for mean, (low, _) in zip(means, bounds, strict=True)]]
        errors += [[100 * high - mean for mean, (_, high) in zip(means, bounds, strict=True)]]
        axes.errorbar(xs, means, errors, color=colour, marker="o", capsize=3, label=line)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set(xlabel=grid.label, ylabel="test accuracy (%): seeds, mean, 95 % interval")
    axes.grid(axis="y", color="0.9")
    if lines != [""]:
        axes.legend()
    with replacing(path) as aside:
        figure.savefig(aside, dpi=150, format="png")
