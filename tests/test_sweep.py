"""Sweeps: grids, the runs of each point and seed, their table and figure; the ablations that come with the package."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY, SMALL
from forked import DIGITS
from scipy import stats

from ohl_accel import cli
from ohl_accel.comparison import jobs
from ohl_accel.comparison.contenders import Contender, check
from ohl_accel.comparison.grid import read_grid
from ohl_accel.comparison.statistics import mean_interval
from ohl_accel.cost import estimate, facts_of
from ohl_accel.cost.estimate import GPUS, between
from ohl_accel.distributed.layout import Layout
from ohl_accel.engine.search import search
from ohl_accel.errors import UserError
from ohl_accel.recipe import Recipe
from ohl_accel.recipe.packaged import ABLATIONS, packaged
from ohl_accel.report.tables import read_tables


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = [0.51, 0.53, 0.58, 0.49]
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected)
    assert mean_interval([0.5]) is None


def test_the_product_of_texts() -> None:
    grid = read_grid(["outer.lr=[0, 0.0005]", "outer.trajectories=[2, 4]"])
    assert [point.name for point in grid.points] == [
        "outer.lr=0 outer.trajectories=2",
        "outer.lr=0 outer.trajectories=4",
        "outer.lr=0.0005 outer.trajectories=2",
        "outer.lr=0.0005 outer.trajectories=4",
    ]
    assert grid.points[3].overrides == ["outer.lr=0.0005", "outer.trajectories=4"]
    assert (grid.points[3].x, grid.points[3].line) == (0.0005, "outer.trajectories=4")
    assert (grid.name, grid.label, grid.recipe) == ("outer.lr-outer.trajectories", "outer.lr", None)


def test_figure_3_as_the_paper_has_it() -> None:
    assert [point.x for point in read_grid(["policy_lr"]).points] == [0, 5e-4, 5e-3, 5e-2, 5e-1]
    trajectories = read_grid(["trajectories"])
    assert [point.x for point in trajectories.points] == [1, 4, 8, 16]
    assert trajectories.points[0].overrides == ["outer.trajectories=1", "outer.lr=0"]
    assert trajectories.points[0].name == "outer.trajectories=1"


@pytest.mark.parametrize("name", packaged(ABLATIONS))
def test_every_ablation_is_valid_and_trains_equally_long(name: str) -> None:
    grid = read_grid([name])
    assert grid.recipe is not None
    recipe = Recipe.load(grid.recipe)
    check([Contender(point.name, "search", tuple(point.overrides)) for point in grid.points], recipe)
    costs, first = [], estimate(recipe, facts_of(recipe))
    for point in grid.points:
        varied = Recipe.of(recipe, point.overrides)
        layout = Layout(varied.outer.trajectories, 1, 0, 1)
        costs.append(replace(first, recipe=varied, facts=facts_of(varied), layout=layout))
    steps = [cost.inner_steps * cost.recipe.outer.steps for cost in costs]
    assert max(steps) <= 1.001 * min(steps)
    low, high = (3 * sum(hours) for hours in zip(*(cost.gpu_hours(GPUS[0]) for cost in costs), strict=True))
    stated = f"# Cost: {between(low, high)} hours of one A100 for its three seeds.\n"
    assert stated in packaged(ABLATIONS)[name].read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("points: [{outer.lr: 0}]", "must have recipe, points"),
        ("recipe: digits\npoints: 3", "must have recipe, points"),
        ("recipe: digits\npoint: []\npoints: [{outer.lr: 0}]", "must have recipe, points"),
        ("recipe: digits\npoints: [3]", "point 1: must be a mapping"),
        ("recipe: digits\npoints: [{also: {outer.lr: 0}}]", "point 1: must be a mapping"),
        ("recipe: digits\npoints: [{outer.lr: 0}, {outer.steps: 3}]", "all points must give the same fields"),
        ("recipe: digits\npoints: [{outer.lr: 0}, {outer.lr: 0}]", "outer.lr=0 is given more than once"),
        ("recipe: [", "cannot be read"),
    ],
)
def test_files_that_are_no_grids(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        read_grid([str(file)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give an ablation, or what to vary"),
        (["policy"], "policy does not exist; did you mean policy_lr?"),
        (["--over", "outer.lr=[0, 1]"], "--recipe: name the recipe to vary"),
        (["--over", "outer.lr=0.1", "--recipe", "digits"], "must look like section.key=[value, value]"),
        (["--over", "run.seed=[0, 1]", "--recipe", "digits"], "run.seed is set by the sweep"),
        (["--over", "outer.lrr=[0, 1]", "--recipe", "digits"], "unknown key; did you mean 'outer.lr'"),
        (["policy_lr", "run.dir=x"], "run.dir is set by the sweep"),
        (["policy_lr", "data.test_split=null"], "a sweep needs a test split"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main("sweep", [*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_sweep_runs_continues_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real searches, in this process to spare the imports of another one."""
    started: list[list[str]] = []

    def start(job: jobs.Job, slot: int) -> subprocess.Popen[bytes]:
        module, recipe, *overrides = job.command()
        assert module == "ohl_accel.search"
        started.append(overrides)
        search(recipe, [*overrides, "run.display=quiet"])
        return subprocess.Popen(["true"])

    monkeypatch.setattr(jobs, "_start", start)
    grid = tmp_path / "own.yaml"
    points = [
        {"outer.trajectories": 1, "also": {"outer.lr": 0}},
        {"outer.trajectories": 2},
    ]
    grid.write_text(yaml.safe_dump({"recipe": DIGITS, "label": "N", "points": points}))
    small = [*SMALL[:1], "outer.steps=1", "outer.inner_steps=1", "inner.batch_size=8"]
    words = [str(grid), *small, "--out", str(tmp_path / "out"), "--jobs", "2"]
    assert cli.main("sweep", [*words, "--seeds", "1"]) == 0
    assert (
        "2 runs, 0 of them already finished, 2 in parallel\nto do: as much training as 3 plain"
        in capsys.readouterr().out
    )
    assert started[0][:3] == ["outer.trajectories=1", "outer.lr=0", "run.seed=0"]
    assert started[1][:2] == ["outer.trajectories=2", "run.seed=0"]
    assert cli.main("sweep", [*words, "--seeds", "2"]) == 0
    assert len(started) == 4, "what was finished is not repeated"
    out = tmp_path / "out"
    document = json.loads((out / "sweep.json").read_text())
    first, second = document["rows"]
    assert (first["outer.trajectories"], second["outer.trajectories"], first["n"]) == (1, 2, 2)
    for row in document["rows"]:
        results = [json.loads(file.read_text()) for file in sorted(out.glob("runs/*/seed-*/result.json"))]
        assert set(row["accuracy"].values()) <= {result["test_accuracy"] for result in results}
        assert row["interval"] == list(mean_interval([*row["accuracy"].values()]) or ())
    assert document["command"].startswith(f"ohl-accel sweep {grid} --recipe {DIGITS} ")
    text = (out / "sweep.md").read_text()
    assert "- outer.trajectories=1: with outer.lr=0" in text
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    (table,) = read_tables(out)
    assert table.title == "Sweep"
    capsys.readouterr()
    assert cli.main("sweep", [*words, "inner.batch_size=9"]) == 2
    assert "holds a sweep of another recipe" in capsys.readouterr().err


def test_the_ablations_command_lines_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("recipes", []) == 0
    listed = capsys.readouterr().out
    for name, file in packaged(ABLATIONS).items():
        assert f"  {name} " in listed
        assert f"#   ohl-accel sweep {name}\n" in file.read_text()
    assert {file.parent for file in packaged(ABLATIONS).values()} == {REPOSITORY / "recipes" / "ablations"}
