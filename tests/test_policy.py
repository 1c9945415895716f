"""Eq 6 and Eq 7 against autograd and a hand-computed array, learning's sign, and policy.json."""

import json
import math
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ohl_accel.operations.space import PAPER
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators import FinishedStep, Reinforce, advantage_of, outer_gradient
from ohl_accel.policy.policy import probabilities_of
from ohl_accel.rng import keyed_generator


def test_table_1() -> None:
    assert PAPER.num_elements == 36
    transforms = Counter(element.transform.name for element in PAPER.elements)
    assert list(transforms.values()) == [3] * 11 + [1] * 3
    assert (
        PAPER.elements[35].name == "Invert"
    )  # section 4.3: "the 36th operation, which is the 'Color Invert'"
    for operation in range(1296):
        assert PAPER.elements_of(operation) == divmod(operation, 36)
        assert PAPER.operation_of(*divmod(operation, 36)) == operation
    assert PAPER.operation_name(PAPER.operation_of(12, 35)) == "Rotate 10 > Invert"


def test_uniform_policy() -> None:
    policy = Policy()
    assert torch.equal(policy.probabilities, torch.full((1296,), 1 / 1296, dtype=torch.float64))
    assert policy.entropy == pytest.approx(math.log(1296))
    assert policy.element_probabilities.sum(1).tolist() == pytest.approx([1, 1])


def test_equation_7_by_hand() -> None:
    theta = torch.tensor([0.0, math.log(3), -math.log(3)], dtype=torch.float64)  # sigmoids 1/2, 3/4, 1/4
    assert probabilities_of(theta).tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 6])


def test_equation_6_by_hand() -> None:
    """K = 2, N = 2, theta = 0: s = 1/2, p = 1/2, grad_i = 1/2 sum_n a_n (c_ni - 4/2) / 2."""
    counts = torch.tensor([[3, 1], [0, 4]])
    advantage = torch.tensor([0.25, -0.25], dtype=torch.float64)
    # i = 0: 1/2 * (0.25 * (3 - 2) - 0.25 * (0 - 2)) / 2 = 0.1875; i = 1 is its opposite
    gradient = outer_gradient(torch.zeros(2, dtype=torch.float64), counts, advantage)
    assert gradient.tolist() == pytest.approx([0.1875, -0.1875])


def test_equation_6_by_autograd() -> None:
    """Eq 6 literally: the sum over every drawn operation of log p(operation) * advantage."""
    generator = keyed_generator(0, "test")
    theta = torch.randn(1296, generator=generator, dtype=torch.float64).requires_grad_()
    drawn_NJ = torch.randint(0, 1296, (4, 640), generator=generator)
    advantage = advantage_of(torch.rand(4, generator=generator, dtype=torch.float64))
    log_p_NJ = probabilities_of(theta).log()[drawn_NJ]
    ((log_p_NJ * advantage[:, None]).sum() / 4).backward()
    counts = torch.stack([torch.bincount(drawn, minlength=1296) for drawn in drawn_NJ])
    assert theta.grad is not None
    torch.testing.assert_close(
        outer_gradient(theta.detach(), counts, advantage), theta.grad, rtol=1e-9, atol=1e-15
    )


def reinforce(policy: Policy, lr: float = 0.05) -> Reinforce:
    return Reinforce(policy, lr=lr, betas=(0.5, 0.999), trajectories=4, outer_steps=10, seed=0)


def finished(counts_NK: Tensor, reward_N: Tensor) -> FinishedStep:
    return FinishedStep(
        outer_step=0,
        reward_N=reward_N,
        finite_N=torch.ones(len(reward_N), dtype=torch.bool),
        recorded={"counts": counts_NK},
    )


def test_first_update_is_adam_ascent() -> None:
    """Adam's first step has length lr whatever the gradient's scale; its sign is that of ascent."""
    policy = Policy()
    counts = torch.zeros(2, 1296)
    counts[0, 5], counts[1, 9] = 10, 10
    reinforce(policy).step(finished(counts, torch.tensor([0.1, -0.1], dtype=torch.float64)))
    assert policy.theta[5].item() == pytest.approx(0.05)
    assert policy.theta[9].item() == pytest.approx(-0.05)


