"""The networks against published parameter counts, and timm's interface; timm's optimizers."""

import copy
import json
from typing import Any

import pytest
import timm
import torch
from torch import nn

import ohl_accel.models  # noqa: F401
from ohl_accel.data import Schema
from ohl_accel.engine.checkpoint import _joined_optimizer, _split_optimizer, under
from ohl_accel.engine.network import create_network
from ohl_accel.engine.trajectory import create_optimizer, create_schedule
from ohl_accel.errors import UserError
from ohl_accel.recipe import ModelSection, OptimizerSection, ScheduleSection


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_resnet18_has_the_papers_size() -> None:
    network: Any = timm.create_model("resnet18_cifar", num_classes=10)
    assert parameters(network) == 11_173_962  # "11.17M parameters", section 4.2
    assert network.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 4, 4)


def test_resnet8() -> None:
    network: Any = timm.create_model("resnet8_cifar", num_classes=10, in_chans=1, width=8)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert (
        len([module for module in convolutions if module.kernel_size == (3, 3)]) == 7
    )  # and the classifier: 8
    network.reset_classifier(3)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert network.forward_head(torch.ones(2, 32, 2, 2), pre_logits=True).shape == (2, 32)
    assert network.get_classifier() is network.fc


def schema(classes: int = 3) -> Schema:
    return Schema("image", "label", tuple(map(str, range(classes))), (16, 16), 3)


def test_initial_weights_are_keyed_by_the_seed() -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        return list(create_network(ModelSection(name="resnet8_cifar"), schema(), seed).state_dict().values())

    torch.rand(7)
    assert all(torch.equal(a, b) for a, b in zip(weights(3), weights(3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(3), weights(4), strict=True))


def test_networks_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean resnet18"):
        create_network(ModelSection(name="resnet_18"), schema(), 0)
    with pytest.raises(UserError, match=r"timm\.list_models"):
        create_network(ModelSection(name="?"), schema(), 0)
    with pytest.raises(UserError, match="cannot take images of 3 x 16 x 16"):
        create_network(ModelSection(name="vit_tiny_patch16_224"), schema(), 0)
    with pytest.raises(UserError, match=r"gives outputs of shape \[10\] instead of 3 classes"):
        create_network(ModelSection(name="resnet8_cifar", args={"num_classes": 10}), schema(), 0)


def test_a_tensor_with_two_names_is_refused() -> None:
    with pytest.raises(UserError, match=r"cpe1.proj.weight and .*cpe.proj.weight are one shared parameter"):
        create_network(ModelSection(name="coat_lite_tiny"), schema(), 0)


@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactorbv", "adopt", "muon", "lion"])
def test_an_optimizer_resumes(name: str) -> None:
    """From a checkpoint as if nothing had happened, counters and settings that are tensors or dtypes included."""
    section = OptimizerSection(name=name, lr=0.01, weight_decay=0.1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    optimizer = create_optimizer(section, network)
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def step(layers: nn.Module, its_optimizer: torch.optim.Optimizer) -> None:
        layers(images).square().sum().backward()
        its_optimizer.step()
        its_optimizer.zero_grad()

    for _ in range(2):
        step(network, optimizer)
    values, tensors = _split_optimizer(optimizer)
    values = json.loads(json.dumps(values))
    other = copy.deepcopy(network)
    its_optimizer = create_optimizer(section, other)
    its_optimizer.load_state_dict(_joined_optimizer(its_optimizer, values, under("optimizer.", tensors)))
    for layers, one in ((network, optimizer), (other, its_optimizer)):
        step(layers, one)
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param(
            "kron", "its state has a list .*, which other trajectories cannot adopt", marks=pytest.mark.long
        ),
        ("adahessian", "grad"),
    ],
)
def test_an_optimizer_that_cannot_be_adopted_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"inner.optimizer.name={name}, .*: .*{message}"):
        create_optimizer(OptimizerSection(name=name, lr=0.1), nn.Linear(3, 2))


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_cosine_of_one_step_is_the_rate_itself(warmup: int, caplog: pytest.LogCaptureFixture) -> None:
    """timm warns of it; a run with N trajectories printed that N times."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.3)
    schedule = create_schedule(ScheduleSection(warmup_epochs=warmup, min_lr=0.1), optimizer, 1, warmup + 1)
    schedule.step_update(warmup)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3, abs=1e-16)
    assert caplog.records == []
