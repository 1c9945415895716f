"""Trajectories that keep states of their own: the same on any layout, and resumed where all N of them differ."""

import shutil
from pathlib import Path

import pytest
from conftest import KEEP, final_state, latest, launch, rewind

pytestmark = pytest.mark.slow

SCREENING = (
    *KEEP,
    "outer.steps=6",
    "outer.inner_steps=1",
    "outer.average=0.5",
    "outer.estimator=screening",
    "outer.estimator_args={rounds: 1, share: 0.7}",
)
"""A round of four outer steps, scored after the second and the fourth; then two with the policy learned."""
POPULATION = (
    *KEEP,
    "outer.steps=4",
    "outer.inner_steps=1",
    "outer.average=0.5",
    "outer.estimator=pbt",
    "outer.estimator_args={ready: 2, window: 1, begin: 0}",
)
"""The worst becomes a copy of the best after the second outer step, all of the winner after the fourth."""


def resumed(run: Path, name: str, folder: Path, processes: int, *overrides: str) -> Path:
    """A copy of a run taken back to a checkpoint, and finished from there."""
    shutil.copytree(run, folder)
    rewind(folder, name)
    output = launch(processes, f"run.dir={folder}", "run.resume=auto", *overrides)
    assert any("resuming after outer step" in line for line in output)
    assert latest(folder) == latest(run)
    return folder


def tensors(folder: Path, step: int) -> dict[str, bytes]:
    """The files with tensors of the checkpoint after an outer step."""
    files = (folder / "checkpoints" / f"step-{step:06d}").glob("*.safetensors")
    return {path.name: path.read_bytes() for path in files}


def test_a_round_of_screening_in_one_process_and_in_two(tmp_path: Path) -> None:
    launch(1, f"run.dir={tmp_path / 'one'}", *SCREENING)
    one = {step: tensors(tmp_path / "one", step) for step in range(7)}
    assert [len(files) for files in one.values()] == [1, 5, 5, 5, 1, 1, 1]
    assert len(set(one[3].values())) == 5
    two = resumed(tmp_path / "one", "step-000001", tmp_path / "two", 2, *SCREENING)
    assert {step: tensors(two, step) for step in range(7)} == one
    assert final_state(two) == final_state(tmp_path / "one")


def test_a_population_in_groups_of_two_processes(tmp_path: Path) -> None:
    """One group hosts all four trajectories, or two groups host two each, whole or sharded."""
    pair = tmp_path / "pair"
    launch(2, f"run.dir={pair}", "outer.groups=1", *POPULATION)
    written = {step: tensors(pair, step) for step in range(5)}
    assert [len(files) for files in written.values()] == [1, 5, 5, 5, 1]
    first, second = (line["parents"] for line in final_state(pair)["metrics"] if "parents" in line)
    assert len(set(first)) == 3
    assert len(set(second)) == 1
    for shard in ("false", "true"):
        groups = ("outer.groups=2", f"model.shard={shard}", *POPULATION)
        folder = resumed(pair, "step-000001", tmp_path / shard, 4, *groups)
        assert {step: tensors(folder, step) for step in range(5)} == written
        assert final_state(folder) == final_state(pair)
