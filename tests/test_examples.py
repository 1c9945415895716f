"""examples/: the script in one process and in two, and the notebook in a real kernel, on a small scale."""

import json
import os
import pickle
import re
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from conftest import REPOSITORY
from nbclient import NotebookClient
from torch import nn

from ohl_accel import Policy
from ohl_accel.engine.session import Result
from ohl_accel.run_folder.metrics import read_metrics

EXAMPLES = REPOSITORY / "examples"
SHORT = ["outer.steps=2", "outer.inner_steps=2"]
SMALL = [*SHORT, "model.args.width=8", "outer.trajectories=2"]


def check(printed: str, folder: Path, processes: int) -> None:
    """What the script prints, once in a launch, is what the run folder holds."""
    assert f"2 trajectories in {processes} x 1 of {processes} process" in printed
    assert printed.count(repr(Policy.load(folder))) == 1
    accuracy = json.loads((folder / "result.json").read_text())["test_accuracy"]
    (scores,) = re.findall("^test scores: (.*)$", printed, re.MULTILINE)
    assert f"'accuracy': {accuracy}," in scores
    assert len(read_metrics(folder / "metrics.jsonl")) == 2
    # training again needs the dataset and the network, which no command can name
    assert "ohl_accel.train" not in printed


def test_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["search.py", *SHORT])
    runpy.run_path(str(EXAMPLES / "search.py"), run_name="__main__")
    check(capsys.readouterr().out, tmp_path / "runs" / "own", processes=1)


@pytest.mark.long
def test_the_script_in_two_processes(tmp_path: Path) -> None:
    config = REPOSITORY / "accelerate_configs" / "cpu_processes.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    done = subprocess.run(
        [*launcher, str(EXAMPLES / "search.py"), *SHORT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    check(done.stdout, tmp_path / "runs" / "own", processes=2)


def read_notebook() -> nbformat.NotebookNode:
    read: Callable[..., nbformat.NotebookNode] = nbformat.read
    return read(EXAMPLES / "notebook.ipynb", as_version=4)


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells in order, in a kernel; only the scale of the search and the port of its launch are changed."""
    notebook = read_notebook()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    cells[0].source += f"\noverrides += {SMALL}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    cells[1].source = cells[1].source.replace("num_processes=2", f"num_processes=2, use_port={port!r}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [shown_by(cell) for cell in cells]
    folder = tmp_path / "runs" / "notebook"
    policy = Policy.load(folder)
    assert policy != Policy()
    assert "2 trajectories in 2 x 1 of 2 processes" in shown[1]
    assert shown[2].strip().endswith(repr(policy))
    assert policy.top(1)[0][0] in shown[3]
    lines = read_metrics(folder / "metrics.jsonl")
    assert str(round(lines[0]["entropy"], 4)) in shown[4]
    assert any("image/png" in output.get("data", ()) for output in cells[5].outputs)
    accuracy = json.loads((folder / "result.json").read_text())["test_accuracy"]
    assert f"'accuracy': {accuracy}," in shown[6]


def shown_by(cell: nbformat.NotebookNode) -> str:
    """The text below a cell."""
    return "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in cell.outputs
    )


def test_a_result_leaves_its_network_in_its_process() -> None:
    """What a launcher gets back is pickled; a network may hold what cannot be."""
    network = nn.Sequential(nn.Linear(2, 2))
    network.register_forward_hook(lambda *_: None)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(network)
    test = {"accuracy": 0.5}
    result = Result(policy=Policy(), network=network, metrics=[{}], test=test, folder=Path("runs"))
    other = pickle.loads(pickle.dumps(result))
    assert (other.policy, other.metrics, other.test, other.folder) == (Policy(), [{}], test, Path("runs"))
    assert other.network is None


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = read_notebook()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
