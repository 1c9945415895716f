"""Files of a run folder: written whole or not at all, with the permissions of the umask."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ohl_accel.run_folder import atomic
from ohl_accel.run_folder.atomic import replacing, write_text


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """As if the process had been started with it."""
    before = os.umask(request.param)
    atomic._umask.cache_clear()
    yield request.param
    os.umask(before)
    atomic._umask.cache_clear()


def test_files_have_the_mode_that_the_umask_gives(umask: int, tmp_path: Path) -> None:
    """safetensors alone creates files that only their owner can read."""
    with replacing(tmp_path / "model.safetensors") as aside:
        save_file({"weight": torch.ones(2)}, aside)
    with replacing(tmp_path / "checkpoint") as folder:
        (folder / "deep").mkdir(parents=True)
        save_file({"weight": torch.ones(2)}, folder / "deep" / "state.safetensors")
    write_text(tmp_path / "policy.json", "{}")
    for name in ("model.safetensors", "checkpoint/deep/state.safetensors", "policy.json"):
        assert mode_of(tmp_path / name) == 0o666 & ~umask, name


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    (tmp_path / "folder").mkdir()
    write_text(tmp_path / "folder" / "file", "old")

    def interrupted(path: Path) -> None:
        with replacing(path) as aside:
            if path.is_dir():
                aside.mkdir()
            (aside / "file" if path.is_dir() else aside).write_text("half")
            raise KeyboardInterrupt

    for name in ("file", "folder"):
        with pytest.raises(KeyboardInterrupt):
            interrupted(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "file", "folder"]
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "file").read_text() == "old"
