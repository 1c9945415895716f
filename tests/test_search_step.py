"""The benchmark of a search beside plain training, small; and what is measured on the day a GPU is there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

from benchmarks import search_step
from benchmarks.search_step import BEGIN, END, main


@pytest.mark.slow
def test_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes its table into a page, whose other parts stay."""
    monkeypatch.setattr(search_step, "PROPORTIONS", {"CIFAR-10": 2.0})
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    small = ["model.args={width: 8}", "inner.batch_size=20", "outer.trajectories=2"]
    main(
        [
            "--outer-steps",
            "2",
            "--inner-steps",
            "1",
            *small,
            "--result",
            f"{tmp_path}/r.md",
            "--page",
            str(page),
        ]
    )
    text = (tmp_path / "r.md").read_text()
    assert "20 training and 10 held-out images an outer step, as for CIFAR-10" in text
    assert "N = 2, I = 1, B = 20" in text
    assert text.count("\n| ") == 1 + 5
    assert "nan" not in text
    assert page.read_text() == f"before\n{BEGIN}{text.partition(chr(10))[2]}{END}after\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_day_needs_a_gpu(tmp_path: Path) -> None:
    command = ["bash", "benchmarks/gpu_day.sh", "elsewhere", str(tmp_path / "out")]
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.startswith("torch sees no CUDA device here")
    assert not (tmp_path / "out").exists()
