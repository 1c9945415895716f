"""What a run shows: bars on a terminal, lines, JSON, or next to nothing."""

import json
import math
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from conftest import REPOSITORY, SMALL

from ohl_accel.engine.objective import Classification
from ohl_accel.engine.search import search
from ohl_accel.observers.display import Display, _line_in_words
from ohl_accel.observers.observer import RunInfo
from ohl_accel.policy import Policy
from ohl_accel.policy.evidence import Evidence
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.folder import RunFolder
from ohl_accel.run_folder.metrics import read_metrics

DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")


def shown(capsys: pytest.CaptureFixture[str], folder: Path, mode: str) -> str:
    capsys.readouterr()
    search(DIGITS, [*SMALL, "outer.steps=2", f"run.dir={folder}", f"run.display={mode}"])
    return capsys.readouterr().out


def test_bars_on_a_terminal(tmp_path: Path) -> None:
    """Bars move and tell the time that remains, also while images are scored; each outer step leaves one line."""
    terminal, end = pty.openpty()
    overrides = [*SMALL, "outer.steps=2", "outer.inner_steps=12", f"run.dir={tmp_path / 'run'}"]
    overrides += ["data.eval_batch_size=4"]  # so that a bar is drawn before all are scored
    command = [sys.executable, "-m", "ohl_accel.search", DIGITS, *overrides]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=end, stderr=end) as process:
        os.close(end)
        output = b""
        while chunk := _read(terminal):
            output += chunk
    os.close(terminal)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())
    assert process.returncode == 0, text
    assert re.search(r"outer step [01]/2 +[━╸╺]+ 0:00:\d\d 0:00:\d\d", text)
    assert re.search(r"inner step 1?\d/12 +[━╸╺]+ 0:00:\d\d 0:00:\d\d", text)
    for name in ("scoring", "test"):
        assert re.search(rf"{name} \d+/\d+ +[━╸╺]+ 0:00:\d\d 0:00:\d\d", text)
    for step in (1, 2):
        (line,) = re.findall(rf"outer step {step}/2: best reward[^\r\n]*", text)
        assert len(line) <= 80
        assert re.search(r"p [\d.]+, \d+ % tied, loss", line)
    assert all(len(line.rstrip()) <= 80 for line in re.split(r"[\r\n]", text) if "━" in line)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's word for the end of a terminal
        return b""


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (math.inf, "best reward 0.5000, entropy 7.1670, winner 0, p 0.35, 12 % tied, loss 1.0000, 1.00 s"),
        (65, "best reward 0.5000, p 0.35, 12 % tied, loss 1.0000, 1.00 s"),
        (40, "best reward 0.5000, p 0.35, 12 % tied"),
        (10, "best reward 0.5000"),
    ],
)
def test_a_line_leaves_out_what_does_not_fit(width: float, line: str) -> None:
    policy = Policy()
    policy.provenance["evidence"] = Evidence(p_value=0.35, outer_steps=1, tied_share=0.12).document()
    run = cast("RunInfo", SimpleNamespace(policy=policy, objective=Classification(10)))
    metrics = {
        "reward": [0.5], "winner": 0, "entropy": 7.167, "evidence": {}, "train_loss": [1.0], "seconds": {"train": 1.0},
    }  # fmt: skip
    assert _line_in_words(metrics, run, width) == line


def test_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = [json.loads(line) for line in shown(capsys, tmp_path, "json").splitlines()]
    steps = [event for event in events if event.pop("event") == "outer_step" or "reward" in event]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [step["outer_step"] for step in steps] == [0, 1]
    assert steps[0] == lines[0]
    assert events[-1]["result"] == json.loads((tmp_path / "result.json").read_text())
    assert str(tmp_path / "policy.json") in events[-1]["files"]
    assert events[-1]["evidence"]["p_value"] == lines[-1]["evidence"]["p_value"]


def test_quiet_shows_the_end_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, tmp_path, "quiet")
    assert output.startswith("Search finished")
    assert str(tmp_path / "policy.json") in output


def test_the_next_commands_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = shown(capsys, tmp_path / "run", "plain")
    (command,) = [line.strip() for line in output.splitlines() if "ohl_accel.train" in line]
    done = subprocess.run(
        [sys.executable, *command.split()[1:]], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done
    assert (tmp_path / "run-learned" / "result.json").exists()


class _Lowest(Classification):
    metric = "loss"
    greater_is_better = False


@pytest.mark.parametrize("mode", ["plain", "quiet", "json"])
def test_warnings_are_shown_in_every_mode(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Display(True, mode)  # type: ignore[arg-type]
    folder = RunFolder(str(tmp_path / "run"), resume=False, overwrite=False)
    run = RunInfo(
        recipe=Recipe.load(DIGITS, ["outer.steps=2"]),
        recipe_is_whole=True,
        objective=Classification(10),
        folder=folder,
        first_outer_step=0,
        inner_steps=1,
        policy=None,
        augmented_images=lambda step: torch.zeros(1, 1, 8, 8, dtype=torch.uint8),
        say=display.say,
        warn=display.warn,
    )
    display.start(run)
    display.say("hello")
    display.warn("mind the gap")
    display.inner_step(run)
    line = {"outer_step": 0, "reward": [0.5], "train_loss": [1.0], "seconds": {"train": 1.0}, "diverged": [0]}
    display.outer_step(run, line)
    display.outer_step(replace(run, objective=_Lowest(10)), {**line, "reward": [-0.25]})
    display.end(run, failed=False)
    output = capsys.readouterr().out
    assert "mind the gap" in output
    assert "outer step 1: trajectories 0 diverged" in output
    assert ("hello" in output) == (mode != "quiet")
    assert ("held-out accuracy 0.5000, loss 1.0000, 1.00 s" in output) == (mode == "plain")
    assert ("held-out loss 0.2500, loss 1.0000, 1.00 s" in output) == (mode == "plain")
