"""Networks for small images that are not in timm, registered with timm under these names."""

from ohl_accel.models.amoebanet import amoebanet_b_cifar
from ohl_accel.models.dpn_cifar import dpn92_cifar
from ohl_accel.models.resnet_cifar import resnet8_cifar, resnet18_cifar
from ohl_accel.models.wide_resnet import wide_resnet28_10_cifar

__all__ = ["amoebanet_b_cifar", "dpn92_cifar", "resnet8_cifar", "resnet18_cifar", "wide_resnet28_10_cifar"]
