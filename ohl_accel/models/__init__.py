"""Networks for small images that are not in timm, registered with timm under these names."""

from ohl_accel.models.resnet_cifar import resnet8_cifar, resnet18_cifar

__all__ = ["resnet8_cifar", "resnet18_cifar"]
