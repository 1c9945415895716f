"""The search as a whole, in this process: the run folder, the metrics, failures, and the test split."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import REPOSITORY, SMALL, final_state, latest, rewind
from safetensors.torch import load_file

from ohl_accel.data import Images
from ohl_accel.data.source import open_split
from ohl_accel.engine import process, trajectory
from ohl_accel.engine.phases import Phases
from ohl_accel.engine.search import search
from ohl_accel.errors import RunFailedError, UserError
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators.estimator import finite_rewards, winner_of
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.metrics import read_metrics
from ohl_accel.search import main

DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")


def run(folder: Path, *overrides: str, recipe: str = DIGITS) -> Path:
    search(recipe, [*SMALL, f"run.dir={folder}", *overrides])
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("finished") / "run", "run.report=true")


def result(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return read


def test_run_folder(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir() if path.name != ".lock") == [
        "checkpoints", "classes.json", "config.json", "digests.json", "heldout.json", "metrics.jsonl",
        "model.safetensors",
        "policy.json", "recipe.yaml", "report.html", "result.json",
    ]  # fmt: skip
    policy = Policy.load(finished)
    assert policy.entropy < math.log(1296)
    assert policy.provenance["outer_steps_done"] == 4
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == [
        "latest", "step-000003", "step-000004",
    ]  # fmt: skip
    heldout = json.loads((finished / "heldout.json").read_text())
    assert (heldout["split"], len(set(heldout["rows"]))) == ("train", 297)
    assert 0.2 < result(finished)["test_accuracy"] <= 1


def test_metrics(finished: Path) -> None:
    lines = read_metrics(finished / "metrics.jsonl")
    assert [line["outer_step"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        assert len(line["reward"]) == len(line["train_loss"]) == len(line["heldout_loss"]) == 4
        assert line["winner"] == int(np.argmax(line["reward"]))
        assert sum(line["advantage"]) == pytest.approx(0)
        assert np.subtract(line["reward"], np.mean(line["reward"])) == pytest.approx(line["advantage"])
        assert line["diverged"] == []
        assert len(line["top_operations"]) == 5
        assert line["top_operations"][0]["probability"] > 1 / 1296
        phases = {"load", "augment", "train", "validate", "gather", "update", "adopt", "check"}
        assert phases <= set(line["seconds"])
        assert line["images_per_second"] > 0
    entropies = [line["entropy"] for line in lines]
    assert entropies == sorted(entropies, reverse=True)
    # cosine from 0.1 over 12 inner steps, as it stood in the last inner step of each outer step
    expected = [0.05 * (1 + math.cos(math.pi * step / 12)) for step in (2, 5, 8, 11)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(expected)
    assert lines[-1]["test_accuracy"] == result(finished)["test_accuracy"]
    assert "test_accuracy" not in lines[-2]


def test_parts_of_a_phase_on_cuda_are_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's clock would time only the starting of kernels. Here the device is a stand-in: 5 s for each part."""

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.recorded = False

        def record(self) -> None:
            self.recorded = True

        def elapsed_time(self, end: "Event") -> float:
            assert self.recorded
            assert end.recorded
            assert synchronized
            return 5000.0

    synchronized: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronized.append)
    phases = Phases(torch.device("cuda"))
    for _ in range(2):
        with phases("train"):
            for _ in range(3):
                with phases("augment", within="train"):
                    pass
    seconds = phases.take(1)["seconds"]
    assert seconds["augment"] == pytest.approx(30)
    assert seconds["train"] == pytest.approx(-30, abs=0.1)