@pytest.mark.parametrize("seed", range(5))
def test_bandit_learns_the_better_arm(seed: int) -> None:
    """Two operations, of which one is worth more: its probability must rise (a sign test of it all)."""
    policy = Policy()
    policy.theta = torch.zeros(2, dtype=torch.float64)
    estimator = reinforce(policy)
    for outer_step in range(150):
        counts, rewards = [], []
        for trajectory in range(4):
            drawn = policy.sample(32, keyed_generator(seed, "operations", outer_step, trajectory))
            noise = torch.randn(1, generator=keyed_generator(seed, "noise", outer_step, trajectory)).item()
            counts.append(torch.bincount(drawn, minlength=2))
            rewards.append(0.5 + 0.2 * (drawn == 1).double().mean().item() + 0.01 * noise)
        estimator.step(finished(torch.stack(counts), torch.tensor(rewards, dtype=torch.float64)))
    assert policy.probabilities[1] > 0.9


def test_frozen_policy_stays_uniform() -> None:
    policy = Policy()
    rewards = torch.tensor([0.2, -0.2, 0.1, -0.1], dtype=torch.float64)
    reinforce(policy, lr=0.0).step(finished(torch.randint(0, 9, (4, 1296)), rewards))
    assert torch.equal(policy.theta, torch.zeros(1296, dtype=torch.float64))


def test_sampling_follows_the_probabilities_and_the_generator() -> None:
    policy = Policy(torch.linspace(-3, 3, 1296))
    drawn = policy.sample(400_000, keyed_generator(0, "operations", 1))
    frequency = torch.bincount(drawn, minlength=1296) / 400_000
    expected = policy.probabilities
    assert ((frequency - expected).abs() < 5 * (expected / 400_000).sqrt() + 1e-9).all()
    assert torch.equal(drawn, policy.sample(400_000, keyed_generator(0, "operations", 1)))
    assert not torch.equal(drawn, policy.sample(400_000, keyed_generator(0, "operations", 2)))


def test_reinforce_resumes_from_its_state() -> None:
    counts = [torch.randint(0, 9, (4, 1296), generator=keyed_generator(i, "test")) for i in range(4)]
    steps = [finished(each, torch.tensor([0.3, -0.1, -0.1, -0.1], dtype=torch.float64)) for each in counts]
    straight, resumed = Policy(), Policy()
    estimator, other = reinforce(straight), reinforce(resumed)
    for step in steps[:2]:
        estimator.step(step)
    other.load_state({key: value.clone() for key, value in estimator.state().items()})
    for step in steps[2:]:
        estimator.step(step)
        other.step(step)
    assert torch.equal(straight.theta, resumed.theta)


def test_policy_file_round_trip(tmp_path: Path) -> None:
    theta = torch.randn(1296, dtype=torch.float64, generator=keyed_generator(0, "test"))
    Policy(theta, {"seed": 3}).save(tmp_path / "policy.json")
    for path in (tmp_path, tmp_path / "policy.json"):
        loaded = Policy.load(path)
        assert torch.equal(loaded.theta, theta)
        assert loaded.provenance == {"seed": 3}
    assert [entry.name for entry in tmp_path.iterdir()] == ["policy.json"]


def schema_1() -> dict[str, Any]:
    """What version 0.1.0 wrote."""
    return {
        "format": "ohl_accel.policy",
        "schema_version": 1,
        "elements": PAPER.document()["elements"],
        "operation": "36 * first + second",
        "theta": [0.0] * 1296,
        "provenance": {"seed": 3},
    }


