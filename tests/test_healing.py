"""Runs whose checkpoints or metrics were damaged: they resume from the newest whole one, and say what was lost."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL, final_state, rewind
from forked import call_on_ranks, search_without_memory

from ohl_accel.engine import checkpoint
from ohl_accel.engine.search import search
from ohl_accel.errors import UserError

DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")
NEWEST, BEFORE = "step-000004", "step-000003"


@pytest.fixture
def folder(small_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


def resume(folder: Path) -> None:
    search(DIGITS, [*SMALL, f"run.dir={folder}", "outer.lr=0.3", "run.resume=auto"])


def outer_step(folder: Path) -> tuple[int | None, list[str]]:
    """(outer steps of the checkpoint that a run would resume from, warnings)."""
    warnings: list[str] = []
    contents = checkpoint.newest_whole(folder / "checkpoints", warnings.append)
    return contents.document["outer_step"] if contents else None, warnings


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def test_a_damaged_newest_checkpoint_and_torn_metrics(
    folder: Path, small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run resumes from the one before, and becomes what it was, but for the lines that are lost."""
    cut(folder / "checkpoints" / NEWEST / "state.safetensors")
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text(lines[0] + lines[1][:50])
    resume(folder)
    said = capsys.readouterr().out
    assert f"{NEWEST}: state.safetensors is not what was written" in said
    assert f"resuming from {BEFORE}, 1 outer step is done again" in said
    assert "has no whole line for 2 of the 3 outer steps done (outer_step 1, 2)" in said
    healed, whole = final_state(folder), final_state(small_run)
    assert healed.pop("metrics") == [whole["metrics"][0], whole["metrics"][3]]
    del whole["metrics"]
    assert healed == whole
    assert outer_step(folder) == (4, [])


def test_a_run_that_ends_with_its_first_checkpoint_knows_its_images(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run needs to be resumed is there before there is something to resume: it used to refuse its own stream."""
    save = checkpoint.save

    def save_and_end(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", save_and_end)
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path)
    names = ("heldout.json", "policy.json", "recipe.yaml")
    assert [name for name in names if not (tmp_path / name).exists()] == []
    assert (tmp_path / "heldout.json").read_text() == (small_run / "heldout.json").read_text()
    resume(tmp_path)
    assert final_state(tmp_path) == final_state(small_run)


def test_a_finished_run_without_metrics(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "metrics.jsonl").unlink()
    resume(folder)
    assert (
        "has no whole line for 4 of the 4 outer steps done (outer_step 0, 1, 2, 3)" in capsys.readouterr().out
    )
    assert (folder / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    "text", [None, "", "step-000001", "../../other/step-000009", "/etc", "\x00", "step-000004/.."]
)
def test_latest_decides_nothing(folder: Path, text: str | None) -> None:
    latest = folder / "checkpoints" / "latest"
    if text is None:
        latest.unlink()
    else:
        latest.write_text(text)
    assert outer_step(folder) == (4, [])


def test_a_checkpoint_that_is_missing_is_said(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints" / NEWEST)
    step, warnings = outer_step(folder)
    assert step == 3
    assert f"{NEWEST}: it is missing" in warnings[0]
    rewind(folder, BEFORE)
    assert outer_step(folder) == (3, [])
    shutil.rmtree(folder / "checkpoints" / BEFORE)
    step, warnings = outer_step(folder)
    assert step is None
    assert "the run starts from the beginning" in warnings[0]


def test_a_link_is_not_a_checkpoint(folder: Path, small_run: Path) -> None:
    rewind(folder, BEFORE)
    (folder / "checkpoints" / NEWEST).symlink_to(small_run / "checkpoints" / NEWEST)
    assert outer_step(folder) == (3, [])


def test_every_flipped_bit_is_found(folder: Path) -> None:
    """In each file of a checkpoint, at random places and at both ends."""
    draw = random.Random(0)
    for file in sorted((folder / "checkpoints" / NEWEST).iterdir()):
        content = file.read_bytes()
        for place in [0, len(content) - 1, *(draw.randrange(len(content)) for _ in range(40))]:
            flipped = bytearray(content)
            flipped[place] ^= 1 << draw.randrange(8)
            file.write_bytes(flipped)
            step, warnings = outer_step(folder)
            assert step == 3, (file.name, place)
            assert NEWEST in warnings[0]
        file.write_bytes(content)
    assert outer_step(folder) == (4, [])


def state_json(path: Path, **changes: object) -> None:
    """Another `state.json`, with the digest that belongs to it."""
    document = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**document, **changes}))
    digests = json.loads((path / "digests.json").read_text())
    digests["state.json"] = hashlib.sha256((path / "state.json").read_bytes()).hexdigest()
    (path / "digests.json").write_text(json.dumps(digests))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "digests.json").unlink(), "digests.json is missing"),
        (lambda path: (path / "digests.json").write_text("[" * 100_000), "RecursionError"),
        (lambda path: (path / "state.json").unlink(), "FileNotFoundError"),
        (lambda path: state_json(path, outer_step=3), "it says that it is of outer step 3"),
        (lambda path: state_json(path, recipe=5), "holds no recipe"),
    ],
)
def test_other_damage(folder: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(folder / "checkpoints" / NEWEST)
    step, warnings = outer_step(folder)
    assert step == 3
    assert reason in warnings[0]


def test_none_is_whole(folder: Path) -> None:
    for name in (BEFORE, NEWEST):
        cut(folder / "checkpoints" / name / "state.json")
    with pytest.raises(
        UserError, match=rf"is whole \({NEWEST}: state.json .*; {BEFORE}: .*run.overwrite=true"
    ):
        outer_step(folder)


def test_versions(folder: Path) -> None:
    """Version 1 has no digests; a newer one is refused, not passed over."""
    path = folder / "checkpoints" / NEWEST
    state_json(path, schema_version=3)
    with pytest.raises(UserError, match="has schema_version 3; this version reads 1 and 2"):
        outer_step(folder)
    state_json(path, schema_version=1)
    (path / "digests.json").unlink()
    assert outer_step(folder) == (4, [])


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_trajectory_without_memory(tmp_path: Path, small_run: Path, ranks: int) -> None:
    """Each process ends with one message, in time; the last checkpoint is whole, and the run ends as if undisturbed."""
    overrides = [*SMALL, f"run.dir={tmp_path / 'run'}", "outer.lr=0.3", "run.timeout=60"]
    with pytest.raises(AssertionError) as failed:
        call_on_ranks(ranks, search_without_memory, *overrides)
    printed = str(failed.value)
    assert f"exit codes {[1] * ranks}" in printed
    assert printed.count("error: there is not enough memory. More processes") == 1
    assert "run.resume=auto resumes from the last checkpoint" in printed
    assert "Traceback" not in printed
    assert outer_step(tmp_path / "run") == (2, [])
    resume(tmp_path / "run")
    assert final_state(tmp_path / "run") == final_state(small_run)
