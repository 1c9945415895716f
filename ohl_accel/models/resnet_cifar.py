"""ResNets for images of 32 pixels and less: a 3 x 3 stem that keeps the resolution, and no pooling after it.

He et al., "Deep Residual Learning for Image Recognition", section 4.2; blocks from timm.
"""

from typing import Any

from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn

from ohl_accel.models.classifier import Classifier, initialize, small_image_cfg


class ResNetCifar(Classifier):
    """A residual network with timm's interface.

    Args:
        layers: number of `BasicBlock`s in each stage; each stage but the first halves the resolution.
        channels: width of each stage.
        num_classes: outputs; 0 for features only.
        in_chans: channels of the images.
        global_pool: timm's pooling type before the classifier.
        drop_rate: dropout before the classifier.
        stem_stride: 2 halves the resolution at once, for a quarter of the cost.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        channels: tuple[int, ...],
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, channels[-1]
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.act1 = nn.ReLU(inplace=True)
        stages: list[nn.Module] = []
        width_in = channels[0]
        for stage, (blocks, width) in enumerate(zip(layers, channels, strict=True)):
            stride = 1 if stage == 0 else 2
            stages.append(nn.Sequential(*_blocks(blocks, width_in, width, stride)))
            width_in = width
        self.stages = nn.Sequential(*stages)
        self.head_drop = nn.Dropout(drop_rate)
        self.global_pool, self.fc = create_classifier(channels[-1], num_classes, pool_type=global_pool)
        initialize(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalized images [B, C, H, W] to feature maps."""
        features: Tensor = self.stages(self.act1(self.bn1(self.conv1(images))))
        return features


def _blocks(count: int, width_in: int, width: int, stride: int) -> list[nn.Module]:
    shortcut = None
    if stride != 1 or width_in != width:
        shortcut = downsample_conv(width_in, width, kernel_size=1, stride=stride)
    first = BasicBlock(width_in, width, stride=stride, downsample=shortcut)
    return [first, *(BasicBlock(width, width) for _ in range(count - 1))]


def _create(name: str, pretrained: bool, **kwargs: Any) -> ResNetCifar:
    model: ResNetCifar = build_model_with_cfg(ResNetCifar, name, pretrained, **kwargs)
    return model


# timm reads this variable when it registers the functions below
default_cfgs = generate_default_cfgs(
    {
        "resnet18_cifar.untrained": small_image_cfg("conv1"),
        "resnet8_cifar.untrained": small_image_cfg("conv1"),
    }
)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-18 for CIFAR: 11,173,962 parameters with 10 classes, the paper's "11.17M" (section 4.2)."""
    return _create("resnet18_cifar", pretrained, layers=(2, 2, 2, 2), channels=(64, 128, 256, 512), **kwargs)


@register_model
def resnet8_cifar(pretrained: bool = False, width: int = 16, **kwargs: Any) -> ResNetCifar:
    """ResNet-8, three stages of one block: small enough for two cores. `width`: of the first stage."""
    channels = (width, 2 * width, 4 * width)
    return _create("resnet8_cifar", pretrained, layers=(1, 1, 1), channels=channels, **kwargs)