def broken_files() -> dict[str, tuple[str, str]]:
    """Kind of damage -> (file content, what the message must say)."""

    def changed(**changes: Any) -> str:
        return json.dumps({**json.loads(Policy()._text()), **changes})

    def older(**changes: Any) -> str:
        return json.dumps({**schema_1(), **changes})

    def other(**changes: Any) -> str:
        space = {**PAPER.document(), "name": "other", **changes}
        return changed(space={key: value for key, value in space.items() if value != "missing"})

    def with_element(**changes: Any) -> str:
        return other(elements=[*elements[:35], {"transform": "Invert", "magnitude": None, **changes}])

    elements = PAPER.document()["elements"]
    return {
        "truncated": (changed()[:-40], "malformed JSON"),
        "not an object": ("[1, 2]", "expected a JSON object, got list"),
        "deep": ("[" * 200_000, "nested too deeply"),
        "deep in what is refused": (
            changed(format=0).replace("0", "[" * 980 + "]" * 980, 1),
            '"format" must be|deep',
        ),
        "huge": (" " * (5 * 1024 * 1024), "too large"),
        "empty": ("", "malformed JSON"),
        "byte order mark": ("\ufeff" + changed(), "malformed JSON: Unexpected UTF-8 BOM"),
        "a key twice": (changed()[:-1] + ', "theta": []}', "it has the key 'theta' twice"),
        "version of another type": (changed(schema_version=True), "schema_version True is unknown"),
        "no version": (json.dumps({"format": "ohl_accel.policy"}), "schema_version None is unknown"),
        "infinite number": (changed(provenance={"lr": 1}).replace("1}}", "1e999}}"), "it contains 1e999"),
        "long number": (changed(provenance={"lr": 1}).replace("1}}", "1" * 5000 + "}}"), "5000 digits"),
        "probability of 0 / 0": (
            changed(theta=[-1e308] * 1296),
            "theta is so low .* every probability is 0 / 0",
        ),
        "no theta": (changed(theta=None), '"theta" must list 1296 numbers, got None'),
        "theta in lists": (changed(theta=[[0.0]] * 1296), r"theta\[0\] must be a finite number, got \[0.0\]"),
        "foreign": (json.dumps({"policy": []}), '"format" must be'),
        "newer": (changed(schema_version=3), "schema_version 3 is unknown; this version reads 1 and 2"),
        "short theta": (changed(theta=[0.0] * 1295), '"theta" must list 1296 numbers, got 1295'),
        "NaN": (changed(theta=[math.nan] * 1296), "contains NaN"),
        "infinite": (changed(theta=[math.inf] * 1296), "contains Infinity"),
        "overflow": (changed(theta=[10**400] * 1296), "finite number"),
        "text in theta": (changed(theta=["0"] * 1296), r"theta\[0\] must be a finite number, got '0'"),
        "bool in theta": (changed(theta=[True] * 1296), r"theta\[0\] must be a finite number, got True"),
        "unknown element": (
            older(elements=[*elements[:35], {"transform": "Mixup", "magnitude": None}]),
            "element 35 must be Invert, got .*Mixup",
        ),
        "order of elements": (
            older(elements=elements[::-1]),
            "element 0 must be HorizontalShear 0.1, got .*Invert",
        ),
        "more in an element": (
            older(elements=[{**elements[0], "code": "print()"}, *elements[1:]]),
            "element 0 must be HorizontalShear 0.1, got .*code",
        ),
        "too few elements": (older(elements=elements[:14]), "36 elements of Table 1, got 14"),
        "no space": (changed(space=None), '"space": a space must be an object, got None'),
        "space of schema 1": (changed(schema_version=1), '"elements" must list the 36 elements'),
        "name": (other(name="../x"), '"space": name must be letters, .*got ..*x'),
        "name of another type": (other(name=[1]), r"name must be letters, .*got \[1\]"),
        "name of a built-in space": (other(name="paper", arity=1), "the name paper is taken by a built-in"),
        "field of the space": (other(code="print()"), "unknown field 'code'; the fields are name, arity, c"),
        "no arity": (other(arity="missing"), '"space": arity is missing'),
        "arity": (other(arity=4), r"arity must be 1\.\.3 .*got 4"),
        "arity of another type": (other(arity=True), r"arity must be 1\.\.3 .*got True"),
        "combine": (other(combine="sorted"), "combine must be one of ordered, distinct, got 'sorted'"),
        "combine of another type": (other(combine=[]), r"combine must be one of .*got \[\]"),
        "no elements": (other(elements=[]), "elements must be a list of 1 to 100000, got 0 of them"),
        "elements": (other(elements={}), "elements must be a list of 1 to 100000, got {}"),
        "an element that is none": (other(elements=[1]), "element 0: must be an object .*got 1"),
        "elements twice": (
            other(elements=elements[:3] + elements[2:]),
            "element 3 is HorizontalShear 0.3, and so",
        ),
        "too many operations": (
            other(arity=3, elements=elements * 2),
            "72 elements and arity 3 make 373248 ope",
        ),
        "too few transforms": (other(combine="distinct", elements=elements[:3]), "of 2 different transforms"),
        "theta of another space": (other(arity=1), '"theta" must list 36 numbers, got 1296'),
        "transform": (
            with_element(transform="Invrt"),
            "element 35: unknown transform 'Invrt'; did you mean Invert",
        ),
        "transform of the user's": (
            with_element(transform="Mine"),
            "unknown transform 'Mine'; .*must be registered",
        ),
        "import": (with_element(transform="os.system"), "unknown transform 'os.system'"),
        "transform of another type": (with_element(transform=None), "transform must be a name, got None"),
        "magnitude": (with_element(magnitude=1), "element 35: Invert has no magnitude, got 1"),
        "no magnitude": (with_element(transform="Rotate"), r"Rotate needs a magnitude in 0\.\.180 \(degrees"),
        "range": (
            with_element(transform="Rotate", magnitude=181),
            r"Rotate takes magnitudes in 0\.\.180 .*got 181",
        ),
        "negative": (with_element(transform="Rotate", magnitude=-1), "got -1"),
        "large": (
            with_element(transform="Rotate", magnitude=10**400),
            "magnitude must be a finite number, got 1000",
        ),
        "text": (with_element(transform="Rotate", magnitude="1"), "magnitude must be a number, .*got '1'"),
        "bool": (with_element(transform="Rotate", magnitude=True), "magnitude must be a number, .*got True"),
        "provenance": (changed(provenance=[1]), '"provenance" must be an object'),
    }


