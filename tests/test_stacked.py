"""Trajectories trained at once against one after the other: the same to rounding, and bit for bit when resumed."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import SMALL, final_state, latest
from forked import DIGITS, call_on_ranks, search_digits
from safetensors.torch import load_file
from test_pauses import SignalAt, handlers  # noqa: F401  the second is a fixture
from torch import Tensor, nn

from benchmarks import stacked as benchmark
from ohl_accel import interrupts
from ohl_accel.distributed.groups import Groups
from ohl_accel.engine.augment import Augmentation
from ohl_accel.engine.objective import Classification
from ohl_accel.engine.process import start_accelerator
from ohl_accel.engine.search import search
from ohl_accel.engine.stacked import Stack, stack_up
from ohl_accel.engine.train import train
from ohl_accel.engine.trajectory import Trajectory
from ohl_accel.errors import UserError
from ohl_accel.policy import Policy
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.metrics import read_metrics

STEPS = 3
STACKED = "inner.stacked=true"
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


class Anew(nn.Module):
    """It sets a buffer anew instead of changing it in place; a weight is not used, and one is frozen."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.body, self.unused = nn.Linear(3 * 64, 10), nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(3, 1, 1), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, 8, 8] to logits."""
        self.mean = 0.9 * self.mean + 0.1 * images.mean((0, 2, 3))
        logits: Tensor = self.body((self.frozen * images - self.mean[:, None, None]).flatten(1))
        return logits


def trajectories(
    network: Callable[[], nn.Module], overrides: list[str], hosted: int, device: str
) -> tuple[list[Trajectory], Recipe]:
    """Trajectories in float64, each with weights of its own."""
    recipe = Recipe.load(DIGITS, [f"outer.trajectories={hosted}", "inner.batch_size=8", *overrides])
    groups = Groups(trajectories=hosted, processes=1, rank=0, groups=1, device=torch.device(device))
    augmentation = Augmentation(
        recipe.augment,
        mean=(0.5,),
        std=(0.5,),
        seed=0,
        batch_size=8,
        own=slice(0, 8),
        device=groups.device,
        num_classes=10,
    )
    torch.manual_seed(0)
    made = []
    for number in range(hosted):
        own = network().double().to(device).train()
        if recipe.model.channels_last:
            own = own.to(memory_format=torch.channels_last)
        one = Trajectory(
            number=number,
            network=own,
            recipe=recipe,
            groups=groups,
            objective=Classification(10, label_smoothing=0.1),
            augmentation=augmentation,
            accelerator=start_accelerator(None),
            steps_per_epoch=STEPS,
            total_steps=STEPS,
            num_operations=0,
            average=copy.deepcopy(own) if recipe.outer.average else None,
        )
        one.begin_outer_step()
        made.append(one)
    return made, recipe


def cifar(name: str, **args: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=10, **args)


ADAMW = "inner.optimizer={name: adamw, lr: 0.01, weight_decay: 0.05}"
AMOEBA: dict[str, Any] = {"cells": 1, "width": 4, "aux_logits": True, "drop_path_rate": 0.5}
VIT: dict[str, Any] = {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2}
CASES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "resnet": (cifar("resnet8_cifar", width=4), []),
    "resnet, channels last": (cifar("resnet8_cifar", width=4), ["model.channels_last=true", ADAMW]),
    "resnet, clipped and averaged": (
        cifar("resnet8_cifar", width=4),
        ["inner.clip_grad=0.1", "outer.average=0.5"],
    ),
    "resnet in micro-batches": (cifar("resnet8_cifar", width=4), ["inner.micro_batches=2"]),
    "wide resnet": (cifar("wide_resnet28_10_cifar", depth=10, widen_factor=1), [ADAMW]),
    "buffer set anew": (Anew, []),
    "mixed labels": (cifar("vit_tiny_patch16_224", **VIT), [ADAMW]),
}
DRAWING: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "dropout": (cifar("wide_resnet28_10_cifar", depth=10, widen_factor=1, drop_rate=0.3), []),
    "stochastic depth": (cifar("vit_tiny_patch16_224", **{**VIT, "depth": 3}, drop_path_rate=0.5), []),
    "auxiliary head, scheduled drop path": (cifar("amoebanet_b_cifar", **AMOEBA), []),
}
"""They draw random numbers in training: the same ones on the CPU, on CUDA others."""


