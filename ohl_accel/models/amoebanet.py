"""AmoebaNet-B for images of 32 pixels: cells that evolution found, stacked as in NASNet.

Real et al., "Regularized Evolution for Image Classifier Architecture Search", 2019; the cells, the reductions and the
auxiliary head follow the released code (tensorflow/tpu, models/official/amoeba_net), the stem and the number of cells
NASNet's for CIFAR. Two 3 x 3 windows of stride 2 lie one pixel apart from TensorFlow's, which pads on one side only.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ohl_accel.models.classifier import Classifier, initialize, small_image_cfg

Term = tuple[str, int]
"""An operation, and the number of the state that it is applied to."""


class Plan(NamedTuple):
    """A cell. States 0 and 1 are the outputs of the two cells before it; each pair adds the sum of two terms."""

    pairs: tuple[tuple[Term, Term], ...]
    outputs: tuple[int, ...]
    """The states whose channels are the output."""


NORMAL = Plan(
    (
        (("1x1", 1), ("max 3x3", 1)),
        (("none", 1), ("separable 3x3", 0)),
        (("1x1", 1), ("separable 3x3", 0)),
        (("1x1", 2), ("none", 2)),
        (("average 3x3", 1), ("1x1", 5)),
    ),
    (0, 3, 4, 6),
)
REDUCTION = Plan(
    (
        (("max 2x2", 0), ("max 3x3", 0)),
        (("none", 2), ("3x3", 1)),
        (("dilated separable 5x5", 2), ("max 3x3", 2)),
        (("none", 3), ("separable 3x3", 1)),
        (("average 3x3", 4), ("1x1", 3)),
    ),
    (5, 6),
)
_STEM_MULTIPLIER = 3


def _unit(width_in: int, width: int, *convolutions: nn.Module) -> nn.Sequential:
    """ReLU, convolutions (a 1 x 1 one if none are given), normalization."""
    layers = convolutions or (nn.Conv2d(width_in, width, 1, bias=False),)
    return nn.Sequential(nn.ReLU(), *layers, nn.BatchNorm2d(width, eps=1e-3))


def _separable(width_in: int, width: int, stride: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """Two depthwise separable convolutions, the first of them with the stride."""
    units = []
    for of, step in ((width_in, stride), (width, 1)):
        depthwise = nn.Conv2d(of, of, kernel, step, dilation * (kernel // 2), dilation, groups=of, bias=False)
        units.append(_unit(of, width, depthwise, nn.Conv2d(of, width, 1, bias=False)))
    return nn.Sequential(*units)


def _bottleneck(width_in: int, width: int, stride: int) -> nn.Sequential:
    """A 3 x 3 convolution on a quarter of the channels."""
    narrow = max(1, width // 4)
    middle = nn.Conv2d(narrow, narrow, 3, stride, 1, bias=False)
    return nn.Sequential(_unit(width_in, narrow), _unit(narrow, narrow, middle), _unit(narrow, width))


def _pool(width_in: int, width: int, pool: nn.Module) -> nn.Module:
    if width_in == width:
        return pool
    return nn.Sequential(pool, nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width, eps=1e-3))


def _operation(name: str, width_in: int, width: int, stride: int) -> nn.Module:
    """One term of a cell, from `width_in` to `width` channels."""
    match name:
        case "none" if stride == 1 and width_in == width:
            return nn.Identity()
        case "none" | "1x1":
            return _unit(width_in, width, nn.Conv2d(width_in, width, 1, stride, bias=False))
        case "3x3":
            return _bottleneck(width_in, width, stride)
        case "separable 3x3":
            return _separable(width_in, width, stride, 3)
        case "dilated separable 5x5":
            return _separable(width_in, width, stride, 5, dilation=2)
        case "max 2x2":
            return _pool(width_in, width, nn.MaxPool2d(2, stride, ceil_mode=True))
        case "max 3x3":
            return _pool(width_in, width, nn.MaxPool2d(3, stride, 1))
        case "average 3x3":
            return _pool(width_in, width, nn.AvgPool2d(3, stride, 1, count_include_pad=False))
    raise AssertionError(name)


class FactorizedReduction(nn.Module):
    """Half the resolution without losing pixels: two strided 1 x 1 convolutions, one shifted by a pixel."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(width_in, width // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(width_in, width - width // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps [B, width_in, H, W] to [B, width, H / 2, W / 2]."""
        features = F.relu(features)
        shifted = F.pad(features, (0, 1, 0, 1))[:, :, 1:, 1:]
        reduced: Tensor = self.bn(torch.cat([self.even(features), self.odd(shifted)], 1))
        return reduced