@pytest.mark.parametrize("damage", broken_files())
def test_broken_policy_files_are_refused(tmp_path: Path, damage: str) -> None:
    content, message = broken_files()[damage]
    path = tmp_path / "policy.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        Policy.load(path)
    assert str(path) in str(caught.value)


def test_missing_policy_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        Policy.load(tmp_path / "no.json")
    with pytest.raises(ValueError, match=r"has no policy\.json"):
        Policy.load(tmp_path)
    (tmp_path / "policy.json").mkdir()
    for path in (tmp_path, tmp_path / "policy.json"):
        with pytest.raises(ValueError, match=r"has no policy\.json: it is not a run folder"):
            Policy.load(path)
    (tmp_path / "policy.json").rmdir()
    (tmp_path / "circle.json").symlink_to("circle.json")
    with pytest.raises(ValueError, match="Too many levels of symbolic links"):
        Policy.load(tmp_path / "circle.json")
    with pytest.raises(ValueError, match="File name too long"):
        Policy.load("x" * 300)
    (tmp_path / "policy.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        Policy.load(tmp_path)
    with pytest.raises(ValueError, match=r"theta\[2\] is nan"):
        Policy(torch.tensor([0.0, 0.0, math.nan] + [0.0] * 1293))
    with pytest.raises(ValueError, match="1296 numbers"):
        Policy(torch.zeros(36))


def test_no_more_is_read_than_a_policy_may_have(tmp_path: Path) -> None:
    """100 MB of nesting, and a file that says it has 0 bytes and never ends: refused at once, in little memory."""
    (tmp_path / "policy.json").write_text("[" * 100_000_000)
    tracemalloc.start()
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="it is too large: more than 4194304 bytes"):
            Policy.load(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_a_policy_needs_no_training_libraries(tmp_path: Path) -> None:
    """A user of a learned policy does not train: loading, sampling and transforming import none of these."""
    Policy().save(tmp_path / "policy.json")
    program = (
        "import sys\n"
        "for name in ('accelerate', 'datasets', 'timm', 'wandb', 'pydantic', 'huggingface_hub', 'yaml'):\n"
        "    sys.modules[name] = None\n"
        "import torch\n"
        "from ohl_accel import Policy\n"
        f"print(Policy.load({str(tmp_path)!r}).sample(3, torch.Generator()).shape)\n"
        "assert 'torchvision' not in sys.modules\n"
        "from ohl_accel import PolicyTransform\n"
        f"print(PolicyTransform({str(tmp_path)!r}, seed=0))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    transform = "PolicyTransform(operations=1296, entropy=7.17, seed=0)"
    assert done.stdout.splitlines() == ["torch.Size([3])", transform], done.stderr