def test_timm_reads_the_network(finished: Path) -> None:
    """Loaded by timm and run by hand on the test images, it scores what the run says."""
    network = timm.create_model(f"local-dir:{finished}", pretrained=True).eval()
    config: Any = network.pretrained_cfg
    rows = open_split(Recipe.load(DIGITS).data, "test")
    pixels = (
        torch.stack([torch.from_numpy(np.array(image)) for image in rows["image"]])[:, None].float() / 255
    )
    with torch.no_grad():
        logits = network((pixels - config["mean"][0]) / config["std"][0])
    accuracy = (logits.argmax(1) == torch.tensor(rows["label"])).double().mean().item()
    assert accuracy == pytest.approx(result(finished)["test_accuracy"], abs=0.0021)
    assert (tuple(config["input_size"]), config["num_classes"]) == ((1, 8, 8), 10)
    assert json.loads((finished / "config.json").read_text())["label_names"] == list("0123456789")


def test_the_resolved_recipe_reproduces_the_run(finished: Path, tmp_path: Path) -> None:
    search(str(finished / "recipe.yaml"), [f"run.dir={tmp_path}"])
    assert final_state(tmp_path) == final_state(finished)


def test_the_seed_matters(finished: Path, tmp_path: Path) -> None:
    run(tmp_path, "run.seed=1")
    other, this = final_state(tmp_path), final_state(finished)
    assert other["weights"] != this["weights"]
    assert other["theta"] != this["theta"]


@pytest.mark.usefixtures("another_precision")
def test_bf16_and_other_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A timm network with dropout, AdamW, Accelerate's bf16 and channels_last."""
    monkeypatch.setattr(process, "_cpu_has_bf16", lambda: False)
    folder = run(
        tmp_path,
        "run.mixed_precision=bf16",
        "model.name=test_convnext",
        "model.args={drop_path_rate: 0.1}",
        "model.channels_last=true",
        "data.image_size=32",
        "data.heldout=50",
        "data.test_split=null",
        "outer.trajectories=2",
        "inner.optimizer={name: adamw, lr: 0.001}",
        "inner.schedule={name: multistep, milestones: [0.5], warmup_epochs: 0.2}",
        "augment={pad_crop: 2, cutout: 8}",
    )
    assert capsys.readouterr().out.count("run.mixed_precision=no is the faster choice") == 1
    lines = read_metrics(folder / "metrics.jsonl")
    assert lines[-1]["learning_rate"] == pytest.approx(0.0001)
    assert min(lines[-1]["train_loss"]) < 2.3
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    config: Any = network.pretrained_cfg
    assert tuple(config["input_size"]) == (1, 32, 32)


def test_each_batch_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four hosted trajectories, three inner steps of 100 images: 300 training images are decoded, not 1,200."""
    decoded: list[tuple[int, int]] = []
    decode = Images.decode

    def counted(self: Images, indices: Sequence[int], *more: Any, **named: Any) -> Any:
        decoded.append((len(self), len(indices)))
        return decode(self, indices, *more, **named)

    monkeypatch.setattr(Images, "decode", counted)
    run(
        tmp_path,
        "outer.steps=1",
        "data.in_memory=false",
        "data.workers=0",
        "data.mean=[0.3]",
        "data.std=[0.4]",
    )
    # and a few to see that images are not all of one colour
    for total, used in ((1000, 300 + 1), (297, 297 + 1), (500, 500 + 1)):
        assert sum(count for all_of, count in decoded if all_of == total) == used


@pytest.fixture
def diverging(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Trajectories whose weights become NaN in their inner steps."""
    victims: set[int] = set()
    inner_step = trajectory.Trajectory.inner_step

    def spoiled(self: trajectory.Trajectory, *arguments: Any) -> None:
        inner_step(self, *arguments)
        if self.number in victims:
            with torch.no_grad():
                next(self.network.parameters()).fill_(math.nan)

    monkeypatch.setattr(trajectory.Trajectory, "inner_step", spoiled)
    return victims


