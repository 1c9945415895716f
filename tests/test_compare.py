"""The paired comparison: statistics against closed forms, contenders, jobs, and the whole command."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, SMALL

from ohl_accel.compare import main
from ohl_accel.comparison.compare import Comparison, plan
from ohl_accel.comparison.contenders import check, contender
from ohl_accel.comparison.folder import cost_in_words
from ohl_accel.comparison.jobs import Job, last_words, run_jobs
from ohl_accel.comparison.statistics import holm, paired_difference
from ohl_accel.comparison.summary import draw, markdown, rows_of
from ohl_accel.policy import Policy
from ohl_accel.recipe import Recipe

DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")


def test_t_interval_against_the_tables() -> None:
    """Student's sleep data (1908): mean 1.58, 95 % interval 0.70 to 2.46, p = 0.00283."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = paired_difference(second, first)
    assert found.mean == pytest.approx(1.58)
    assert found.n == 10
    assert found.t_interval == pytest.approx((0.7001142, 2.4598858))
    assert found.p == pytest.approx(0.00283289, abs=1e-7)
    assert found.bootstrap_interval is not None
    low, high = found.bootstrap_interval
    resampled = np.random.default_rng(1).choice(np.subtract(second, first), (20_000, 10)).mean(1)
    assert (low, high) == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=0.03)
    assert paired_difference(second, first) == found


def test_one_seed_and_equal_differences() -> None:
    assert paired_difference([0.5], [0.4]).t_interval is None
    equal = paired_difference([0.5, 0.7], [0.5, 0.7])
    assert (equal.mean, equal.p, equal.t_interval) == (0, 1, (0, 0))
    assert paired_difference([0.6, 0.8], [0.5, 0.7]).p == 0
    with pytest.raises(ValueError, match="pairs are needed, got 1 and 2"):
        paired_difference([0.5], [0.4, 0.3])


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1, "b": 1}


def test_rows_compare_only_seeds_in_common() -> None:
    accuracy = {
        "none": {0: 0.50, 1: 0.52, 2: 0.51},
        "good": {0: 0.60, 1: 0.621, 2: 0.609, 3: 0.9},
        "same": {0: 0.49, 1: 0.53},
        "late": {7: 0.5},
        "never": {},
    }
    rows = rows_of(accuracy, dict.fromkeys(accuracy, 1), "none")
    assert [row.policy for row in rows] == ["none", "good", "same", "late"]
    assert [row.verdict for row in rows] == ["", "better", "no difference shown", ""]
    assert rows[1].difference is not None
    assert rows[1].difference.mean == pytest.approx(0.1)
    about = {
        "command": "python x",
        "device": "d",
        "python": "3",
        "versions": {},
        "missing": ["same seed 2: why"],
    }
    text = markdown(rows, "none", about)
    assert "| good | 4 | 68.25 ± 14.53 | 1 x | +10.00 | +9.75 to +10.25 |" in text
    assert "| none | 3 | 51.00 ± 1.00 | 1 x | reference |" in text
    assert "**Missing**: same seed 2: why" in text
    assert "- late: 50.00" in text


@pytest.mark.parametrize("seeds", [1, 4])
def test_figure_says_its_numbers_and_no_rows_touch(seeds: int, tmp_path: Path) -> None:
    """Every mean is written out; one seed has neither an interval nor a mean of several; labels lie apart."""
    names = [f"policy-{number}" for number in range(9)]
    accuracy = {
        name: {seed: 0.5 + 0.01 * n + 0.002 * seed for seed in range(seeds)} for n, name in enumerate(names)
    }
    rows = rows_of(accuracy, dict.fromkeys(names, 1), names[0])
    about = {"recipe": {"data": {"path": "/somewhere/digits"}, "model": {"name": "resnet8"}}}
    figure = draw(rows, names[0], about)
    figure.savefig(tmp_path / "figure.png")
    left, right = figure.axes
    title = figure.get_suptitle()
    assert "digits, resnet8" in title
    assert "/somewhere" not in title
    assert ("4 seeds" in title) == (seeds == 4)
    written = [text.get_text() for axes in (left, right) for text in axes.texts]
    assert written[:9] == [f"{100 * row.mean:.2f}" for row in rows]
    assert written[9:] == ["reference", *(f"{100 * (row.mean - rows[0].mean):+.2f}" for row in rows[1:])]
    assert ("interval" in right.get_xlabel()) == (seeds > 1)
    lines = [line for line in right.lines if len(line.get_xdata()) == 2 and line.get_color() != "black"]  # type: ignore[arg-type]
    assert len(lines) == (8 if seeds > 1 else 0)
    heights = [label.get_window_extent() for label in left.get_yticklabels()]
    assert all(upper.y0 > lower.y1 + 4 for upper, lower in itertools.pairwise(heights))


