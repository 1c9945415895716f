"""docs/results.md: its tables are those that the committed data gives; rows that were run and rows that were not."""

import json
from pathlib import Path

import pytest

from benchmarks import results_page
from ohl_accel.recipe import Recipe


def test_the_page_is_what_the_data_gives() -> None:
    text = results_page.PAGE.read_text()
    between = text.split(results_page.BEGIN)[1].split(results_page.END)[0]
    assert between.strip() == results_page.made().strip(), "run: python -m benchmarks.results_page"
    for line in between.splitlines():
        if line.startswith("| Table"):
            assert f"| {results_page.NOT_RUN} | " in line or "`ohl-accel" in line
            assert line.endswith("` |"), "no number without its command"


def test_a_row_that_was_run(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = {
        "rows": [{"table": "Table 2", "recipe": "digits", "network": "ResNet-8", "none": "9.9", "ohl": "8.8"}]
    }
    (tmp_path / "paper.json").write_text(json.dumps(paper))
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    file = results_page.add(small_run, "four outer steps")
    assert file == tmp_path / "rows" / "digits-ohl.json"
    accuracy = json.loads((small_run / "result.json").read_text())["test_accuracy"]
    assert Recipe.load(str(file.with_suffix(".yaml"))) == Recipe.load(str(small_run))
    table = results_page.tables_2_and_3()
    command = "ohl-accel search benchmarks/results/rows/digits-ohl.yaml"
    assert f"| ohl | 8.8 | {100 - 100 * accuracy:.2f} | four outer steps | `{command}` |" in table
    assert (
        "| none | 9.9 | not run |  | `ohl-accel train digits augment.policy=none run.dir=runs/digits_none` |"
        in table
    )
    with pytest.raises(SystemExit, match=r"has no result.json"):
        results_page.add(tmp_path, "")


def test_a_sweep_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "figure_3a" / "sweep.json"
    file.parent.mkdir()
    row = {
        "outer.lr": 0.05,
        "n": 3,
        "mean": 0.5,
        "interval": [0.4, 0.6],
        "difference": 0.01,
        "p_holm": 0.25,
        "accuracy": {},
    }
    about = {
        "label": "rate",
        "command": "ohl-accel sweep policy_lr",
        "device": "d",
        "versions": {"torch": "2"},
    }
    file.write_text(json.dumps({**about, "rows": [row]}))
    text = results_page.sweep(file)
    assert "| outer.lr=0.05 | 3 | 50.00 | 40.00 to 60.00 | +1.00 | 0.250 |" in text
    assert "Command: `ohl-accel sweep policy_lr`" in text
    assert "figure_3a/sweep.png" in text
