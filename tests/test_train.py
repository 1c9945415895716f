"""Training with fixed policies, in this process and on two real ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, SMALL, final_state, launch, rewind
from safetensors.torch import load_file

from ohl_accel.engine.search import search
from ohl_accel.engine.train import for_one_network, train
from ohl_accel.errors import RunFailedError, UserError
from ohl_accel.policy import Policy
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.metrics import read_metrics
from ohl_accel.train import main

DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")


def run(folder: Path, policy: str | None, *overrides: str) -> Path:
    named = [] if policy is None else [f"augment.policy={policy}"]
    train(DIGITS, [*SMALL, f"run.dir={folder}", "outer.steps=2", *named, *overrides])
    return folder


def result(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return read


@pytest.mark.parametrize(
    "policy", ["none", "cutout", "mixup", "autoaugment", "randaugment", "trivialaugment"]
)
def test_every_fixed_policy_trains(policy: str, tmp_path: Path) -> None:
    run(tmp_path, policy)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["outer_step"] for line in lines] == [0, 1]
    assert lines[-1]["test_accuracy"] == result(tmp_path)["test_accuracy"]
    assert result(tmp_path)["images_trained_on"] == 2 * 3 * 100
    assert not (tmp_path / "policy.json").exists()
    recipe = Recipe.load(str(tmp_path / "recipe.yaml"))
    assert (recipe.augment.policy, recipe.augment.cutout) == (policy, 4 if policy == "cutout" else 0)


def test_uniform_is_a_search_of_one_trajectory_that_learns_nothing(tmp_path: Path) -> None:
    run(tmp_path / "train", "uniform")
    overrides = [*SMALL, "outer.steps=2", "outer.trajectories=1", "outer.lr=0"]
    search(DIGITS, [*overrides, f"run.dir={tmp_path / 'search'}"])
    assert final_state(tmp_path / "train")["weights"] == final_state(tmp_path / "search")["weights"]
    assert Policy.load(tmp_path / "train").theta.tolist() == [0.0] * 1296


def test_a_learned_policy_is_applied_and_kept(tmp_path: Path) -> None:
    theta = torch.full((1296,), -40.0, dtype=torch.float64)
    theta[35 * 36 + 35] = 40  # Invert, then Invert: the image itself
    Policy(theta, {"data": "elsewhere"}).save(tmp_path / "policy.json")
    run(tmp_path / "learned", str(tmp_path / "policy.json"))
    run(tmp_path / "none", "none")
    assert final_state(tmp_path / "learned")["weights"] == (tmp_path / "none/model.safetensors").read_bytes()
    assert Policy.load(tmp_path / "learned").provenance == {"data": "elsewhere"}


def test_images_seen_are_matched_or_those_of_all_trajectories(tmp_path: Path) -> None:
    run(tmp_path, "none", "train.match=compute", "outer.steps=1")
    assert result(tmp_path)["images_trained_on"] == 4 * 1 * 3 * 100
    recipe = Recipe.load(DIGITS, ["augment.policy=none", "train.match=compute", "inner.schedule.name=multistep",
                                  "inner.schedule.milestones=[30,60]"])  # fmt: skip
    matched = for_one_network(recipe)
    assert (matched.outer.trajectories, matched.outer.steps) == (1, 400)
    assert matched.inner.schedule.milestones == (120, 240)
    assert for_one_network(matched) == matched
    once = for_one_network(recipe.with_values(train={"match": "images"}))
    assert (once.outer.trajectories, once.outer.steps, once.inner) == (1, 100, recipe.inner)


def test_training_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, "trivialaugment")
    good = [(tmp_path / name).read_bytes() for name in ("model.safetensors", "result.json")]
    rewind(tmp_path, "step-000001")
    (tmp_path / "model.safetensors").unlink()
    run(tmp_path, "trivialaugment", "run.resume=auto")
    assert [(tmp_path / name).read_bytes() for name in ("model.safetensors", "result.json")] == good


def test_held_out_images_are_validated_as_often_as_requested(tmp_path: Path) -> None:
    run(tmp_path / "some", "none", "train.validate_every=2", "outer.steps=3")
    rewards = [line["reward"][0] for line in read_metrics(tmp_path / "some" / "metrics.jsonl")]
    assert [reward is None for reward in rewards] == [True, False, False]
    run(tmp_path / "none", "none", "data.heldout=null", "data.train_images=0.5")
    assert result(tmp_path / "none")["heldout_accuracy"] is None
    assert 0 < result(tmp_path / "none")["test_accuracy"] < 1


@pytest.mark.slow
def test_the_whole_launch_trains_one_network(tmp_path: Path) -> None:
    """Two processes share each batch, in two parts each; without batch normalization they do what one does at once."""
    network = "{img_size: 8, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}"  # replaces SMALL's
    overrides = ["model.name=vit_tiny_patch16_224", f"model.args={network}", "augment.policy=uniform"]
    weights = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        parts = f"inner.micro_batches={processes}"
        launch(processes, *overrides, parts, f"run.dir={folder}", command="train")
        weights.append(load_file(folder / "model.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "augment.policy: give a policy to train with: none, cutout"),
        (["augment.policy=triviala"], "did you mean trivialaugment"),
        (["augment.policy=no/such/file.json"], "augment.policy=no/such/file.json"),
        (["augment.policy=none", "augment.policy_args={alpha: 1}"], "none takes no arguments"),
        (["augment.policy=mixup", "augment.policy_args={alhpa: 1}"], "not valid for mixup"),
    ],
)
def test_mistakes(
    overrides: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([DIGITS, f"run.dir={tmp_path}", *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_search_takes_only_policies_that_it_can_learn(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"augment\.policy=randaugment: the search starts from the uniform policy"
    ):
        search(DIGITS, [*SMALL, f"run.dir={tmp_path}", "augment.policy=randaugment"])
    with pytest.raises(UserError, match="the search needs one of them"):
        search(DIGITS, [*SMALL, f"run.dir={tmp_path}", "data.heldout=null"])
    theta = torch.linspace(-1, 1, 1296, dtype=torch.float64)
    Policy(theta).save(tmp_path / "start.json")
    start = [f"augment.policy={tmp_path / 'start.json'}", "outer.lr=0", "outer.steps=1"]
    search(DIGITS, [*SMALL, *start, f"run.dir={tmp_path / 'run'}"])
    assert torch.equal(Policy.load(tmp_path / "run").theta, theta)


def test_weights_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="loss or the weights of the network became infinite or NaN"):
        run(tmp_path, "none", "inner.optimizer.lr=1e30")
