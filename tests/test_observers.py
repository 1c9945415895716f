"""Observers, estimators and the Python API: what a user adds without touching the package."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, SMALL
from torch import nn
from torch.utils.data import Dataset

from ohl_accel.data.source import open_split
from ohl_accel.engine.evaluate import evaluate
from ohl_accel.engine.search import search
from ohl_accel.engine.train import train
from ohl_accel.errors import RunFailedError, UserError
from ohl_accel.observers.observer import Observer, RunInfo
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators import (
    RECORDS,
    Estimator,
    FinishedStep,
    Reinforce,
    advantage_of,
    open_estimator,
    outer_gradient,
)
from ohl_accel.recipe import DataSection

DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")


class Heard(Observer):
    """Notes everything."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.lines: list[Mapping[str, Any]] = []

    def check(self, recipe: Any) -> None:
        self.calls.append("check")

    def start(self, run: RunInfo) -> None:
        self.calls.append(f"start {run.first_outer_step} {run.inner_steps}")

    def inner_step(self, run: RunInfo) -> None:
        self.calls.append("inner")

    def outer_step(self, run: RunInfo, line: Mapping[str, Any]) -> None:
        self.calls.append("outer")
        self.lines.append(line)
        assert run.policy is not None
        assert line["entropy"] == run.policy.entropy
        images = run.augmented_images(line["outer_step"])
        assert images.dtype == torch.uint8
        assert images.shape == (100, 1, 8, 8)

    def finish(self, run: RunInfo, result: Mapping[str, Any]) -> None:
        self.calls.append(f"finish {result['test_images']}")
        assert (run.folder / "report.html").exists()

    def end(self, run: RunInfo, failed: bool) -> None:
        self.calls.append(f"end {failed}")


def test_an_observer_is_told_everything_in_order(tmp_path: Path) -> None:
    heard = Heard()
    result = search(DIGITS, [*SMALL, "run.report=true", f"run.dir={tmp_path / 'run'}"], observers=[heard])
    steps = ["inner", "inner", "inner", "outer"] * 4
    assert heard.calls == ["check", "start 0 3", *steps, "finish 500", "end False"]
    assert [line["outer_step"] for line in result.metrics] == [0, 1, 2, 3]
    assert [line["reward"] for line in heard.lines] == [line["reward"] for line in result.metrics]
    assert result.folder == tmp_path / "run"
    assert result.policy == Policy.load(tmp_path / "run")
    assert result.test is not None
    assert set(result.test) == {"accuracy", "top5_accuracy", "loss", "images"}
    with torch.no_grad():
        assert result.network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


class Failing(Observer):
    def outer_step(self, run: RunInfo, line: Mapping[str, Any]) -> None:
        raise KeyError("nothing here")


class Ending(Observer):
    def outer_step(self, run: RunInfo, line: Mapping[str, Any]) -> None:
        if line["outer_step"] == 1:
            raise RunFailedError("enough")


def test_an_observer_that_fails_is_disabled_and_the_run_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(DIGITS, [*SMALL, f"run.dir={tmp_path / 'run'}"], observers=[Failing()])
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "Failing" in line]
    assert re.fullmatch(
        r"warning: Failing failed \(KeyError: 'nothing here', in test_observers.py line \d+\): "
        "disabled for this run",
        warning,
    )
    assert (tmp_path / "run" / "result.json").exists()


def test_an_observer_may_end_the_run(tmp_path: Path) -> None:
    heard = Heard()
    with pytest.raises(RunFailedError, match="enough"):
        search(DIGITS, [*SMALL, f"run.dir={tmp_path / 'run'}"], observers=[heard, Ending()])
    assert heard.calls[-2:] == ["outer", "end True"]
    resumed = Heard()  # and the folder is free again
    search(DIGITS, [*SMALL, f"run.dir={tmp_path / 'run'}", "run.resume=auto"], observers=[resumed])
    assert resumed.calls[1] == "start 1 3"


