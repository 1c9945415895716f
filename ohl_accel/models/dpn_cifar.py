"""Dual path networks for images of 32 pixels: one part of the channels is added to, another one grows.

Chen et al., "Dual Path Networks", 2017, as the paper's 34.23M parameters imply it: a 3 x 3 stem without pooling, and
normalization after convolution (timm's `dpn92`, for ImageNet, normalizes before it and has 35.0M with 10 classes).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ohl_accel.models.classifier import Classifier, initialize, small_image_cfg


class DualPathBlock(nn.Module):
    """A bottleneck whose first `residual` output channels are added to, and whose other ones are appended.

    Args:
        width_in: channels before it.
        width: of the grouped 3 x 3 convolution.
        residual: channels of the residual path.
        growth: channels that are appended.
        groups: of the 3 x 3 convolution.
        stride: of the 3 x 3 convolution.
        first: whether it begins a stage, and so projects its input to residual + growth channels.
    """

    def __init__(
        self, width_in: int, width: int, residual: int, growth: int, groups: int, stride: int, first: bool
    ) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, residual + growth, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(residual + growth)
        self.shortcut: nn.Module = nn.Identity()
        if first:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, residual + growth, 1, stride=stride, bias=False),
                nn.BatchNorm2d(residual + growth),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps [B, width_in, H, W] to maps with `growth` more channels than the shortcut."""
        inner = F.relu(self.bn1(self.conv1(features)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        inner, shortcut, split = self.bn3(self.conv3(inner)), self.shortcut(features), self.residual
        added = shortcut[:, :split] + inner[:, :split]
        return F.relu(torch.cat([added, shortcut[:, split:], inner[:, split:]], 1))


class DualPathNet(Classifier):
    """A dual path network with timm's interface.

    Args:
        layers: blocks in each stage; each stage but the first halves the resolution.
        width: of the grouped convolutions in the first stage; each stage doubles it.
        residual: channels of the residual path in the first stage; each stage doubles it.
        growth: channels that each block of a stage appends.
        groups: of the 3 x 3 convolutions; must divide `width`.
        num_classes: outputs; 0 for features only.
        in_chans: channels of the images.
        global_pool: timm's pooling type before the classifier.
        drop_rate: dropout before the classifier.
    """

    def __init__(
        self,
        layers: Sequence[int],
        width: int,
        residual: int,
        growth: Sequence[int],
        groups: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        stages: list[nn.Module] = []
        width_in = 64
        for stage, (blocks, more) in enumerate(zip(layers, growth, strict=True)):
            scale, members = 2**stage, []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                members.append(
                    DualPathBlock(width_in, scale * width, scale * residual, more, groups, stride, block == 0)
                )
                width_in = scale * residual + (block + 2) * more
            stages.append(nn.Sequential(*members))
        self.stages = nn.Sequential(*stages)
        self.head_drop = nn.Dropout(drop_rate)
        self.num_classes, self.num_features = num_classes, width_in
        self.global_pool, self.fc = create_classifier(width_in, num_classes, pool_type=global_pool)
        initialize(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalized images [B, C, H, W] to feature maps [B, num_features, H / 8, W / 8]."""
        features: Tensor = self.stages(F.relu(self.bn1(self.conv1(images))))
        return features


# timm reads this variable when it registers the function below
default_cfgs = generate_default_cfgs({"dpn92_cifar.untrained": small_image_cfg("conv1")})


@register_model
def dpn92_cifar(pretrained: bool = False, **kwargs: Any) -> DualPathNet:
    """DualPathNet-92 for CIFAR, the paper's "34.23M parameters" (section 4.2)."""
    of_paper = {"layers": (3, 4, 20, 3), "width": 96, "residual": 256, "growth": (16, 32, 24, 128)}
    arguments = {**of_paper, "groups": 32, **kwargs}
    network: DualPathNet = build_model_with_cfg(DualPathNet, "dpn92_cifar", pretrained, **arguments)
    return network
