"""Scoring a finished network, against the run's own result and by hand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import timm
import torch
from conftest import REPOSITORY, SMALL
from hub_server import HubServer

from ohl_accel.data.source import open_split
from ohl_accel.engine.evaluate import evaluate
from ohl_accel.engine.train import train
from ohl_accel.evaluate import main
from ohl_accel.policy import Policy
from ohl_accel.recipe import DataSection

DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    train(DIGITS, [*SMALL, f"run.dir={folder}", "augment.policy=none", "inner.optimizer.lr=0.3"])
    return folder


def digits(split: str) -> datasets.Dataset:
    return open_split(DataSection(path="sklearn:digits"), split)


def test_equals_the_result_of_the_run(run: Path) -> None:
    evaluation = evaluate(run)
    found = evaluation.document()
    result = json.loads((run / "result.json").read_text())
    assert evaluation.what == "split 'test' of sklearn:digits"
    assert (found["images"], found["top1"], found["top5"]) == (
        500, result["test_accuracy"], result["test_top5_accuracy"]
    )  # fmt: skip
    assert found["loss"] == pytest.approx(result["test_loss"], abs=1e-12)


def test_classes_by_hand(run: Path) -> None:
    """timm loads the network on its own; counts by plain loops."""
    found = evaluate(run, split="train").document()
    network = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    rows = digits("train")
    config: Any = network.pretrained_cfg
    levels = torch.stack(
        [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in rows["image"]]
    )
    inputs = (levels.view(-1, 1, 8, 8) / 255 - config["mean"][0]) / config["std"][0]
    with torch.no_grad():
        answers = network(inputs).argmax(1).tolist()
    assert len(found["classes"]) == 10
    for label, row in enumerate(found["classes"]):
        of_class = [answer for answer, true in zip(answers, rows["label"], strict=True) if true == label]
        wrong = [answer for answer in of_class if answer != label]
        assert (row["class"], row["images"]) == (str(label), len(of_class))
        assert row["top1"] == pytest.approx(of_class.count(label) / len(of_class))
        assert row["mistaken"] == max((wrong.count(other) for other in range(10)), default=0)
        if wrong:
            assert wrong.count(int(row["most_often_taken_for"])) == row["mistaken"]


def test_other_data_are_matched_by_the_names_of_classes(run: Path, tmp_path: Path) -> None:
    """The same digits, of which only 3 and 7 are left, under other numbers and in other columns."""
    rows = digits("test").filter(lambda row: row["label"] in (3, 7))
    names = ["3" if label == 3 else "7" for label in rows["label"]]
    other = datasets.Dataset.from_dict({"picture": rows["image"], "digit": names}, features=datasets.Features(
        picture=datasets.Image(), digit=datasets.ClassLabel(names=["7", "3"])))  # fmt: skip
    other.to_parquet(tmp_path / "other.parquet")
    own = {row["class"]: row for row in evaluate(run).document()["classes"]}
    found = evaluate(run, data=str(tmp_path / "other.parquet")).document()
    assert found["images"] == len(names)
    for row in found["classes"]:
        assert row == own[row["class"]] if row["class"] in "37" else (row["images"], row["top1"]) == (0, None)


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--json", str(tmp_path / "numbers.json")]) == 0
    written = json.loads((tmp_path / "numbers.json").read_text())
    assert written == evaluate(run).document()
    output = capsys.readouterr().out
    assert f"top-1 {100 * written['top1']:.2f} %" in output
    assert "most often taken for" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no such run folder, and it is not a Hub id"),
        (["tests"], "tests has no model.safetensors and no config.json: it is not a run folder"),
        (["RUN", "--split", "validation"], "sklearn:digits has no split 'validation'; it has: train, test"),
        (["RUN", "--revision", "main"], "is a folder; only a Hub id has revisions"),
        (["RUN", "outer.steps=1"], "outer.steps=1: only the data section can be changed here"),
        (["RUN", "data.eval_batch_sise=1"], "unknown key; did you mean 'data.eval_batch_size'?"),
        (["RUN", "--data", "no/such/folder"], "no/such/folder"),
        (["RUN", "--json", "no/such/folder/x.json"], "--json no/such/folder/x.json cannot be written"),
    ],
)
def test_mistakes(
    run: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main([str(run) if argument == "RUN" else argument for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")


def test_a_damaged_network(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    (tmp_path / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    assert main([str(tmp_path)]) == 2
    assert "does not have a network that timm can load" in capsys.readouterr().err


FROM_THE_HUB = """
import sys
from ohl_accel.engine.evaluate import evaluate
from ohl_accel.evaluate import main
from ohl_accel.policy.baselines import open_learned_policy

print(evaluate("user/net", revision=sys.argv[1]).document()["top1"])
print(evaluate("user/bare", data="sklearn:digits").document()["top1"])
print(main(["user/bare"]), main(["user/nobody"]))
print(open_learned_policy("user/net@" + sys.argv[1]).theta.tolist() == [0.0] * 1296)
"""


@pytest.mark.network
def test_networks_and_policies_of_the_hub(run: Path, tmp_path: Path) -> None:
    """The real client against a real server: with a recipe, without one, and what is missing."""
    names = ("model.safetensors", "config.json", "recipe.yaml")
    files = {name: (run / name).read_bytes() for name in names}
    Policy().save(tmp_path / "policy.json")
    files["policy.json"] = (tmp_path / "policy.json").read_bytes()
    with HubServer() as hub:
        revision = hub.add_model("user/net", files)
        hub.add_model("user/bare", {name: files[name] for name in names[:2]})
        done = subprocess.run(
            [sys.executable, "-c", FROM_THE_HUB, revision],
            cwd=REPOSITORY,
            env=hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr
    accuracy = str(json.loads((run / "result.json").read_text())["test_accuracy"])
    assert done.stdout.splitlines() == [accuracy, accuracy, "2 2", "True"]
    assert "user/bare has no recipe.yaml, so its data is unknown: give it with --data" in done.stderr
    assert "user/nobody is not available from the Hub: there is no such repository" in done.stderr
