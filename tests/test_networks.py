"""The paper's networks: parameters and shapes as published, timm's interface, and runs with narrow ones."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import KEEP, final_state, rewind
from forked import DIGITS
from torch import nn

import ohl_accel.models
from ohl_accel.engine.search import search
from ohl_accel.models.amoebanet import NORMAL, Cell
from ohl_accel.recipe import Recipe
from ohl_accel.recipe.packaged import RECIPES, packaged

NARROW: dict[str, dict[str, Any]] = {
    "wide_resnet28_10_cifar": {"depth": 10, "widen_factor": 1},
    "dpn92_cifar": {"layers": [1, 2, 1, 1], "width": 8, "residual": 8, "growth": [2, 2, 2, 2], "groups": 4},
    "amoebanet_b_cifar": {"cells": 1, "width": 4, "aux_logits": True, "drop_path_rate": 0.5},
}
"""The paper's networks with few and narrow layers."""


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "millions", "tolerance", "shape"),
    [
        # the tolerance is one unit of the last digit printed: some papers round, others cut
        ("resnet18_cifar", 11.17, 0.01, (512, 4, 4)),
        ("wide_resnet28_10_cifar", 36.48, 0.01, (640, 8, 8)),
        ("dpn92_cifar", 34.23, 0.01, (2560, 4, 4)),
        # the paper says 33.4M, AmoebaNet's own paper 34.9M: ours is the latter's, also in its other sizes
        ("amoebanet_b_cifar", 34.9, 0.05, (2048, 8, 8)),
        ("seresnext101_32x4d", 48.96, 0.01, (2048, 1, 1)),
        ("resnet50", 25.58, 0.03, (2048, 1, 1)),  # 25,557,032: 25.56 everywhere but in this paper
    ],
)
def test_parameters_and_shapes_as_in_section_4_2(
    name: str, millions: float, tolerance: float, shape: tuple[int, int, int]
) -> None:
    """Without memory for the weights."""
    with torch.device("meta"):
        network: Any = timm.create_model(name).eval()
        assert network.forward_features(torch.zeros(2, 3, 32, 32)).shape == (2, *shape)
    assert parameters(network) / 1e6 == pytest.approx(millions, abs=tolerance)
    assert network.num_features == shape[0]


@pytest.mark.parametrize(("width", "millions"), [(36, 2.8), (80, 13.7)])
def test_amoebanet_b_in_other_sizes_of_its_own_paper(width: int, millions: float) -> None:
    """Real et al., Table 1, AmoebaNet-B with N = 6, rounded to a tenth, without the auxiliary head; 34.9M for 128."""
    with torch.device("meta"):
        network = timm.create_model("amoebanet_b_cifar", width=width)
    assert round(parameters(network) / 1e6, 1) == millions


def test_parameters_by_a_formula() -> None:
    """WideResNet-28-10 counted by hand: 3 x 3 convolutions, projections, normalizations, the last layer."""
    widths = [16, 160, 320, 640]
    count = 27 * 16 + 2 * 640 + 640 * 10 + 10
    for before, width in itertools.pairwise(widths):
        count += 9 * before * width + before * width + 7 * 9 * width**2 + 2 * before + 7 * 2 * width
    with torch.device("meta"):
        assert parameters(timm.create_model("wide_resnet28_10_cifar")) == count == 36_479_194


@pytest.mark.parametrize("name", NARROW)
def test_timms_interface(name: str) -> None:
    assert name in timm.list_models("*_cifar")
    assert name in ohl_accel.models.__all__
    network: Any = timm.create_model(name, num_classes=7, in_chans=1, **NARROW[name]).eval()
    images = torch.randn(2, 1, 20, 24)
    features = network.forward_features(images)
    assert torch.equal(network.forward_head(features), network(images))
    assert network.forward_head(features, pre_logits=True).shape == (2, network.num_features)
    assert network.get_classifier() is network.fc
    network.reset_classifier(3)
    assert network(images).shape == (2, 3)


def test_pretrained_weights_get_images_as_they_were_trained_with() -> None:
    """Normalization and crop of each recipe that fine-tunes are those that timm has for its weights."""
    recipes = [Recipe.load(name, ["data.path=images"]) for name in packaged(RECIPES)]
    fine_tuned = [recipe for recipe in recipes if recipe.model.args.get("pretrained")]
    assert len(fine_tuned) >= 3
    for recipe in fine_tuned:
        weights = timm.models.get_pretrained_cfg(recipe.model.name)
        assert weights is not None
        data = recipe.data
        assert (data.mean, data.std, data.crop_pct) == (weights.mean, weights.std, weights.crop_pct)
        assert (3, *(data.image_size or ())) == weights.input_size


def test_a_depth_that_is_none() -> None:
    with pytest.raises(ValueError, match="depth=27: must be 6 n"):
        timm.create_model("wide_resnet28_10_cifar", depth=27)


@pytest.mark.parametrize("name", NARROW)
def test_it_is_compiled_as_one_graph(name: str) -> None:
    """Without a break, in training, with the same outputs; what inductor makes of a graph is PyTorch's to test."""
    args = {**NARROW[name], "drop_path_rate": 0.0} if "drop_path_rate" in NARROW[name] else NARROW[name]
    network = timm.create_model(name, **args).train()
    images = torch.randn(4, 3, 16, 16)
    expected = network(images)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(network, backend="eager", fullgraph=True)(images), expected)


@pytest.mark.usefixtures("another_precision")
@pytest.mark.parametrize("name", NARROW)
def test_a_search_trains_saves_and_resumes_it(name: str, tmp_path: Path) -> None:
    """In bf16, with two trajectories; the winner is adopted, and timm reads what was saved."""
    arguments = [f"model.name={name}", f"model.args={NARROW[name]}", "run.mixed_precision=bf16"]
    arguments += ["outer.trajectories=2", "outer.steps=2", "outer.inner_steps=1", "inner.batch_size=8"]
    arguments += ["data.heldout=20", "data.test_split=null", "run.display=quiet", "inner.clip_grad=5", *KEEP]
    recipe, folder = Recipe.load(DIGITS, arguments), tmp_path / "run"
    result = search(recipe, [f"run.dir={folder}"])
    read = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        read_logits = read(images)
        assert torch.allclose(read_logits, result.network.float()(images).float(), atol=0.05)
    if "aux_logits" not in NARROW[name]:
        return  # to resume is the same for all, but for one whose training depends on how far it is
    whole = final_state(folder)
    rewind(folder, "step-000001")
    search(recipe, [f"run.dir={folder}", "run.resume=auto"])
    assert final_state(folder) == whole


def test_drop_path_grows_with_training() -> None:
    """A term is dropped for an image with probability rate x progress, and scaled so that its mean stays."""
    cell = Cell(NORMAL, 2, 2, 2, 1, False, drop_path_rate=0.5).train()
    identity, ones = nn.Identity(), torch.ones(4000, 2, 1, 1)
    for progress, keep in ((0.0, 1.0), (0.5, 0.75), (1.0, 0.5)):
        kept = cell._term(identity, "1x1", ones, torch.tensor(progress))[:, 0, 0, 0]
        assert float((kept > 0).float().mean()) == pytest.approx(keep, abs=0.04)
        assert float(kept.max()) == pytest.approx(1 / keep)
    assert torch.equal(cell._term(identity, "none", ones, torch.tensor(1.0)), ones)
    assert torch.equal(cell.eval()._term(identity, "1x1", ones, torch.tensor(1.0)), ones)
