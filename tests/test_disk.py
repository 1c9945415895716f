"""A disk that is full or gone for a while: the run goes on while it can, and nothing that was written is lost."""

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, SMALL, final_state, latest
from forked import call_on_ranks, search_that_cannot_end

from ohl_accel.engine import saving
from ohl_accel.engine.search import search
from ohl_accel.errors import RunFailedError, UserError
from ohl_accel.observers.observer import Observer, RunInfo
from ohl_accel.run_folder.atomic import append_text
from ohl_accel.run_folder.metrics import read_metrics
from ohl_accel.search import main

DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")


class Disk:
    """Every file is flushed before it counts: a disk that is full fails there."""

    def __init__(self) -> None:
        self.is_full = False
        self._fsync = os.fsync

    def fsync(self, handle: int) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._fsync(handle)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk


class After(Observer):
    """Does something after the line of an outer step is written, and before its checkpoint."""

    def __init__(self, **actions: Callable[[], object]) -> None:
        self._actions = actions

    def outer_step(self, run: RunInfo, line: Mapping[str, Any]) -> None:
        self._actions.get(f"step_{line['outer_step']}", lambda: None)()


def run(folder: Path, *overrides: str, **actions: Callable[[], object]) -> None:
    search(DIGITS, [*SMALL, f"run.dir={folder}", "outer.lr=0.3", *overrides], observers=[After(**actions)])


def test_a_run_goes_on_while_the_disk_is_full(
    disk: Disk, tmp_path: Path, small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full for the checkpoints of two outer steps and one line of the metrics."""

    def fill() -> None:
        disk.is_full = True

    def free() -> None:
        disk.is_full = False
        assert latest(tmp_path / "run") == "step-000001"

    run(tmp_path / "run", step_1=fill, step_2=lambda: None, step_3=free)
    said = capsys.readouterr().out
    assert said.count("cannot be written") == 2
    assert "the checkpoint after outer step 2 cannot be written" in said
    assert "No space left on device. The run goes on" in said
    assert "resumes after outer step 1" in said
    assert "metrics.jsonl cannot be written: No space left on device. The run goes on" in said
    assert "the checkpoint after outer step 4 is written" in said
    assert final_state(tmp_path / "run") == final_state(small_run)


def test_a_full_disk_at_the_end(
    disk: Disk, tmp_path: Path, small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message and exit code 1; with room again, the run ends as if nothing had happened."""

    def fill() -> None:
        disk.is_full = True

    with pytest.raises(
        RunFailedError, match=r"network cannot be written .*device; once .* resumes after outer step 3"
    ):
        run(tmp_path / "run", step_3=fill)
    assert not (tmp_path / "run" / "result.json").exists()
    code = main([DIGITS, *SMALL, f"run.dir={tmp_path / 'run'}", "outer.lr=0.3", "run.resume=auto"])
    printed = capsys.readouterr()
    assert (code, "Traceback" in printed.err) == (2, False)
    assert "cannot be written: No space left on device" in printed.err
    disk.is_full = False
    run(tmp_path / "run", "run.resume=auto")
    assert final_state(tmp_path / "run") == final_state(small_run)


def test_every_process_ends_if_one_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as failed:
        call_on_ranks(2, search_that_cannot_end, *SMALL, f"run.dir={tmp_path / 'run'}", "outer.steps=1")
    printed = str(failed.value)
    assert "exit codes [1, 1]" in printed
    assert printed.count("error: the trained network cannot be written") == 1
    assert "Traceback" not in printed


def test_a_full_disk_at_the_beginning(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    disk.is_full = True
    with pytest.raises(UserError, match=r"run.dir=.* cannot be written: No space .*; nothing was trained"):
        run(tmp_path / "run")
    assert sorted(entry.name for entry in (tmp_path / "run").rglob("*")) == [".lock"]


def test_a_full_disk_at_the_result(
    disk: Disk, tmp_path: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digests = vars(saving)["write_digests"]

    def write_and_fill(folder: Path, names: tuple[str, ...]) -> None:
        write_digests(folder, names)
        disk.is_full = True

    monkeypatch.setattr(saving, "write_digests", write_and_fill)
    folder = Path(shutil.copytree(small_run, tmp_path / "run"))
    (folder / "result.json").unlink()
    with pytest.raises(RunFailedError, match=r"finished, its policy and network are saved .* No space left"):
        run(folder, "run.resume=auto")
    assert (folder / "model.safetensors").read_bytes() == (small_run / "model.safetensors").read_bytes()


def test_a_folder_that_is_removed_comes_back(
    tmp_path: Path, small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run(folder, step_1=lambda: shutil.rmtree(folder))
    whole, left = final_state(small_run), final_state(folder)
    assert left.pop("metrics") == whole.pop("metrics")[2:]
    assert left == whole
    for name in ("recipe.yaml", "heldout.json", "result.json", "digests.json"):
        assert (folder / name).exists()


def test_a_line_that_cannot_be_written_leaves_no_part(tmp_path: Path, disk: Disk) -> None:
    file = tmp_path / "metrics.jsonl"
    append_text(file, '{"outer_step": 0}\n')
    disk.is_full = True
    with pytest.raises(OSError, match="No space"):
        append_text(file, '{"outer_step": 1}\n')
    disk.is_full = False
    append_text(file, '{"outer_step": 2}\n')
    assert [line["outer_step"] for line in read_metrics(file)] == [0, 2]
