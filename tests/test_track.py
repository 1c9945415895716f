"""Dashboards: what was logged is read back from what each tracker wrote, and compared with metrics.jsonl."""

import importlib.util
import json
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, SMALL, launch, rewind
from hub_server import WRITER, HubServer
from processes import Process, run_search, tracked_by_trackio
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from wandb.proto import wandb_internal_pb2
from wandb_server import KEY, WandBServer

from ohl_accel.errors import UserError
from ohl_accel.observers.dashboards import Dashboards, tags_of
from ohl_accel.observers.scalars import LAYOUT, memory, results_of, scalars_of
from ohl_accel.operations.space import PAPER
from ohl_accel.policy import Policy
from ohl_accel.policy.evidence import Evidence
from ohl_accel.recipe import Recipe
from ohl_accel.report import figures
from ohl_accel.run_folder.metrics import read_metrics

pytestmark = pytest.mark.network

DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")
IMAGES = {"images/augmented", "policy/heatmap", "policy/marginals"}
TABLES = {"policy/elements", "policy/operations"}


def no_account(folder: Path) -> dict[str, str]:
    """Environment without any server configured."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HF_"))}
    return {**known, "HOME": str(folder), "TRACKIO_DIR": str(folder / "trackio"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with Process(no_account(tmp_path_factory.mktemp("home"))) as started:
        yield started


@pytest.fixture(scope="module")
def tracked(process: Process, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with all three, stopped after half of its steps and resumed; and its output."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    track = "track=[wandb, tensorboard, trackio]"
    options = ("run.keep_checkpoints=4", "run.project=test", "run.group=pairs", "run.tags=[mine]")
    arguments = (DIGITS, *SMALL, f"run.dir={folder}", track, *options)
    first = process(run_search, *arguments)
    assert first.code == 0, first
    rewind(folder, "step-000002")
    second = process(run_search, *arguments, "run.resume=auto")
    assert second.code == 0, second
    return folder, first.out + second.out


def expected(folder: Path) -> dict[int, dict[str, float]]:
    """Outer step -> the numbers that a dashboard must have."""
    lines = read_metrics(folder / "metrics.jsonl")
    return {line["outer_step"]: scalars_of(line, None) for line in lines}


def wandb_records(file: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format, 32 KiB blocks of (checksum, length, kind)."""
    content, position, part, records = file.read_bytes(), 7, b"", []
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        length, kind = struct.unpack_from("<HB", content, position + 4)
        if left < 7 or (kind == 0 and length == 0):
            position += left
            continue
        part += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = vars(wandb_internal_pb2)["Record"]()
            record.ParseFromString(part)
            records.append(record)
            part = b""
    return records


def history_of(records: list[Any]) -> dict[int, dict[str, Any]]:
    """Step -> the names and values that were logged at it."""
    history = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            row = {name: json.loads(value) for name, value in items.items()}
            history[row["_step"]] = row
    return history