def test_cost_is_said_before_it_starts(tmp_path: Path) -> None:
    recipe = Recipe.load(DIGITS, ["outer.steps=20", "outer.trajectories=4"])
    contenders = [contender(name) for name in ("none", "ohl", "ohl-fresh")]
    asked = Comparison(recipe=recipe, contenders=contenders, seeds=range(2), out=tmp_path)
    jobs = plan(asked)
    said = cost_in_words(jobs, 2)
    assert said.startswith(
        "6 runs, 0 of them already finished, 2 in parallel\nto do: as much training as 12 plain"
    )
    assert "the time is known once the first run is finished" in said
    folder = jobs[0].folder
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"outer_step": 0, "seconds": {"train": 25.0, "save": 5.0}}\n')
    said = cost_in_words(jobs, 2)
    assert "as 11 plain trainings" in said
    assert "about 2 min 45 s by the runs" in said


def test_runs_of_a_contender_are_a_group_on_dashboards(tmp_path: Path) -> None:
    contenders = [contender(name) for name in ("none", "ohl")]
    for overrides, groups in (
        ([], [None, None]),
        (["track=wandb"], ["none", "ohl"]),
        (["run.group=x"], [None, None]),
    ):
        asked = Comparison(Recipe.load(DIGITS, overrides), contenders, range(1), tmp_path)
        found = [
            next((text for text in job.command() if text.startswith("run.group=")), None)
            for job in plan(asked)
        ]
        assert found == [group and f"run.group={group}" for group in groups]