def compare(case: tuple[Callable[[], nn.Module], list[str]], mixed: bool, hosted: int, device: str) -> None:
    """Some inner steps at once, and one trajectory after the other."""
    network, overrides = case
    together, recipe = trajectories(network, overrides, hosted, device)
    alone, _ = trajectories(network, overrides, hosted, device)
    strides = [[tensor.stride() for tensor in each.state_tensors()] for each in alone]
    stack = Stack(together, recipe, start_accelerator(None))
    assert [[tensor.stride() for tensor in each.state_tensors()] for each in together] == strides
    before = [tensor.clone() for tensor in together[0].state_tensors()]
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        batches = [_batch(mixed, generator, device) for _ in range(hosted)]
        if step == 0:
            stack.try_out(batches)
            assert all(map(torch.equal, together[0].state_tensors(), before))
        stack.inner_step(batches, step)
        for one, (inputs, targets) in zip(alone, batches, strict=True):
            one.inner_step(inputs, targets, step)
    for one, other in zip(together, alone, strict=True):
        assert one.end_outer_step() == pytest.approx(other.end_outer_step(), rel=1e-12)
        assert one.learning_rate == other.learning_rate
        for tensor, expected in zip(one.state_tensors(), other.state_tensors(), strict=True):
            torch.testing.assert_close(tensor, expected, rtol=1e-7, atol=1e-9)
        assert all(parameter.grad is None for parameter in one.network.parameters())
    moved = [
        float((a - b).abs().max())
        for a, b in zip(together[0].state_tensors(), before, strict=False)
        if a.ndim
    ]
    assert max(moved) > 1e-3
    differ = zip(together[0].state_tensors(), together[1].state_tensors(), strict=True)
    assert any(not torch.allclose(a, b) for a, b in differ)


def _batch(mixed: bool, generator: torch.Generator, device: str) -> tuple[Tensor, Tensor]:
    labels = torch.randint(10, (8,), generator=generator)
    targets = torch.rand(8, 10, generator=generator).double().softmax(1) if mixed else labels
    return torch.randn(8, 3, 8, 8, generator=generator).double().to(device), targets.to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_weights_statistics_momenta_and_losses(name: str, device: str) -> None:
    compare(CASES[name], name == "mixed labels", 3, device)


@pytest.mark.parametrize("name", DRAWING)
def test_layers_draw_the_same_random_numbers(name: str) -> None:
    compare(DRAWING[name], False, 2, "cpu")


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small search, one trajectory after the other."""
    folder = tmp_path_factory.mktemp("apart") / "run"
    search(DIGITS, [*SMALL, "outer.steps=2", f"run.dir={folder}"])
    return folder


def same_to_rounding(folder: Path, expected: Path) -> None:
    for line, other in zip(
        *(read_metrics(each / "metrics.jsonl") for each in (folder, expected)), strict=True
    ):
        assert line["winner"] == other["winner"]
        for key in ("reward", "train_loss", "heldout_loss"):
            assert line[key] == pytest.approx(other[key], rel=1e-3, abs=0.005), key
    # theta moves by the operations that were drawn: those of the others would be far from these
    torch.testing.assert_close(Policy.load(folder).theta, Policy.load(expected).theta, rtol=0, atol=1e-3)
    weights, others = (load_file(each / "model.safetensors") for each in (folder, expected))
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=1e-2, atol=1e-3)


def test_a_search_is_the_same_to_rounding(apart: Path, tmp_path: Path) -> None:
    result = search(DIGITS, [*SMALL, "outer.steps=2", STACKED, f"run.dir={tmp_path / 'run'}"])
    same_to_rounding(tmp_path / "run", apart)
    for tensor in result.network.state_dict().values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes  # saving it saves no other trajectory


@pytest.mark.slow
def test_a_search_in_two_processes_that_host_two_each(apart: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    call_on_ranks(2, search_digits, *SMALL, "outer.steps=2", STACKED, f"run.dir={folder}")
    same_to_rounding(folder, apart)


@pytest.mark.usefixtures("another_precision")
def test_in_bf16(tmp_path: Path) -> None:
    """Its rounding differs by more; the first steps agree."""
    small = ["outer.trajectories=2", "outer.steps=1", "outer.inner_steps=2", "inner.batch_size=20"]
    small += ["run.mixed_precision=bf16", "run.report=false", "model.args.width=4", "run.display=quiet"]
    losses = []
    for stacked in ("true", "false"):
        folder = tmp_path / stacked
        search(DIGITS, [*small, f"inner.stacked={stacked}", f"run.dir={folder}"])
        losses.append(read_metrics(folder / "metrics.jsonl")[0]["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    "overrides",
    [
        ("outer.average=0.5", "inner.optimizer={name: adamw, lr: 0.01}"),
        ("outer.adopt=weights", "augment.mixup=0.5", "model.args.drop_rate=0.2"),
    ],
)
def test_resumed_inside_an_outer_step_bit_for_bit(overrides: tuple[str, ...], tmp_path: Path) -> None:
    overrides = (*SMALL, "outer.steps=2", "outer.inner_steps=4", STACKED, *overrides)
    search(DIGITS, [*overrides, f"run.dir={tmp_path / 'whole'}"])
    cut = [*overrides, f"run.dir={tmp_path / 'cut'}"]
    with pytest.raises(interrupts.Interrupted):
        search(DIGITS, cut, observers=[SignalAt(6)])
    assert latest(tmp_path / "cut") == "step-000001-000002"
    interrupts.install()
    with pytest.raises(UserError, match=r"inner.stacked was True, now False"):
        search(DIGITS, [*cut, "inner.stacked=false", "run.resume=auto"])
    search(DIGITS, [*cut, "run.resume=auto"])
    assert final_state(tmp_path / "cut") == final_state(tmp_path / "whole")


class Looks(nn.Module):
    """What it computes depends on the values of its weights, of which there are now several."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.body(images.flatten(1))
        return logits if self.body.weight.sum() < 1e9 else -logits