def test_wandb_offline(tracked: tuple[Path, str]) -> None:
    folder, said = tracked
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2  # the second went on with the first: one run
    identity = json.loads((folder / "trackers.json").read_text())["id"]
    history: dict[int, dict[str, Any]] = {}
    for file in files:
        records = wandb_records(file)
        (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        assert (run.run_id, run.project, run.display_name) == (identity, "test", "run")
        assert (run.run_group, run.job_type) == ("pairs", "search")
        assert set(run.tags) == {"mine", "sklearn:digits", "resnet8_cifar", "reinforce"}
        config = {update.key: json.loads(update.value_json) for update in run.config.update}
        assert config["outer"]["steps"] == 4
        metrics = [record.metric for record in records if record.WhichOneof("record_type") == "metric"]
        assert [(metric.glob_name or metric.name, metric.step_metric) for metric in metrics] == [
            ("*", "outer_step")
        ]
        history |= history_of(records)
    assert sorted(history) == [0, 1, 2, 3]
    for step, values in expected(folder).items():
        assert values.items() <= history[step].items()
        assert "memory/host_peak_gib" in history[step]
        others = ("_", "result/", *IMAGES, *TABLES)
        assert len([name for name in history[step] if not name.startswith(others)]) <= 25
        assert {f"{name}/_type" for name in IMAGES} <= set(history[step])
    assert {f"{name}/_type" for name in TABLES} <= set(history[3])
    (table,) = (files[1].parent / "files" / "media" / "table" / "policy").glob("elements*.json")
    rows = json.loads(table.read_text())["data"]
    assert [row[1:] for row in rows] == Policy.load(folder).element_probabilities.T.tolist()
    artifacts = [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
    (kept,) = [artifact for artifact in artifacts if artifact.type == "run"]
    assert {"policy.json", "model.safetensors", "recipe.yaml"} <= {
        entry.path for entry in kept.manifest.contents
    }
    result = json.loads((folder / "result.json").read_text())
    assert history[3]["result/test_accuracy"] == result["test_accuracy"]
    assert f"wandb sync {files[1].parent}" in said
    assert "offline (No API key configured" in said


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # wandb-workspaces' own, about pydantic
def test_the_workspace_shows_what_is_logged(tracked: tuple[Path, str]) -> None:
    specification = importlib.util.spec_from_file_location(
        "workspace", REPOSITORY / "docs" / "wandb_workspace.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    made = module.workspace("me", "test")
    again = type(made)._from_model(made._to_model())  # what would be saved, read back
    assert [section.name for section in again.sections] == list(LAYOUT)
    panels = [panel for section in again.sections for panel in section.panels]
    shown = {metric.name for panel in panels for metric in getattr(panel, "y", None) or ()}
    assert shown <= logged_names(tracked[0]), shown
    assert {key for panel in panels for key in getattr(panel, "media_keys", None) or ()} == IMAGES
    patterns = [panel.metric_regex for panel in panels if getattr(panel, "metric_regex", None)]
    assert len(patterns) == 3
    assert all(any(re.fullmatch(pattern, name) for name in logged_names(tracked[0])) for pattern in patterns)


def logged_names(folder: Path) -> set[str]:
    """All series of a run, and of one that learned something."""
    names = {name for values in expected(folder).values() for name in values}
    return names | set(scalars_of({"outer_step": 0}, learned_policy())) | memory().keys()


def learned_policy() -> Policy:
    """A policy with one element and one operation outside of the noise."""
    policy = Policy()
    rotations = PAPER.elements_of(torch.arange(PAPER.num_operations))[:, 0] == 13
    policy.theta[rotations] = 3.0
    uniform_AE = PAPER.uniform_marginals
    evidence = Evidence(
        p_value=0.025,
        outer_steps=5,
        low_AE=tuple(map(tuple, (uniform_AE / 1.2).tolist())),
        high_AE=tuple(map(tuple, (uniform_AE * 1.2).tolist())),
        operation_band=(0.5, 1.5),
    )
    policy.provenance["evidence"] = evidence.document()
    return policy


def test_learned_elements_have_series_of_their_own() -> None:
    policy = learned_policy()
    ratio = float(policy.element_probabilities[0, 13]) * PAPER.num_elements
    found = scalars_of({"outer_step": 2}, policy)
    name = PAPER.elements[13].name
    assert found[f"policy/first/{name}"] == pytest.approx(ratio)
    assert found[f"policy/operation/{name} > {PAPER.elements[0].name}"] == pytest.approx(ratio)
    assert len(found) == 1 + 1 + 3  # the step, one element, three operations
    policy.provenance["evidence"]["p_value"] = 0.5
    assert scalars_of({"outer_step": 2}, policy) == {"outer_step": 2}
    assert scalars_of({"outer_step": 2}, Policy()) == {"outer_step": 2}


def test_tensorboard(tracked: tuple[Path, str]) -> None:
    folder, _ = tracked
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()
    for step, values in expected(folder).items():
        for name, value in values.items():
            if isinstance(value, float):
                (logged,) = [event.value for event in events.Scalars(name) if event.step == step]
                assert logged == pytest.approx(value, rel=1e-6)
    assert set(events.Tags()["images"]) == IMAGES
    assert [event.step for event in events.Images("policy/heatmap")] == [0, 1, 2, 3]
    (layout,) = {event.tensor_proto.string_val[0] for event in events.Tensors("custom_scalars__config__")}
    read = layout_pb2.Layout.FromString(layout)
    charts = {
        category.title: {chart.title: ["Multiline", list(chart.multiline.tag)] for chart in category.chart}
        for category in read.category
    }
    assert charts == LAYOUT
    scalars = events.Tags()["scalars"]
    for pattern in ("score/best", "loss/train", "loss/heldout", "learning_rate", "memory/.*"):
        assert any(re.fullmatch(pattern, name) for name in scalars)
    texts = {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]}
    assert {"recipe", "files", *TABLES} <= texts


def test_trackio(tracked: tuple[Path, str], process: Process) -> None:
    folder, _ = tracked
    identity = json.loads((folder / "trackers.json").read_text())["id"]
    runs = process(tracked_by_trackio, "test")
    assert list(runs) == [f"run-{identity}"]
    rows: dict[int, dict[str, Any]] = {}
    for row in runs[f"run-{identity}"]:
        rows.setdefault(row["step"], {}).update(row)
    for step, values in expected(folder).items():
        assert values.items() <= rows[step].items()
        assert all(rows[step][name]["_type"] == "trackio.image" for name in IMAGES)
    assert all(rows[3][name]["_type"] == "trackio.table" for name in TABLES)


def test_wandb_online_and_a_server_that_leaves(tmp_path: Path) -> None:
    with WandBServer() as server:
        folders = {leaves: tmp_path / f"leaves-{leaves}" for leaves in (False, True)}
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_FINISH_TIMEOUT": "6"}
        with Process({**no_account(tmp_path), **environment}) as process:
            done = process(run_search, DIGITS, *SMALL, f"run.dir={folders[False]}", "track=wandb")
            assert done.code == 0, done
            identity = json.loads((folders[False] / "trackers.json").read_text())["id"]
            assert f"wandb: {server.url}/me/ohl-accel/runs/{identity}" in done.out
            assert "not everything was sent" not in done.out
            rows: dict[int, dict[str, Any]] = {}
            for row in server.history[identity]:
                rows.setdefault(row["_step"], {}).update(row)
            for step, values in expected(folders[False]).items():
                numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
                assert numbers.items() <= rows[step].items()
            assert sum("policy/heatmap" in file for file in server.files) == 4
            assert "CreateArtifact" in server.operations

            server.operations.clear()
            server.leaves = True
            done = process(run_search, DIGITS, *SMALL, f"run.dir={folders[True]}", "track=wandb")
            assert done.code == 0, done
            assert (folders[True] / "result.json").exists()
            (place,) = (folders[True] / "wandb").glob("run-*")
            assert f"wandb: not everything was sent; to send it: wandb sync {place}" in done.out
            kept = history_of(wandb_records(next(place.glob("*.wandb"))))
            assert sorted(kept) == [0, 1, 2, 3]
    for folder in folders.values():
        assert not any(KEY.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert not any(KEY.encode() in body for body in server.bodies)


def test_two_processes_make_one_run_and_one_commit(tmp_path: Path) -> None:
    with HubServer() as hub:
        environment = {**no_account(tmp_path), **hub.environment(tmp_path / "hub"), "HF_TOKEN": WRITER}
        overrides = ("outer.steps=2", f"run.dir={tmp_path / 'run'}", "track=[wandb, tensorboard]")
        output = launch(2, *overrides, "hub.repo=user/two", **{**environment, "WANDB_MODE": "offline"})
    assert hub.repositories["user/two"].messages == ["added", "Network and policy"]
    assert (
        sum("POST /api/repos/create" in request for request in hub.requests) == 2
    )  # at the start and the end
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    assert sum(line.startswith("published: ") for line in output) == 1


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    Dashboards().check(Recipe.load(DIGITS, ["track=[wandb,tensorboard,trackio]"]))
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trackio" else find(name))
    with pytest.raises(UserError, match="track: trackio is not installed: pip install trackio"):
        Dashboards().check(Recipe.load(DIGITS, ["track=[wandb,trackio]"]))


def test_names_of_what_is_logged() -> None:
    line = {
        "outer_step": 3, "reward": [0.25, 0.75], "advantage": [-0.25, 0.25], "train_loss": [1.0, 3.0],
        "diverged": [1], "seconds": {"train": 2.0, "save": 0.5}, "heldout_loss": [None, 2.0], "winner": 1,
        "top_operations": [{"operation": "A > B", "probability": 0.1}], "evidence": {"p_value": 0.5},
        "entropy": None, "learning_rate": 0.1, "element_probabilities": [[0.5, 0.5]],
    }  # fmt: skip
    assert scalars_of(line, None) == {
        "outer_step": 3, "score/best": 0.75, "score/mean": 0.5, "score/spread": 0.5, "loss/train": 2.0,
        "loss/heldout": 2.0, "learning_rate": 0.1, "evidence/p_value": 0.5, "speed/seconds": 2.5,
        "trouble/diverged": 1,
    }  # fmt: skip
    assert scalars_of({"outer_step": 0, "reward": [None, None]}, None) == {"outer_step": 0}
    assert results_of({"test_accuracy": 0.5, "metric": "accuracy", "test_loss": float("nan"), "x": None}) == {
        "result/test_accuracy": 0.5, "result/metric": "accuracy"
    }  # fmt: skip
    recipe = Recipe.load(DIGITS, ["augment.policy=trivialaugment", "run.tags=[a, a]"])
    assert tags_of(recipe) == ["a", "sklearn:digits", "resnet8_cifar", "trivialaugment"]


def test_small_images_are_enlarged() -> None:
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    grid = figures.image_grid(image, columns=1)
    assert grid.shape == (64, 64, 3)
    assert (grid[::8, ::8, 0] == image[0, 0].numpy()).all()
    assert (grid[7::8, 7::8, 2] == image[0, 0].numpy()).all()
    large = torch.zeros(3, 3, 70, 90, dtype=torch.uint8)
    assert figures.image_grid(large, columns=2).shape == (141, 181, 3)