def test_contenders() -> None:
    assert contender("ohl").overrides == ()
    of_paper = ("outer.estimator=reinforce", "outer.estimator_args={}")
    assert contender("uniform-best-of-n").overrides == (*of_paper, "outer.lr=0")
    assert contender("search:reinforce").overrides == of_paper
    assert contender("population").overrides == contender("search:population").overrides
    assert contender("search:mine.py:Own").overrides[0] == "outer.estimator=mine.py:Own"
    assert [contender(f"{name}-fresh").after for name in ("ohl", "population", "search:pbt")] == [
        "ohl", "population", "search:pbt"
    ]  # fmt: skip
    assert contender("population-fresh").compute(4) == 5
    assert contender("other-fresh").after is None  # a policy of that name, which there is not
    assert contender("none-compute-matched").overrides == ("augment.policy=none", "train.match=compute")
    assert [contender(name).compute(4) for name in ("none", "ohl", "ohl-fresh", "none-compute-matched")] == [
        1, 4, 5, 4
    ]  # fmt: skip
    folders = [
        contender(name).folder for name in ("uniform", "a/policy.json", "b/policy.json", "../x", "user/x@1")
    ]
    assert len(set(folders)) == 5
    assert all("/" not in folder and not folder.startswith(".") for folder in folders)
    assert folders[0] == "uniform"


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        (
            "none,trivial",
            "--policies trivial: augment.policy=trivial: no such policy; did you mean trivialaugment?",
        ),
        ("none,ohl-fresh", "has ohl-fresh, which needs ohl: give both"),
        ("none,search:pbt-fresh,ohl", "has search:pbt-fresh, which needs search:pbt: give both"),
        ("none,search:ptb", "--policies search:ptb: outer.estimator=ptb: "),
        ("none,ptb", "here also ohl, search:ESTIMATOR, population, uniform-best-of-n, NAME-fresh, NAME-comp"),
        ("none,uniform,none", "names none more than once"),
        ("none,missing/policy.json", "missing/policy.json"),
        (" , ", "--policies is empty"),
    ],
)
def test_contenders_that_cannot_run(
    policies: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([DIGITS, "--policies", policies, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reference", "uniform"], "--reference uniform is not one of --policies: none"),
        (["run.seed=3"], "run.seed=3: run.seed is set by the comparison"),
        (["data.test_split=null"], "a comparison needs a test split"),
        (["outer.stepz=3"], "unknown key; did you mean 'outer.steps'"),
        (
            ["--policies", "search:halving", "outer.steps=2"],
            "--policies search:halving: outer.estimator=halvi",
        ),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([DIGITS, "--policies", "none", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def job(folder: Path, name: str, *statement: str, after: Job | None = None) -> Job:
    """A job that writes its result by a one-line program."""
    write = f"import pathlib; pathlib.Path({str(folder / name / 'result.json')!r}).write_text('{{\"x\": 1}}')"
    (folder / name).mkdir()
    command = ["timeit", "-n1", "-r1", "; ".join(statement) or write]
    return Job(name, 0, folder / name, folder / f"{name}.log", lambda: command, after)


def test_jobs(tmp_path: Path) -> None:
    good = job(tmp_path, "good")
    bad = job(tmp_path, "bad", "import sys", r"sys.stderr.write('error: no luck\n')", "sys.exit(2)")
    after_good, after_bad = job(tmp_path, "next", after=good), job(tmp_path, "never", after=bad)
    ended: list[str] = []
    jobs = [bad, after_bad, after_good, good]
    missing = run_jobs(jobs, 2, lambda one, seconds: ended.append(one.contender))
    assert [one.contender for one in missing] == ["bad", "never"]
    assert ended.index("good") < ended.index("next")
    assert set(ended) == {"bad", "good", "next"}
    assert last_words(bad) == "error: no luck"
    assert last_words(after_bad) == "was not started: needs bad"
    ended.clear()
    assert run_jobs([good, after_good], 2, lambda one, seconds: ended.append(one.contender)) == []
    assert ended == []


def test_runs_come_seed_by_seed_and_what_is_needed_first() -> None:
    recipe, names = Recipe.load(DIGITS, ["outer.steps=1"]), ("ohl-fresh", "none", "ohl")
    learned = ["ohl-fresh", "population-fresh", "ohl", "population"]
    other = Comparison(recipe, [contender(name) for name in learned], seeds=range(1), out=Path("out"))
    needed = {one.contender: one.after.contender for one in plan(other) if one.after}
    assert needed == {"ohl-fresh": "ohl", "population-fresh": "population"}
    asked = Comparison(recipe, [contender(name) for name in names], seeds=range(4, 6), out=Path("out"))
    jobs = plan(asked)
    assert [(one.contender, one.seed) for one in jobs] == [
        (name, seed) for seed in (4, 5) for name in ("none", "ohl", "ohl-fresh")
    ]
    command = jobs[5].command()
    assert command[:2] == ["ohl_accel.train", "out/recipe.yaml"]
    assert {"run.seed=5", "run.resume=auto"} <= set(command)
    assert f"augment.policy={jobs[4].folder / 'policy.json'}" in command
    assert jobs[5].after is jobs[4]
    check(asked.contenders, recipe)


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "ohl_accel.compare",
        "recipes/digits.yaml",
        *SMALL[:1],
        "run.report=false",
        "--out",
        str(out),
    ]
    return subprocess.Popen(
        [*command, *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_the_command_runs_writes_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    quick = ("outer.steps=2", "outer.inner_steps=2", "--seeds", "1")
    first = start(out, "--policies", "none,ohl,ohl-fresh", *quick, "--jobs", "2")
    output, _ = first.communicate(timeout=200)
    assert first.returncode == 0, output
    document = json.loads((out / "comparison.json").read_text())
    assert Recipe.load(str(out / "recipe.yaml")) == Recipe.load(
        DIGITS, [SMALL[0], "run.report=false", *quick[:2]]
    )
    rows = {row["policy"]: row for row in document["rows"]}
    assert list(rows) == ["none", "ohl", "ohl-fresh"]
    assert [row["compute"] for row in document["rows"]] == [1, 4, 5]
    for name, row in rows.items():
        result = json.loads((out / "runs" / name / "seed-0" / "result.json").read_text())
        assert row["accuracy"] == {"0": result["test_accuracy"]}
        assert row["t_interval"] is None
    assert rows["ohl"]["difference"] == pytest.approx(rows["ohl"]["mean"] - rows["none"]["mean"])
    learned = Policy.load(out / "runs" / "ohl" / "seed-0")
    assert Policy.load(out / "runs" / "ohl-fresh" / "seed-0").theta.tolist() == learned.theta.tolist()
    assert "comparison.md" in output
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    # once more, with a policy more: only that one runs, also where recipes had a section less at the beginning
    settings = json.loads((out / "settings.json").read_text())
    del settings["hub"]
    (out / "settings.json").write_text(json.dumps(settings))
    same = [DIGITS, SMALL[0], "run.report=false", "--out", str(out)]
    assert main([*same, "--policies", "ohl,none,uniform", *quick]) == 0
    assert "3 runs, 2 of them already finished" in capsys.readouterr().out
    assert json.loads((out / "comparison.json").read_text())["reference"] == "ohl"
    arguments = ["recipes/digits.yaml", "--out", str(out), "--policies", "none", "outer.steps=3"]
    assert main(arguments) == 2
    assert "holds a comparison of another recipe or with other overrides" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stop_ends_the_runs_and_the_folder_is_taken_meanwhile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = ("outer.steps=1000000", "outer.inner_steps=1", "--policies", "none", "--seeds", "1")
    process = start(tmp_path / "out", *long)
    latest = tmp_path / "out" / "runs" / "none" / "seed-0" / "checkpoints" / "latest"
    deadline = time.monotonic() + 100
    while not latest.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert main([DIGITS, "--out", str(tmp_path / "out"), "--policies", "none"]) == 2
    assert "is in use by another comparison" in capsys.readouterr().err
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "stopped; the same command continues where it stopped" in output
    left = subprocess.run(["pgrep", "-f", f"run.dir={tmp_path}"], capture_output=True, text=True)
    assert left.stdout == "" or str(os.getpid()) in left.stdout
