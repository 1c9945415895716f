"""docs/extending.md: its blocks are run as they stand in the page, and each extension does what the page says of it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score
from sybil import Sybil
from test_docs import PARSERS, SMALL

from ohl_accel import Policy, evaluate, search
from ohl_accel.errors import RunFailedError
from ohl_accel.extensions import import_extension
from ohl_accel.observers.observer import Observer
from ohl_accel.operations.table_1 import TABLE_1
from ohl_accel.policy.estimators import Estimator, FinishedStep, open_estimator
from ohl_accel.run_folder.metrics import read_metrics

PAGE = REPOSITORY / "docs" / "extending.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the page's blocks have been run, in order; the folder stays the current one."""
    folder = tmp_path_factory.mktemp("extending")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.syspath_prepend(str(folder))
        before = set(sys.modules)
        for example in Sybil(PARSERS, path=str(REPOSITORY)).parse(PAGE).examples():
            example.namespace["monkeypatch"] = patched
            example.evaluate()
        yield folder
        for name in {*sys.modules} - before:
            if name.startswith("my_"):
                del sys.modules[name]


def test_every_example_is_short() -> None:
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 9
    assert max(len(block.splitlines()) for block in blocks) < 30


def test_the_element_is_the_same_in_a_batch_and_on_one_image(folder: Path) -> None:
    space = Policy.load("runs/space").space
    levels = torch.randint(256, (4, 3, 24, 32), dtype=torch.uint8)
    negative = torch.tensor([False, True, False, True])
    shifted = space.apply_elements(levels, torch.tensor([0, 0, 1, 1]), negative)
    for image, result, columns in zip(levels, shifted, (4, -4, 8, -8), strict=True):
        assert torch.equal(result, image.roll(columns, 2))
    for number in range(4):
        one = Image.fromarray(levels[number].permute(1, 2, 0).numpy())
        by_pillow = np.array(space.apply_element_to_pil(one, number // 2, bool(negative[number])))
        assert np.array_equal(by_pillow, shifted[number].permute(1, 2, 0).numpy())


def test_the_space_is_searched(folder: Path) -> None:
    written = json.loads(Path("runs/space/policy.json").read_text())["space"]
    assert written["name"] == "my_space"
    assert [(element["transform"], element["magnitude"]) for element in written["elements"]] == [
        ("Wrap", 0.125),
        ("Wrap", 0.25),
        *(("Rotate", magnitude) for magnitude in (10, 20, 30)),
        ("Identity", None),
    ]
    policy = Policy.load("runs/space")
    assert policy.space.num_operations == 2 * 4 + 3 * 3 + 5  # pairs of different transforms
    assert policy != Policy(space=policy.space)  # it has learned
    assert any("Wrap" in name for name, _ in policy.top(policy.space.num_operations))
    trained = json.loads(Path("runs/trained/result.json").read_text())
    assert 0 <= trained["test_accuracy"] <= 1
    assert Policy.load("runs/trained").theta.equal(policy.theta)


def test_a_new_process_reads_a_run_with_a_custom_transform(folder: Path) -> None:
    """For its report and to publish it: the run's recipe says what to import."""
    code = """
from pathlib import Path
from ohl_accel.hub.contents import Finished
from ohl_accel.operations import transforms
from ohl_accel.report.read import read_run
for read in (read_run, Finished.read):
    print(read(Path("runs/space")).policy)
    transforms._registered.pop("Wrap")
    import sys; [sys.modules.pop(name) for name in [*sys.modules] if name.startswith("ohl_accel_extension")]
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == 2 * f"{Policy.load('runs/space')}\n", done.stderr


def thetas(run: str) -> list[torch.Tensor]:
    """theta at the start, and after each outer step that still has a checkpoint."""
    files = sorted(Path(run, "checkpoints").glob("step-*/state.safetensors"))
    return [load_file(file)["policy.theta"] for file in files]


def test_the_estimator_takes_plain_steps_along_its_gradient(folder: Path) -> None:
    norms = [line["gradient_norm"] for line in read_metrics(Path("runs/ranked/metrics.jsonl"))]
    first, second = thetas("runs/ranked")
    assert first.norm() == pytest.approx(0.01 * norms[0])
    assert (second - first).norm() == pytest.approx(0.01 * norms[1])
    assert max(norms) > 0


def estimator(name: str, **options: object) -> Estimator:
    """One of the page's, for two trajectories."""
    return open_estimator(
        name, Policy(), options, lr=0.5, betas=(0.5, 0.9), trajectories=2, outer_steps=10, seed=0
    )


def test_the_explorer_trains_with_two_policies_and_follows_the_rewards(folder: Path) -> None:
    chosen = ["HorizontalShear", "VerticalShear", "Rotate"]
    explorer = estimator("my_explorer.py:MoreOrLess", transforms=chosen)
    geometric = torch.tensor([element.transform.name in chosen for element in TABLE_1])
    assert int(geometric.sum()) == 9
    more, less = (explorer.policy_of(number) for number in range(2))
    assert isinstance(more, Policy)
    assert isinstance(less, Policy)
    share = [float(policy.element_probabilities[0][geometric].sum()) for policy in (more, Policy(), less)]
    assert share[0] > share[1] > share[2]
    torch.testing.assert_close((more.theta + less.theta) / 2, explorer.policy.theta)

    momentum, moved = 0.0, 0.0
    for line in read_metrics(Path("runs/explored/metrics.jsonl")):
        momentum = 0.5 * momentum + (line["reward"][0] - line["reward"][1]) / 2
        assert line["momentum"] == pytest.approx(momentum)
        moved += 0.05 * momentum
    assert moved != 0
    direction = more.theta - explorer.policy.theta
    torch.testing.assert_close(Policy.load("runs/explored").theta, moved * direction)

    reward_N, finite_N = torch.tensor([0.5, 0.25], dtype=torch.float64), torch.ones(2, dtype=torch.bool)
    assert explorer.step(FinishedStep(outer_step=0, reward_N=reward_N, finite_N=finite_N)) == {
        "momentum": 0.125
    }
    other = estimator("my_explorer.py:MoreOrLess", transforms=chosen)
    other.load_state(explorer.state())
    assert float(other.state()["momentum"]) == 0.125
    assert torch.equal(other.policy.theta, explorer.policy.theta)


class _Ending(Observer):
    def outer_step(self, run: object, line: object) -> None:
        raise RunFailedError("enough")


def test_the_explorer_resumes(folder: Path) -> None:
    own = [*SMALL, "outer.estimator=my_explorer.py:MoreOrLess", "run.dir=runs/resumed"]
    own.append("outer.estimator_args={transforms: [HorizontalShear, VerticalShear, Rotate]}")
    with pytest.raises(RunFailedError):
        search("digits", [*own, "run.checkpoint_every=1"], observers=[_Ending()])
    assert search("digits", [*own, "run.resume=auto"]).policy == Policy.load("runs/explored")


def test_the_objective_rewards_balanced_accuracy(folder: Path) -> None:
    module = import_extension("objective", "my_objective.py")
    objective = module.Balanced(3)
    labels, logits = torch.randint(3, (50,)), torch.randn(50, 3)
    scores = objective.scores(objective.outcomes(logits, labels), labels)
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    result = json.loads(Path("runs/balanced/result.json").read_text())
    assert result["metric"] == "balanced_accuracy"
    lines = read_metrics(Path("runs/balanced/metrics.jsonl"))
    assert result["heldout_balanced_accuracy"] == max(lines[-1]["reward"])
    again = evaluate("runs/balanced").scores["balanced_accuracy"]
    assert again == pytest.approx(result["test_balanced_accuracy"])


def test_the_observer_keeps_pictures(folder: Path) -> None:
    pictures = sorted(Path("runs/watched").glob("images-*.png"))
    assert [picture.name for picture in pictures] == ["images-000.png", "images-001.png"]
    with Image.open(pictures[0]) as picture:
        assert np.array(picture).std() > 0


def test_the_space_and_the_estimator_work_together(folder: Path) -> None:
    policy = Policy.load("runs/python")
    assert policy.space.name == "my_space"
    assert policy.provenance["outer_steps_done"] == 2
    assert "gradient_norm" in read_metrics(Path("runs/python/metrics.jsonl"))[-1]