def test_a_custom_network(tmp_path: Path) -> None:
    """It is copied, trained, saved, and read back by its own means."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    before = [parameter.clone() for parameter in model.parameters()]
    result = search(DIGITS, [*SMALL, f"run.dir={tmp_path / 'run'}"], model=model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, result.network.parameters(), strict=True))
    from safetensors.torch import load_file

    model.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    inputs = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), result.network(inputs))
    assert result.test is not None
    assert evaluate(tmp_path / "run", model=model).scores["accuracy"] == result.test["accuracy"]
    digits = open_split(DataSection(path="sklearn:digits"), "test")
    assert (
        evaluate(tmp_path / "run", model=model, dataset=digits).scores["accuracy"] == result.test["accuracy"]
    )
    with pytest.raises(UserError, match=r"timm can load: .* as well: ohl_accel.evaluate\(..., model=...\)"):
        evaluate(tmp_path / "run")
    with pytest.raises(UserError, match="its weights do not fit the Linear given as model"):
        evaluate(tmp_path / "run", model=nn.Linear(2, 2))


class Pair(nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, int]:
        return images, 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": nn.Flatten}, r"model must be a torch.nn.Module, got .*a class was given: Flatten\(...\)"),
        ({"model": Pair()}, "the Pair given as model must return a tensor of logits, got a tuple"),
        (
            {"observers": [Observer]},
            r"ohl_accel's Observer, got .*a class was given: Observer\(\)",
        ),
        ({"observers": Observer()}, "observers must be a list of observers"),
        (
            {"recipe": None},
            "recipe must be a file, the name of a recipe, .*, got None",
        ),
        ({"overrides": "outer.steps=1"}, "overrides must be a list such as .*, got 'outer.steps=1'"),
        ({"overrides": {"outer.steps": 1}}, "overrides must be a list such as"),
    ],
)
def test_wrong_arguments_from_python(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"recipe": DIGITS, "overrides": [*SMALL, f"run.dir={tmp_path / 'run'}"], **arguments}
    with pytest.raises(UserError, match=message):
        search(given.pop("recipe"), given.pop("overrides"), **given)


def test_a_network_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the Linear given as model cannot take images of 1 x 8 x 8"):
        search(DIGITS, [*SMALL, f"run.dir={tmp_path / 'run'}"], model=nn.Linear(3, 10))


def test_the_same_process_may_try_again(tmp_path: Path) -> None:
    """As in a notebook, which keeps the traceback and all that it refers to."""
    with pytest.raises(UserError, match="timm has no such network") as kept:
        search(DIGITS, [*SMALL, f"run.dir={tmp_path / 'run'}", "model.name=resnet8_cifra"])
    assert search(DIGITS, [*SMALL, f"run.dir={tmp_path / 'run'}"]).test
    assert kept.tb


def test_a_recipe_in_python_for_data_in_memory(tmp_path: Path) -> None:
    """A mapping without data.path, a torch dataset of tensors, a test split beside it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(3, (60,), generator=generator).tolist()
    pairs = list(zip(images, labels, strict=True))
    recipe = {
        "run": {"dir": str(tmp_path / "run")},
        "data": {"heldout": 10},
        "model": {"name": "resnet8_cifar", "args": {"width": 8}},
        "inner": {"batch_size": 10, "optimizer": {"lr": 0.1}},
        "outer": {"steps": 1, "inner_steps": 1, "trajectories": 2},
    }
    result = search(recipe, dataset={"train": Pairs(pairs[:40]), "test": Pairs(pairs[40:])})
    assert result.test is not None
    assert result.test["images"] == 20


