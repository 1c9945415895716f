"""The soak, in small: `python -m benchmarks.endurance`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from benchmarks.endurance import holds, main, summary
from benchmarks.mutations import KINDS, mutate

ASKED = ("--kills", "1", "--runs", "1", "--signals", "1", "--mutations", "2", "--steps", "0")


@pytest.mark.long
@pytest.mark.slow
def test_a_small_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill, a signal, mutations of every kind; and it goes on where it stopped."""
    log, page = tmp_path / "soak.jsonl", tmp_path / "soak.md"
    command = [sys.executable, "-m", "benchmarks.endurance", *ASKED, "--out", str(tmp_path / "soak")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = {line.pop("key"): line for line in map(json.loads, log.read_text().splitlines())}
    assert len(results) == 1 + 1 + len(KINDS)
    assert all(map(holds, results.values()))
    assert results["kills 1/1 0"]["layout"] == "1 process, map"
    assert results["signals 0"]["exit_codes"] == [75]
    assert results["mutations checkpoint tensors 0 2"]["count"] == 2
    assert "14 of 14 hold." in page.read_text()
    assert "| 1 process, map | 1 |" in page.read_text()
    before = log.read_text()
    monkeypatch.setenv("HF_DATASETS_CACHE", "elsewhere")  # which it changes
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path("elsewhere"))
    assert main([*ASKED[:-2], "--steps", "9", "--minutes", "0", "--out", str(tmp_path / "soak")]) == 0
    assert log.read_text() == before
    assert "tasks that are left, for the same command: 1" in page.read_text()


@pytest.mark.parametrize(
    ("result", "holds_"),
    [
        ({"error": "Traceback ..."}, False),
        ({"layout": "map", "kills": 3, "equal": True, "tracebacks": 0}, True),
        ({"layout": "map", "kills": 3, "equal": False, "tracebacks": 0}, False),
        ({"layout": "map", "kills": 3, "equal": True, "tracebacks": 1}, False),
        ({"layout": "map", "kills": 0, "ended": False, "equal": True, "tracebacks": 0}, False),
        ({"steps": 300, "grown_mib": 0.5, "open_files": [9, 9]}, True),
        ({"steps": 300, "grown_mib": 5.0, "open_files": [9, 9]}, False),
        ({"steps": 300, "grown_mib": 0.5, "open_files": [9, 10]}, False),
    ],
)
def test_what_holds(result: dict[str, object], holds_: bool) -> None:
    assert holds(result) == holds_
    page = summary({"steps 300" if "steps" in result else "kills 3/1 0": result}, ["command: x"])
    assert page.startswith(f"# Endurance\n\n{int(holds_)} of 1 hold.")


def test_what_is_not_refused_in_time_or_not_with_a_message_is_found(tmp_path: Path) -> None:
    file = tmp_path / "file"

    def read() -> None:
        raise KeyError("a traceback")

    with pytest.raises(KeyError) as found:
        mutate(b"content", file, read, count=9)
    assert found.value.__notes__ == ["mutation 0 of seed 0 of file"]
    outcomes = mutate(b"content", file, lambda: int(file.read_bytes()), count=50)
    assert outcomes["refused"] >= 45
    assert file.read_bytes() == b"content"