def test_a_network_that_cannot_be_mapped_is_refused(tmp_path: Path) -> None:
    expected = (
        r"inner\.stacked=true: model\.name=Looks .* torch\.vmap cannot map it .*inner\.stacked=false trains"
    )
    with pytest.raises(UserError, match=expected):
        search(DIGITS, [*SMALL, STACKED, f"run.dir={tmp_path / 'run'}"], model=Looks())
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    made, recipe = trajectories(Anew, [], 2, "cpu")
    stack = Stack(made, recipe, start_accelerator(None))

    def exhausted(*arguments: object) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(stack, "_losses", exhausted)
    with pytest.raises(UserError, match=r"not enough memory to train 2 trajectories at once .*micro_batches"):
        stack.try_out([_batch(False, torch.Generator(), "cpu")] * 2)


@pytest.mark.parametrize(
    ("processes", "groups", "why"),
    [(2, 2, "each process hosts one trajectory"), (4, 2, "the 2 processes of a group share its batches")],
)
def test_layouts_that_leave_nothing_to_stack_are_told(processes: int, groups: int, why: str) -> None:
    made, recipe = trajectories(Anew, [STACKED], 2, "cpu")
    layout = Groups(trajectories=2, processes=processes, rank=0, groups=groups, device=torch.device("cpu"))
    said: list[str] = []
    hosted = made[: len(layout.hosted)]
    assert stack_up(recipe, layout, hosted, start_accelerator(None), said.append) is None
    assert said == [
        f"inner.stacked has no effect here, because {why}; fewer processes would host several each"
    ]


def test_training_one_network_says_nothing_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SMALL, STACKED, "outer.steps=1", "outer.inner_steps=1", "augment.policy=none"]
    train(DIGITS, [*options, f"run.dir={tmp_path / 'run'}"])
    captured = capsys.readouterr()
    assert "stacked" not in captured.out + captured.err


def test_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes its table into a page, whose other parts stay."""
    monkeypatch.setattr(benchmark, "SIZES", [(8, 4)])
    page, result = tmp_path / "page.md", tmp_path / "r.md"
    page.write_text(f"before\n{benchmark.BEGIN}old\n{benchmark.END}after\n")
    # four channels and channels_last in float32: torch 2.14.1 corrupts memory on the CPU, without any of this
    small = ["model.args={width: 8}", "inner.batch_size=4", "--rounds", "2", "--trajectories", "2"]
    benchmark.main([*small, "--result", str(result), "--page", str(page)])
    text = result.read_text()
    _, alone, stacked = (line for line in text.splitlines() if line.startswith("| "))
    assert alone.startswith("| 2 | one after the other |")
    assert alone.endswith("| 1.00 (1.00 to 1.00) | 0e+00 |")
    assert float(stacked.split("|")[-2]) < 1e-4
    assert page.read_text() == f"before\n{benchmark.BEGIN}{text.partition(chr(10))[2]}{benchmark.END}after\n"
