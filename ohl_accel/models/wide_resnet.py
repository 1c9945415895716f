"""Wide residual networks for images of 32 pixels: few layers, many channels, activation before convolution.

Zagoruyko and Komodakis, "Wide Residual Networks", 2016.
"""

from typing import Any

import torch.nn.functional as F
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ohl_accel.models.classifier import Classifier, initialize, small_image_cfg


class WideBlock(nn.Module):
    """Two 3 x 3 convolutions, each after normalization and ReLU, beside a shortcut.

    Args:
        width_in, width: channels before and after it.
        stride: of the first convolution.
        drop_rate: dropout between the convolutions.
    """

    def __init__(self, width_in: int, width: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        projects = stride != 1 or width_in != width
        self.shortcut = nn.Conv2d(width_in, width, 1, stride=stride, bias=False) if projects else None

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps [B, width_in, H, W] to [B, width, H / stride, W / stride]."""
        active = F.relu(self.bn1(features))
        shortcut = features if self.shortcut is None else self.shortcut(active)
        result: Tensor = self.conv2(self.drop(F.relu(self.bn2(self.conv1(active))))) + shortcut
        return result


class WideResNet(Classifier):
    """A wide residual network with timm's interface.

    Args:
        depth: layers, 6 n + 4 for n blocks in each of the three stages.
        widen_factor: the stages have 16, 32 and 64 times as many channels.
        num_classes: outputs; 0 for features only.
        in_chans: channels of the images.
        global_pool: timm's pooling type before the classifier.
        drop_rate: dropout inside the blocks.

    Raises:
        ValueError: for a depth that is not 6 n + 4.
    """

    def __init__(
        self,
        depth: int,
        widen_factor: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth={depth}: must be 6 n + 4, such as 16, 22 or 28")
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        width_in = 16
        for stage in range(3):
            width = 16 * widen_factor * 2**stage
            strides = [1 if stage == 0 else 2, *[1] * (blocks - 1)]
            widths_in = [width_in, *[width] * (blocks - 1)]
            stages.append(
                nn.Sequential(
                    *(WideBlock(of, width, s, drop_rate) for of, s in zip(widths_in, strides, strict=True))
                )
            )
            width_in = width
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(width_in)
        self.head_drop = nn.Identity()
        self.num_classes, self.num_features = num_classes, width_in
        self.global_pool, self.fc = create_classifier(width_in, num_classes, pool_type=global_pool)
        initialize(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalized images [B, C, H, W] to feature maps [B, num_features, H / 4, W / 4]."""
        return F.relu(self.bn(self.stages(self.conv1(images))))


# timm reads this variable when it registers the function below
default_cfgs = generate_default_cfgs({"wide_resnet28_10_cifar.untrained": small_image_cfg("conv1")})


@register_model
def wide_resnet28_10_cifar(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WideResNet-28-10: 36,479,194 parameters with 10 classes, the paper's "36.48M" (section 4.2)."""
    arguments = {"depth": 28, "widen_factor": 10, **kwargs}
    network: WideResNet = build_model_with_cfg(WideResNet, "wide_resnet28_10_cifar", pretrained, **arguments)
    return network
