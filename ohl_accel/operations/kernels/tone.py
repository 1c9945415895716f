"""Elements that map each level of a channel to another level: a curve of 256 entries per channel.

Posterize, Solarize, AutoContrast, Equalize and Invert are Pillow's `ImageOps` functions, Contrast
and Brightness its `ImageEnhance` classes.
"""

from functools import lru_cache

import torch
from torch import Tensor

from ohl_accel.operations.elements import ELEMENTS
from ohl_accel.operations.kernels.blend import blend, luma

TONE_TRANSFORMS = frozenset(
    {"Posterize", "Solarize", "Contrast", "Brightness", "AutoContrast", "Equalize", "Invert"}
)

_TRANSFORM = [element.transform for element in ELEMENTS]
_CONTRAST = torch.tensor([transform == "Contrast" for transform in _TRANSFORM])
_AUTO_CONTRAST = torch.tensor([transform == "AutoContrast" for transform in _TRANSFORM])
_EQUALIZE = torch.tensor([transform == "Equalize" for transform in _TRANSFORM])


def apply_tone_curve(images_nCHW: Tensor, element_n: Tensor, negative_n: Tensor) -> Tensor:
    """Send each image through the curve of its element.

    Args:
        images_nCHW: uint8.
        element_n: tone elements, int64 on the CPU.
        negative_n: unused; these elements have no sign.

    Returns:
        uint8 [n, C, H, W].
    """
    device = images_nCHW.device
    channels = images_nCHW.shape[1]
    curves_n256 = _fixed_curves()[element_n].to(device, non_blocking=True)
    curves_nC256 = curves_n256[:, None].expand(-1, channels, -1).contiguous()
    for of_kind, curves_of in (
        (_CONTRAST, _contrast_curves),
        (_AUTO_CONTRAST, _auto_contrast_curves),
        (_EQUALIZE, _equalize_curves),
    ):
        chosen = of_kind[element_n].nonzero().squeeze(1)
        if len(chosen):
            place = chosen.to(device, non_blocking=True)
            curves_nC256[place] = curves_of(images_nCHW.index_select(0, place), element_n[chosen])
    levels_nCP = images_nCHW.flatten(2).long()
    return curves_nC256.gather(2, levels_nCP).view_as(images_nCHW)


@lru_cache(maxsize=1)
def _fixed_curves() -> Tensor:
    """uint8 [36, 256]: the curves that depend on the element alone (identity for all others)."""
    levels = torch.arange(256)
    curves = levels.to(torch.uint8).repeat(len(ELEMENTS), 1)
    for index, element in enumerate(ELEMENTS):
        magnitude = element.magnitude
        match element.transform:
            case "Posterize":
                assert magnitude is not None
                curves[index] = (levels & -(1 << (8 - int(magnitude)))).to(torch.uint8)
            case "Solarize":
                assert magnitude is not None
                curves[index] = torch.where(levels < magnitude, levels, 255 - levels).to(torch.uint8)
            case "Brightness":
                assert magnitude is not None
                curves[index] = blend(torch.tensor(0.0), levels.float(), torch.tensor(magnitude))
            case "Invert":
                curves[index] = (255 - levels).to(torch.uint8)
    return curves


def _contrast_curves(images_nCHW: Tensor, element_n: Tensor) -> Tensor:
    """`ImageEnhance.Contrast`: blend with a flat image of the mean grey level. uint8 [n, 1, 256]."""
    grey_nP = luma(images_nCHW).flatten(1)
    mean_n = (grey_nP.sum(1, dtype=torch.int64).double() / grey_nP.shape[1] + 0.5).floor()
    factor_n = torch.tensor([ELEMENTS[i].magnitude for i in element_n.tolist()], dtype=torch.float32)
    levels = torch.arange(256, dtype=torch.float32, device=images_nCHW.device)
    factor_n1 = factor_n.to(images_nCHW.device, non_blocking=True)[:, None]
    return blend(mean_n.float()[:, None], levels, factor_n1)[:, None]


def _auto_contrast_curves(images_nCHW: Tensor, element_n: Tensor) -> Tensor:
    """`ImageOps.autocontrast`: stretch each channel to 0..255. uint8 [n, C, 256]."""
    levels_nCP = images_nCHW.flatten(2)
    lowest = levels_nCP.amin(2, keepdim=True).double()
    highest = levels_nCP.amax(2, keepdim=True).double()
    # `255.0 / tensor` would be `255.0 * reciprocal`, which rounds twice
    scale = torch.full_like(lowest, 255.0).div((highest - lowest).clamp(min=1.0))
    levels = torch.arange(256, dtype=torch.float64, device=images_nCHW.device)
    stretched = (levels * scale + -lowest * scale).clamp(0, 255)
    return torch.where(highest > lowest, stretched, levels).to(torch.uint8)


def _equalize_curves(images_nCHW: Tensor, element_n: Tensor) -> Tensor:
    """`ImageOps.equalize`: flatten the histogram of each channel. uint8 [n, C, 256]."""
    levels_nCP = images_nCHW.flatten(2).long()
    n, channels, pixels = levels_nCP.shape
    # one flat histogram of all channels: in one dimension the sum is deterministic on CUDA, too
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