class Cell(nn.Module):
    """A cell of a plan, on the outputs of the two cells before it.

    Args:
        plan: what it computes.
        width: channels of each of its states.
        width_in: channels of the last cell's output.
        width_before: channels of the output before that; None for the first cell, which gets the same one twice.
        stride: 2 for a reduction.
        shrinks_before: whether the output before the last has twice the resolution of the last.
        drop_path_rate: probability, at the end of training, that an operation is dropped for an image.
    """

    def __init__(
        self,
        plan: Plan,
        width: int,
        width_in: int,
        width_before: int | None,
        stride: int,
        shrinks_before: bool,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.plan, self.drop_path_rate = plan, drop_path_rate
        self.project = _unit(width_in, width)
        widths = [width, width_in if width_before is None else width]
        self.before: nn.Module = nn.Identity()
        if width_before is not None and shrinks_before:
            self.before = FactorizedReduction(width_before, width)
        elif width_before is not None and width_before != width:
            self.before = _unit(width_before, width)
        self.terms = nn.ModuleList()
        for pair in plan.pairs:
            for name, state in pair:
                self.terms.append(_operation(name, widths[state], width, stride if state < 2 else 1))
            widths.append(width)
        self.width_out = len(plan.outputs) * width

    def forward(self, last: Tensor, before: Tensor, progress: Tensor) -> Tensor:
        """The outputs of the last two cells to this one's.

        Args:
            last, before: [B, C, H, W].
            progress: float32 [] in 0..1, the part of the training that is done.
        """
        states = [self.project(last), self.before(before)]
        terms = iter(self.terms)
        for pair in self.plan.pairs:
            left, right = (self._term(next(terms), name, states[state], progress) for name, state in pair)
            states.append(left + right)
        return torch.cat([states[number] for number in self.plan.outputs], 1)

    def _term(self, operation: nn.Module, name: str, state: Tensor, progress: Tensor) -> Tensor:
        output: Tensor = operation(state)
        if name == "none" or not self.training or not self.drop_path_rate:
            return output
        keep = 1 - self.drop_path_rate * progress
        kept = torch.rand(len(output), 1, 1, 1, device=output.device) < keep
        return output * (kept / keep).to(output.dtype)


class AuxiliaryHead(nn.Module):
    """A classifier on the feature maps two thirds of the way, whose loss is added while training."""

    def __init__(self, width_in: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(width_in, 128, 1, bias=False), nn.BatchNorm2d(128, eps=1e-3))
        self.whole = nn.Sequential(nn.Conv2d(128, 768, 4, bias=False), nn.BatchNorm2d(768, eps=1e-3))
        self.fc = nn.Linear(768, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps [B, width_in, H, W] to logits [B, classes]; 16 x 16 are the released code's."""
        features = F.relu(features)
        if min(features.shape[2:]) >= 5:
            features = F.avg_pool2d(features, 5, 3)
        features = F.relu(self.project(F.adaptive_avg_pool2d(features, 4)))
        logits: Tensor = self.fc(F.relu(self.whole(features)).flatten(1))
        return logits


class AmoebaNet(Classifier):
    """AmoebaNet-B with timm's interface.

    Args:
        cells: N, normal cells in each of the three stages; a reduction cell begins the last two.
        width: F, channels of a state in the first stage; each stage doubles it.
        num_classes: outputs; 0 for features only.
        in_chans: channels of the images.
        global_pool: timm's pooling type before the classifier.
        drop_rate: dropout before the classifier.
        drop_path_rate: probability, at the end of training, that an operation of a cell is dropped for an image; it
            grows linearly with `training_progress` (NASNet's ScheduledDropPath).
        aux_logits: add an auxiliary head; in training the network then returns (logits, auxiliary logits).
    """

    training_progress: Tensor
    """The part of the training that is done, float32 [] in 0..1: set by the trainer before each inner step."""

    def __init__(
        self,
        cells: int,
        width: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        aux_logits: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("training_progress", torch.zeros(()), persistent=False)
        width_in = _STEM_MULTIPLIER * width
        width_before: int | None = None
        self.conv1 = nn.Conv2d(in_chans, width_in, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width_in, eps=1e-3)
        self.cells = nn.ModuleList()
        make = partial(Cell, drop_path_rate=drop_path_rate)
        for number in range(3 * cells):
            stage, begins = divmod(number, cells)
            if stage and not begins:
                cell = make(REDUCTION, 2**stage * width, width_in, width_before, 2, False)
                self.cells.append(cell)
                width_in, width_before = cell.width_out, width_in
            shrinks = bool(stage) and not begins
            cell = make(NORMAL, 2**stage * width, width_in, width_before, 1, shrinks)
            self.cells.append(cell)
            width_in, width_before = cell.width_out, width_in
        self._aux_after = 2 * cells  # the last cell of the second stage, after one reduction
        width_aux = len(NORMAL.outputs) * 2 * width
        self.aux_head = AuxiliaryHead(width_aux, num_classes) if aux_logits else None
        self.head_drop = nn.Dropout(drop_rate)
        self.num_classes, self.num_features = num_classes, width_in
        self.global_pool, self.fc = create_classifier(width_in, num_classes, pool_type=global_pool)
        initialize(self)

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Replace the last layer, and that of the auxiliary head (timm's interface)."""
        super().reset_classifier(num_classes, global_pool)
        if self.aux_head is not None:
            self.aux_head.fc = nn.Linear(self.aux_head.fc.in_features, num_classes)

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(The last feature maps, those that the auxiliary head sees.)"""
        last = before = middle = self.bn1(self.conv1(images))
        for number, cell in enumerate(self.cells):
            last, before = cell(last, before, self.training_progress), last
            if number == self._aux_after:
                middle = last
        return F.relu(last), middle

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalized images [B, C, H, W] to feature maps [B, num_features, H / 4, W / 4]."""
        return self._features(images)[0]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """Normalized images [B, C, H, W] to logits [B, classes]; in training with auxiliary logits, if it has them."""
        features, middle = self._features(images)
        logits = self.forward_head(features)
        if self.aux_head is None or not self.training:
            return logits
        return logits, self.aux_head(middle)


# timm reads this variable when it registers the function below
default_cfgs = generate_default_cfgs({"amoebanet_b_cifar.untrained": small_image_cfg("conv1")})


@register_model
def amoebanet_b_cifar(pretrained: bool = False, **kwargs: Any) -> AmoebaNet:
    """AmoebaNet-B (6, 128) for CIFAR, the paper's "33.4M" (section 4.2); `aux_logits` adds the auxiliary head's."""
    arguments = {"cells": 6, "width": 128, **kwargs}
    network: AmoebaNet = build_model_with_cfg(AmoebaNet, "amoebanet_b_cifar", pretrained, **arguments)
    return network
