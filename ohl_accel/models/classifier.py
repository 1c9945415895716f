"""What timm expects of an image classifier, for the networks of this package, and their entry in timm's registry."""

from abc import ABC, abstractmethod
from typing import Any

from timm.layers import create_classifier
from torch import Tensor, nn


class Classifier(nn.Module, ABC):
    """Methods that every network has: features, a pooling, and a last layer that can be replaced.

    A subclass sets these attributes in its constructor, the head last, and defines `forward_features`.
    """

    num_classes: int
    num_features: int
    """Channels of the last feature maps; `head_hidden_size` is timm's second name for it."""
    head_drop: nn.Module
    global_pool: nn.Module
    fc: nn.Module

    @property
    def head_hidden_size(self) -> int:
        """Channels before the last layer (timm's interface)."""
        return self.num_features

    def get_classifier(self) -> nn.Module:
        """The last layer (timm's interface)."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Replace the last layer (timm's interface)."""
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Normalized images [B, C, H, W] to feature maps."""

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps to logits, or to pooled features."""
        pooled: Tensor = self.head_drop(self.global_pool(features))
        logits: Tensor = pooled if pre_logits else self.fc(pooled)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images [B, C, H, W] to logits [B, classes]."""
        return self.forward_head(self.forward_features(images))


def initialize(network: nn.Module) -> None:
    """Kaiming's initialization of all convolutions; batch normalization keeps PyTorch's."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def small_image_cfg(first_conv: str) -> dict[str, Any]:
    """timm's description of a network for images of 32 pixels.

    Args:
        first_conv: the name of its first convolution.
    """
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "fixed_input_size": False,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "first_conv": first_conv,
        "classifier": "fc",
    }
