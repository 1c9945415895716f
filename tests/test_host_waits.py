"""The host does not wait for the device in an inner step: it needs no number that the device computes.

On the meta device tensors have no values: whatever asks for one fails. That does not show what CUDA itself waits for;
on a GPU, the same steps run in torch's mode that makes an error of each synchronization it knows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from forked import DIGITS
from torch import Tensor, nn

from ohl_accel.distributed.groups import Groups
from ohl_accel.engine.augment import Augmentation
from ohl_accel.engine.objective import Classification
from ohl_accel.engine.trajectory import Trajectory
from ohl_accel.operations.kernels import BatchedElements
from ohl_accel.operations.kernels.around import RawBatch
from ohl_accel.policy import Policy
from ohl_accel.recipe import Recipe

OVERRIDES = (
    *("augment.flip=true", "augment.pad_crop=2", "augment.cutout=4", "augment.random_erasing=0.5"),
    *(
        "augment.mixup=0.8",
        "augment.cutmix=1",
        "inner.micro_batches=2",
        "inner.clip_grad=1",
        "outer.average=0.9",
    ),
    "inner.batch_size=12",
)
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


class Network(nn.Module):
    """With BatchNorm, dropout and an auxiliary head; it uses how far the training is."""

    training_progress: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("training_progress", torch.zeros(()), persistent=False)
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout()
        )
        self.main, self.other = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both heads."""
        features = self.features(images) * self.training_progress
        return self.main(features), self.other(features)


def inner_steps(device: torch.device) -> Iterator[Trajectory]:
    """A trajectory, after each of its inner steps."""
    recipe = Recipe.load(DIGITS, list(OVERRIDES))
    with device:
        network, average = Network(), Network()
    augmentation = Augmentation(
        recipe.augment,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        seed=0,
        batch_size=12,
        own=slice(0, 12),
        device=device,
        num_classes=10,
    )
    policy = Policy()
    trajectory = Trajectory(
        number=0,
        network=network,
        recipe=recipe,
        groups=Groups(trajectories=1, processes=1, rank=0, groups=1, device=device),
        objective=Classification(10),
        augmentation=augmentation,
        accelerator=Accelerator(cpu=device.type != "cuda"),
        steps_per_epoch=4,
        total_steps=8,
        num_operations=policy.space.num_operations,
        keep_operations=True,
        average=average,
    )
    images, labels = torch.zeros(12, 3, 32, 32, dtype=torch.uint8), torch.arange(12) % 10
    trajectory.begin_outer_step()
    for step in range(2):
        batch = augmentation.batch(images, step)
        trajectory.inner_step(*trajectory.augment(batch, labels, step, policy), step)
        yield trajectory


@contextmanager
def errors_of_waiting() -> Iterator[None]:
    """On CUDA, torch's own; elsewhere nothing."""
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=GPU)])
def test_inner_steps_need_no_number_from_the_device(device: str) -> None:
    """But the first, which compiles and compares kernels and moves tables to the device."""
    steps = inner_steps(torch.device(device))
    next(steps)
    with errors_of_waiting():
        trajectories = list(steps)
    assert int(trajectories[-1].counts_K.sum()) == 2 * 12
    assert [len(each) for each in trajectories[-1].operations] == [12] * 2


def test_one_launch_needs_no_number_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that was drawn comes in one tensor; only the images, the labels and tables come besides."""
    drawn, stub = [], ModuleType("gpu")

    def apply(images: Tensor, drawn_BD: Tensor, *tables: Tensor, finish: Any, **options: Any) -> Tensor:
        assert {each.device.type for each in (images, drawn_BD, *tables, *finish[:2])} == {"meta"}
        drawn.append(drawn_BD.shape)
        return torch.empty_like(images, dtype=torch.float32)

    vars(stub)["apply"] = apply

    def kernel(batched: BatchedElements, images: Tensor, elements: Tensor) -> Any:
        assert batched._fused is not None
        return partial(batched._fused.on_gpu, stub)

    def unused(*arguments: Any) -> Tensor:
        raise AssertionError("the images are transformed by torch code")

    monkeypatch.setattr(BatchedElements, "_for", kernel)
    monkeypatch.setattr(BatchedElements, "by_torch", unused)
    monkeypatch.setattr(RawBatch, "finish", unused)
    assert len(list(inner_steps(torch.device("meta")))) == 2
    assert drawn == [(12, 2 + 5)] * 2