class Pairs(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, pairs: list[tuple[torch.Tensor, int]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.pairs[index]


def test_training_by_the_api(tmp_path: Path) -> None:
    result = train(DIGITS, [*SMALL, f"run.dir={tmp_path / 'run'}", "augment.policy=uniform"])
    assert result.policy == Policy()
    assert len(result.metrics) == 4


ESTIMATOR = '''
import torch
from ohl_accel.policy.estimators import Estimator
from ohl_accel.policy import Policy
from ohl_accel.rng import keyed_generator


class Climb(Estimator):
    """Every trajectory trains with a random neighbour of the policy; the policy becomes that of the best one."""

    records = frozenset({"operations", "heldout_outcomes"})

    def __init__(self, policy, *, width=0.5, **settings):
        super().__init__(policy, **settings)
        self.width, self.steps = width, torch.zeros((), dtype=torch.float64)

    def policy_of(self, trajectory):
        generator = keyed_generator(self.seed, "climb", int(self.steps), trajectory)
        noise_K = torch.randn(len(self.policy.theta), dtype=torch.float64, generator=generator)
        return Policy(self.policy.theta + self.width * noise_K, space=self.policy.space)

    def step(self, finished):
        assert finished.recorded["operations"].shape == (4, 3, 100)
        assert finished.recorded["heldout_outcomes"].shape == (4, 297, 4)
        assert torch.equal(finished.recorded["heldout_outcomes"][:, :, 0].mean(1), finished.reward_N)
        self.policy.theta.copy_(self.policy_of(int(finished.reward_N.argmax())).theta)
        self.steps += 1
        return {"climbed": int(self.steps)}

    def state(self):
        return {**super().state(), "steps": self.steps}

    def load_state(self, state):
        super().load_state(state)
        self.steps.copy_(state["steps"])
'''


def test_a_custom_estimator_explores_and_resumes(tmp_path: Path) -> None:
    file = tmp_path / "climb.py"
    file.write_text(ESTIMATOR)
    own = [*SMALL, f"outer.estimator={file}:Climb", "outer.estimator_args={width: 0.25}"]
    whole = search(DIGITS, [*own, f"run.dir={tmp_path / 'whole'}"])
    assert [line["climbed"] for line in whole.metrics] == [1, 2, 3, 4]
    with pytest.raises(RunFailedError):
        search(DIGITS, [*own, f"run.dir={tmp_path / 'cut'}"], observers=[Ending()])
    resumed = search(DIGITS, [*own, f"run.dir={tmp_path / 'cut'}", "run.resume=auto"])
    assert whole.policy is not None
    assert resumed.policy == whole.policy
    assert whole.policy != Policy()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["outer.estimator=reinforced"],
            r"there is no such estimator; did you mean reinforce or .*\? known: reinforce, ",
        ),
        (
            ["outer.estimator_args={depth: 3}"],
            r"outer.estimator=reinforce, outer.estimator_args={'depth': 3}: .*depth",
        ),
    ],
)
def test_estimators_that_do_not_work(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        search(DIGITS, [*SMALL, f"run.dir={tmp_path / 'run'}", *overrides])


def estimator(folder: Path, body: str) -> str:
    (folder / "wrong.py").write_text(
        "from ohl_accel.policy import Policy\n"
        "from ohl_accel.operations.space import PAPER_IDENTITY\n"
        f"from ohl_accel.policy.estimators import Reinforce\n\n\nclass Wrong(Reinforce):\n    {body}\n"
    )
    return f"outer.estimator={folder / 'wrong.py'}:Wrong"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def step(self, finished): return {'winner': 0}",
            "its step returned winner, which the run records itself",
        ),
        (
            "def policy_of(self, trajectory): return None",
            r"must be NoPolicy\(\), or a Policy over the space paper, got None",
        ),
        (
            "def policy_of(self, trajectory): return Policy(space=PAPER_IDENTITY)",
            "or a Policy over the space paper, got Policy",
        ),
        (
            "def state(self): return {**super().state(), 'n': 3}",
            r"Wrong.state\(\) has a int \(n\); a checkpoint holds",
        ),
    ],
)
def test_estimators_that_do_what_they_must_not(body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        search(DIGITS, [*SMALL, f"run.dir={tmp_path / 'run'}", estimator(tmp_path, body)])


def test_resuming_with_another_model_is_refused(tmp_path: Path) -> None:
    def model(width: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))

    folder = f"run.dir={tmp_path / 'run'}"
    search(DIGITS, [*SMALL, folder], model=model(7))
    with pytest.raises(UserError, match=r"a run of another network: 1.bias was \(7,\), now \(8,\)"):
        search(DIGITS, [*SMALL, folder, "run.resume=auto"], model=model(8))


def test_what_is_not_recorded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text(
        "from ohl_accel.policy.estimators import Reinforce\n\n\nclass Greedy(Reinforce):\n"
        "    records = frozenset({'gradients'})\n"
    )
    with pytest.raises(UserError, match=f"gradients cannot be recorded; known: {', '.join(RECORDS)}"):
        open_estimator(
            f"{tmp_path / 'greedy.py'}:Greedy",
            Policy(),
            {},
            lr=0.1,
            betas=(0.5, 0.9),
            trajectories=2,
            outer_steps=10,
            seed=0,
        )


def test_reinforce_is_adam_on_equation_6() -> None:
    """Against torch's Adam on the closed form, three steps, with the state carried over a checkpoint."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.zeros(1296, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=0.05, betas=(0.5, 0.999), maximize=True)
    estimator: Estimator = Reinforce(
        Policy(), lr=0.05, betas=(0.5, 0.999), trajectories=3, outer_steps=10, seed=0
    )
    for outer_step in range(3):
        reward_N = torch.rand(3, dtype=torch.float64, generator=generator)
        counts_NK = torch.randint(5, (3, 1296), generator=generator)
        theta.grad = outer_gradient(theta.detach(), counts_NK, advantage_of(reward_N))
        adam.step()
        again = Reinforce(Policy(), lr=0.05, betas=(0.5, 0.999), trajectories=3, outer_steps=10, seed=0)
        again.load_state(estimator.state())
        estimator = again
        said = estimator.step(
            FinishedStep(
                outer_step=outer_step,
                reward_N=reward_N,
                finite_N=torch.ones(3, dtype=torch.bool),
                recorded={"counts": counts_NK},
            )
        )
        assert said == {"advantage": advantage_of(reward_N).tolist(), "theta_learning_rate": 0.05}
    assert torch.equal(estimator.policy.theta, theta.detach())