def test_a_diverged_trajectory_never_wins(
    tmp_path: Path, diverging: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    diverging |= {0, 3}
    run(tmp_path)
    for line in read_metrics(tmp_path / "metrics.jsonl"):
        assert line["diverged"] == [0, 3]
        assert line["winner"] in (1, 2)
        assert line["reward"][0] == line["reward"][3] == min(line["reward"])
    assert all(value.isfinite().all() for value in load_file(tmp_path / "model.safetensors").values())
    assert "trajectories 0, 3 diverged" in capsys.readouterr().out


def test_if_all_diverge_the_last_good_state_stays(tmp_path: Path, diverging: set[int]) -> None:
    run(tmp_path, "outer.steps=2")
    good = final_state(tmp_path)
    rewind(tmp_path, "step-000001")
    diverging |= {0, 1, 2, 3}
    with pytest.raises(RunFailedError, match="in outer step 2 the loss or the weights of every trajectory"):
        run(tmp_path, "outer.steps=2", "run.resume=auto")
    diverging.clear()
    run(tmp_path, "outer.steps=2", "run.resume=auto")
    assert final_state(tmp_path) == good


def test_rewards_and_winner() -> None:
    accuracy, finite = torch.tensor([0.1, 0.7, 0.9, 0.7]), torch.tensor([False, True, False, True])
    reward = finite_rewards(accuracy, finite)
    assert reward.tolist() == pytest.approx([0.7, 0.7, 0.7, 0.7])
    assert winner_of(reward, finite) == 1
    assert winner_of(accuracy, torch.ones(4, dtype=torch.bool)) == 2


def test_a_folder_that_is_not_empty_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        UserError, match=r"is not empty \(it has notes.txt\): resume its run with run.resume=auto"
    ):
        run(tmp_path)
    run(tmp_path, "run.overwrite=true", "outer.steps=1")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    run(tmp_path, "run.overwrite=true")
    assert final_state(tmp_path) == final_state(finished)


def test_nothing_is_overwritten_before_all_is_checked(tmp_path: Path) -> None:
    before = final_state(run(tmp_path, "outer.steps=1"))
    with pytest.raises(UserError, match="timm has no such network; did you mean resnet18"):
        run(tmp_path, "run.overwrite=true", "model.name=resnet188")
    assert final_state(tmp_path) == before


def test_resuming_with_another_recipe_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "outer.steps=1")
    with pytest.raises(UserError, match=r"has a run with a different recipe \(outer.lr was 0.05, now 0.1\)"):
        run(tmp_path, "outer.steps=1", "run.resume=auto", "outer.lr=0.1")


def test_checkpoints_that_are_kept(tmp_path: Path) -> None:
    def kept() -> list[str]:
        return sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))

    run(tmp_path, "run.keep_checkpoints=3")
    assert kept() == ["step-000002", "step-000003", "step-000004"]
    rewind(tmp_path, "step-000002")
    (tmp_path / "checkpoints" / "step-000009").mkdir()  # newer than those that are written now
    run(tmp_path, "run.keep_checkpoints=1", "run.resume=auto")
    assert kept() == ["step-000004", "step-000009"]
    assert latest(tmp_path) == "step-000004"


