"""Kernels that map each level of a channel to another level: a curve of 256 entries per channel.

Posterize, Solarize, AutoContrast, Equalize and Invert are Pillow's `ImageOps` functions, Contrast
and Brightness its `ImageEnhance` classes.

Shapes: n images, C channels (1 grey, 3 RGB), H rows, W columns, P = H * W pixels; E elements of a space; curves
of 256 levels.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ohl_accel.operations.kernels.around import send
from ohl_accel.operations.kernels.blend import blend, luma
from ohl_accel.operations.kernels.family import BatchFunction, Family, Kernel, magnitudes_of
from ohl_accel.operations.transforms import Element


class _OfLevels(Kernel):
    """What the curves have in common."""

    @property
    def family(self) -> Hashable:
        """One for all curves."""
        return _Curves

    def compile(self, elements: Sequence[Element]) -> Family:
        """A table of curves."""
        return _Curves(elements)


@dataclass(frozen=True)
class Curve(_OfLevels):
    """A curve that depends on the magnitude alone."""

    curve: Callable[[float], Tensor]
    """Magnitude with its sign -> uint8 [256]."""


@dataclass(frozen=True)
class ImageCurve(_OfLevels):
    """A curve that depends on the image as well."""

    curves: BatchFunction
    """(uint8 images [n, C, H, W], float32 magnitudes [n]) -> uint8 [n, C, 256], or [n, 1, 256] for all channels."""


class _Curves:
    """All elements of a space that are curves.

    Args:
        elements: of the space.
    """

    def __init__(self, elements: Sequence[Element]) -> None:
        self._magnitude_E2 = magnitudes_of(elements)
        self._fixed_E2256 = fixed_curves(elements)
        of_function = dict[BatchFunction, list[bool]]()
        for index, element in enumerate(elements):
            if isinstance(kernel := element.transform.kernel, ImageCurve):
                of_function.setdefault(kernel.curves, [False] * len(elements))[index] = True
        self._of_images = [(function, torch.tensor(chosen)) for function, chosen in of_function.items()]

    def __call__(self, images_nCHW: Tensor, element_n: Tensor, negative_n: Tensor) -> Tensor:
        """Apply to each image the curve of its element."""
        device, channels, sign_n = images_nCHW.device, images_nCHW.shape[1], negative_n.long()
        curves_n256 = send(self._fixed_E2256[element_n, sign_n], device)
        curves_nC256 = curves_n256[:, None].expand(-1, channels, -1).contiguous()
        for curves_of, of_function_E in self._of_images:
            chosen = of_function_E[element_n].nonzero().squeeze(1)
            if len(chosen):
                index = send(chosen, device)
                magnitude = self._magnitude_E2[element_n[chosen], sign_n[chosen]]
                images = images_nCHW.index_select(0, index)
                curves_nC256[index] = curves_of(images, send(magnitude, device))
        levels_nCP = images_nCHW.flatten(2).long()
        return curves_nC256.gather(2, levels_nCP).view_as(images_nCHW)


def fixed_curves(elements: Sequence[Element]) -> Tensor:
    """uint8 [E, 2, 256]: the curve of each element and sign; of those that have none, each level itself."""
    curves = []
    for element in elements:
        kernel = element.transform.kernel
        curve = kernel.curve if isinstance(kernel, Curve) else _itself
        curves.append(torch.stack([curve(element.value(negative)) for negative in (False, True)]))
    return torch.stack(curves)


def _itself(magnitude: float) -> Tensor:
    return torch.arange(256).to(torch.uint8)


def posterize(bits: float) -> Tensor:
    """`ImageOps.posterize`: keep the highest bits (integer part of the number). uint8 [256]."""
    return (torch.arange(256) & -(1 << (8 - int(bits)))).to(torch.uint8)


def solarize(threshold: float) -> Tensor:
    """`ImageOps.solarize`: invert levels from the threshold (its integer part) upward. uint8 [256]."""
    levels = torch.arange(256)
    return torch.where(levels < int(threshold), levels, 255 - levels).to(torch.uint8)


def brighten(factor: float) -> Tensor:
    """`ImageEnhance.Brightness`: blend with black. uint8 [256]."""
    return blend(torch.tensor(0.0), torch.arange(256).float(), torch.tensor(factor))


def invert(magnitude: float) -> Tensor:
    """`ImageOps.invert`. uint8 [256]."""
    return (255 - torch.arange(256)).to(torch.uint8)


def contrast(images_nCHW: Tensor, factor_n: Tensor) -> Tensor:
    """`ImageEnhance.Contrast`: blend with a flat image of the mean grey level. uint8 [n, 1, 256]."""
    grey_nP = luma(images_nCHW).flatten(1)
    mean_n = (grey_nP.sum(1, dtype=torch.int64).double() / grey_nP.shape[1] + 0.5).floor()
    levels = torch.arange(256, dtype=torch.float32, device=images_nCHW.device)
    return blend(mean_n.float()[:, None], levels, factor_n[:, None])[:, None]


def auto_contrast(images_nCHW: Tensor, magnitude_n: Tensor) -> Tensor:
    """`ImageOps.autocontrast`: stretch each channel to 0..255. uint8 [n, C, 256]."""
    levels_nCP = images_nCHW.flatten(2)
    lowest = levels_nCP.amin(2, keepdim=True).double()
    highest = levels_nCP.amax(2, keepdim=True).double()
    # `255.0 / tensor` would be `255.0 * reciprocal`, which rounds twice
    scale = torch.full_like(lowest, 255.0).div((highest - lowest).clamp(min=1.0))
    levels = torch.arange(256, dtype=torch.float64, device=images_nCHW.device)
    stretched = (levels * scale + -lowest * scale).clamp(0, 255)
    return torch.where(highest > lowest, stretched, levels).to(torch.uint8)


def equalize(images_nCHW: Tensor, magnitude_n: Tensor) -> Tensor:
    """`ImageOps.equalize`: flatten the histogram of each channel. uint8 [n, C, 256]."""
    levels_nCP = images_nCHW.flatten(2).long()
    n, channels, pixels = levels_nCP.shape
    # one flat histogram for all channels: in one dimension the sum is deterministic on CUDA as well
    first_bin_nC1 = torch.arange(n * channels, device=levels_nCP.device).view(n, channels, 1) * 256
    histogram = torch.zeros(n * channels * 256, dtype=torch.int64, device=levels_nCP.device)
    histogram.scatter_add_(0, (levels_nCP + first_bin_nC1).flatten(), torch.ones_like(levels_nCP).flatten())
    histogram_nC256 = histogram.view(n, channels, 256)
    count_of_highest = histogram_nC256.gather(2, levels_nCP.amax(2, keepdim=True))
    step = (pixels - count_of_highest) // 255
    below_nC256 = histogram_nC256.cumsum(2) - histogram_nC256
    positive_step = step.clamp(min=1)
    flattened = ((positive_step // 2 + below_nC256) // positive_step).clamp(max=255)
    identity = torch.arange(256, device=levels_nCP.device)
    return torch.where(step > 0, flattened, identity).to(torch.uint8)
