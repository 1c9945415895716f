"""The pipelines of docs/use_a_policy.md that train with other libraries: some steps with the real ones."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_transform import pictures, run_block, workplace
from torchvision import tv_tensors
from torchvision.transforms import v2

from ohl_accel import PolicyTransform

__all__ = ["workplace"]
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("workplace")]
"""Warnings of other libraries about each other are not ours."""

TRAIN = """
import argparse
import torch
from timm import create_model
from timm.data import create_dataset, create_loader

parser = argparse.ArgumentParser()
parser.add_argument("--aa", type=str)
args = parser.parse_args()
dataset = create_dataset("", root="data", split="train")
loader = create_loader(
    dataset, input_size=(3, 32, 32), batch_size=8, is_training=True, color_jitter=0.4, auto_augment=args.aa,
    num_workers=0, device=torch.device("cpu"),
)
network = create_model("test_resnet", num_classes=2)
optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
for images, labels in loader:
    loss = torch.nn.functional.cross_entropy(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with open("steps", "w") as file:
    print(*(type(step).__name__ for step in loader.dataset.transform.transforms), loss.item(), file=file)
"""
"""The way of the data in timm's train.py: from `--aa` to the loss."""


def test_timm_training_script(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.data import transforms_factory

    monkeypatch.setattr(
        transforms_factory, "auto_augment_transform", transforms_factory.auto_augment_transform
    )
    (workplace / "train.py").write_text(TRAIN)
    monkeypatch.setattr(sys, "argv", ["train.py", "--aa", "runs/digits"])
    run_block("runpy.run_path")
    *steps, loss = (workplace / "steps").read_text().split()
    assert steps[1:] == ["RandomHorizontalFlip", "PolicyTransform", "MaybePILToTensor"]
    assert np.isfinite(float(loss))


def test_hugging_face_trainer() -> None:
    names = run_block("TrainingArguments(")
    assert names["trainer"].state.global_step == 2


def test_lightning() -> None:
    names = run_block("lightning.LightningModule")
    assert names["trainer"].global_step == 2


def test_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    names = run_block("keras.utils.PyDataset")
    assert np.isfinite(names["history"].history["loss"][0])
    images, _ = names["Augmented"](names["images"], names["labels"], 8)[1]
    assert (images.shape, images.dtype) == ((8, 32, 32, 3), np.float32)
    assert (images * 255 != names["images"][8:]).any(axis=(1, 2, 3)).sum() > 5


def test_kornia() -> None:
    assert run_block("augmentation.RandomErasing")["loss"].isfinite()


def test_albumentations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks its server for a newer version
    names = run_block("A.RandomCrop")
    assert names["loss"].isfinite()
    assert names["sample"]["image"].shape == (3, 24, 24)


def test_detection_and_segmentation() -> None:
    names = run_block("SanitizeBoundingBoxes")
    assert isinstance(names["image"], Image.Image)
    target: dict[str, Any] = names["target"]
    assert isinstance(target["masks"], tv_tensors.Mask)
    assert len(target["boxes"]) == len(target["labels"])
    rows = run_block("to_both = ")["rows"]
    assert [rows["image"][0].mode, rows["annotation"][0].mode] == ["RGB", "L"]


# --- docs/alternatives.md: what others do, as it says ---


def test_what_the_table_says_of_others() -> None:
    """One operation for a batch in torchvision and kornia, images alone in timm; an operation for each here."""
    from kornia.augmentation.auto import TrivialAugment
    from timm.data.auto_augment import rand_augment_transform

    image = v2.functional.pil_to_tensor(pictures(1)[0])
    batch = image.expand(32, 3, 12, 10)

    def different(images: torch.Tensor) -> int:
        return len({one.numpy().tobytes() for one in images})

    torch.manual_seed(0)
    assert different(v2.TrivialAugmentWide()(batch)) == 1
    assert different(PolicyTransform("runs/digits")(batch)) > 20
    assert len(list(TrivialAugment().get_forward_sequence())) == 1
    with pytest.raises((AttributeError, TypeError)):
        rand_augment_transform("rand-m9", {})(batch)
    mask = tv_tensors.Mask(image[0])
    with pytest.raises(TypeError, match="not supported"):
        v2.TrivialAugmentWide()(pictures(1)[0], mask)
    assert PolicyTransform("runs/digits")(pictures(1)[0], mask)[1].shape == mask.shape