def test_the_test_split_is_opened_after_everything_else(tmp_path: Path) -> None:
    """Its file is not a parquet file until the search has ended and everything is saved."""
    folder = tmp_path / "data"
    folder.mkdir()
    digits = Recipe.load(DIGITS).data
    train, test = open_split(digits, "train"), open_split(digits, "test")
    assert isinstance(train, datasets.Dataset)
    train.to_parquet(folder / "train.parquet")
    (folder / "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"the run is finished and saved .* split 'test' .* cannot be read"):
        run(tmp_path / "run", f"data.path={folder}")
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 4
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    test.to_parquet(folder / "test.parquet")
    run(tmp_path / "run", f"data.path={folder}", "run.resume=auto")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    assert result(tmp_path / "run")["test_images"] == 500


def test_no_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "data.test_split=null", "outer.steps=1")
    assert "test_accuracy" not in result(tmp_path)
    assert "no test split" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["outer.stepss=3"], "outer.stepss: unknown key; did you mean 'outer.steps'?"),
        (["data.path=no/such/place"], "data.path=no/such/place: there is no such file or folder"),
        (["model.name=resnet81"], "model.name=resnet81: timm has no such network; did you mean"),
        (["model.args={depth: 3}"], "model.name=resnet8_cifar, model.args={'depth': 3}"),
        (["model.name=vit_tiny_patch16_224", "model.args={}"], "cannot take images of 1 x 8 x 8"),
        (["inner.optimizer.name=sdg", "inner.optimizer.nesterov=false"], "no such optimizer; did you mean"),
        (
            ["model.shard=true", "inner.optimizer.name=adafactor", "inner.optimizer.nesterov=false"],
            "inner.optimizer.name=adafactor: may need whole tensors",
        ),
        (["model.shard=true", "model.compile=true"], "model.shard, model.compile: cannot be used together"),
        (["inner.optimizer.args={rho: 1}"], "inner.optimizer.name=sgd, inner.optimizer.args={'rho': 1}"),
        (["inner.batch_size=1001"], "inner.batch_size=1001 is more than the 1000 training images"),
        (["inner.schedule.warmup_epochs=2"], "takes 20 inner steps, but the run has 12"),
        (["outer.groups=2"], "outer.groups=2 must divide both the 4 trajectories and the 1 processes"),
        (["outer.groups=3"], "outer.groups=3 does not divide outer.trajectories=4"),
    ],
)
def test_mistakes(
    tmp_path: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says what is wrong in one message, without a traceback, and exits with 2."""
    code = main([DIGITS, *SMALL, f"run.dir={tmp_path / 'run'}", *overrides])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_a_missing_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([DIGITS.replace("digits", "digit")]) == 2
    assert "does not exist; that folder has" in capsys.readouterr().err
    assert main([]) == 2


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    from ohl_accel.run_folder.folder import RunFolder

    first = RunFolder(str(tmp_path), resume=False, overwrite=False)
    with pytest.raises(UserError, match="is in use by another run"):
        RunFolder(str(tmp_path), resume=True, overwrite=False)
    first.release()
    RunFolder(str(tmp_path), resume=True, overwrite=False).release()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder(str(tmp_path / "file" / "run"), resume=False, overwrite=False)


def test_the_recipe_in_the_run_folder_is_complete(finished: Path) -> None:
    written = yaml.safe_load((finished / "recipe.yaml").read_text())
    assert set(written) == {
        "run",
        "data",
        "model",
        "inner",
        "outer",
        "objective",
        "objective_args",
        "augment",
        "train",
        "hub",
        "track",
    }
    assert written["data"]["image_column"] == "image"
    assert len(written["data"]["mean"]) == 1
    assert written["run"]["mixed_precision"] == "no"


def test_a_run_is_resumed_only_on_its_own_images(tmp_path: Path) -> None:
    """Map-style; and a folder of an earlier version, which has no fingerprint, is accepted."""
    digits = open_split(Recipe.load(DIGITS).data, "train")
    splits = {"train": digits, "test": open_split(Recipe.load(DIGITS).data, "test")}
    overrides = [*SMALL, f"run.dir={tmp_path}", "outer.steps=1", "data.mean=[0.3]", "data.std=[0.4]"]
    search(DIGITS, overrides, dataset=splits)
    again = [*overrides, "run.resume=auto"]
    shifted = digits.map(lambda row: {"label": (row["label"] + 1) % 10})
    for other in (shifted, digits.select(range(1197))):
        with pytest.raises(UserError, match="has a run on different images: those of split 'train'"):
            search(DIGITS, again, dataset={**splits, "train": other})
    record = json.loads((tmp_path / "heldout.json").read_text())
    (tmp_path / "heldout.json").write_text(json.dumps({key: record[key] for key in ("split", "rows")}))
    search(DIGITS, again, dataset=splits)
    assert json.loads((tmp_path / "heldout.json").read_text()) == record
