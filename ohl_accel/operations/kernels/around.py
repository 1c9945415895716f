"""What is done to a batch before its operations and after them: flip and pad-crop, normalization and Cutout.

On the CPU it is compiled by numba (`compiled_around.py`). Everywhere else, and as the reference of that and of the
kernel that does all of it in one launch on a GPU (`gpu.py`), it is ordinary torch code.

Shapes: B images, C channels, H rows, W columns.
"""

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ohl_accel.operations.kernels.optional import compiled_kernels, read_only


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, for which the host does not wait.

    Before a copy from memory that is not pinned, CUDA may wait until the device has done all it was given.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """Images before the basic transforms, and what was drawn for these and for Cutout, on the CPU."""

    images_BCHW: Tensor
    """uint8, C = 1 or 3, on any device; left unchanged."""
    mean_C11: Tensor
    """Of levels, float32, here and below on the device of the images."""
    std_C11: Tensor
    flip_B: Tensor | None = None
    """int64: 1 for images that are flipped; None: none is."""
    padding: int = 0
    """Zeros on every side before cropping back to the size; 0: no cropping."""
    corner_B2: Tensor | None = None
    """int64, top and left corner of the crop, in 0..2 * padding; needed with padding."""
    side: int = 0
    """Of Cutout's square; 0: no Cutout."""
    centre_B2: Tensor | None = None
    """int64, row and column of its centre; needed with Cutout."""

    @cached_property
    def basic(self) -> Tensor:
        """Flipped and cropped: uint8 [B, C, H, W]. Computed when it is needed first."""
        compiled = _compiled_for(self.images_BCHW)
        if compiled is None or (self.flip_B is None and not self.padding):
            return self.basic_by_torch()
        drawn_BD = self.drawn
        result_BCHW = _empty_like(self.images_BCHW, np.uint8)
        compiled.flip_crop(
            _flat(self.images_BCHW),
            result_BCHW.flatten(1).numpy(),
            drawn_BD[:, 0].contiguous().numpy(),
            drawn_BD[:, 1:3].contiguous().numpy(),
            *self.images_BCHW.shape[2:],
        )
        return result_BCHW

    def basic_by_torch(self) -> Tensor:
        """The same without the compiled kernels."""
        images_BCHW = self.images_BCHW
        if self.flip_B is not None:
            B = len(images_BCHW)
            # on the CPU, a tenth of the time of index_copy
            both = torch.cat((images_BCHW, images_BCHW.flip(3)))
            images_BCHW = both.index_select(0, send(torch.arange(B) + B * self.flip_B, both.device))
        if self.padding:
            assert self.corner_B2 is not None
            images_BCHW = pad_crop(images_BCHW, self.padding, self.corner_B2)
        return images_BCHW

    def finish(self, images_BCHW: Tensor) -> Tensor:
        """Normalized, with Cutout: float32 [B, C, H, W], of the images that the operations made of `basic`."""
        compiled = _compiled_for(images_BCHW)
        if compiled is None:
            return self.finish_by_torch(images_BCHW)
        result_BCHW = _empty_like(images_BCHW, np.float32)
        compiled.normalize_cutout(
            _flat(images_BCHW),
            result_BCHW.flatten(1).numpy(),
            self.mean_C11.flatten().numpy(),
            self.std_C11.flatten().numpy(),
            self.drawn[:, 3:].contiguous().numpy(),
            self.side,
            *images_BCHW.shape[2:],
        )
        return result_BCHW

    def finish_by_torch(self, images_BCHW: Tensor) -> Tensor:
        """The same without the compiled kernels."""
        inputs = normalize(images_BCHW, self.mean_C11, self.std_C11)
        if self.side:
            assert self.centre_B2 is not None
            inputs = cutout(inputs, self.side, self.centre_B2)
        return inputs

    @cached_property
    def drawn(self) -> Tensor:
        """All that was drawn, as the kernels read it: int64 [B, 5], on the CPU.

        Whether an image is flipped; how much further down and to the right it is read; the first row and column of the
        square.
        """
        flip_B1 = self.images_BCHW.new_zeros(len(self.images_BCHW), 1, dtype=torch.int64, device="cpu")
        corner_B2 = centre_B2 = flip_B1.expand(-1, 2)
        if self.flip_B is not None:
            flip_B1 = self.flip_B[:, None]
        if self.padding and self.corner_B2 is not None:
            corner_B2 = self.corner_B2 - self.padding
        if self.side and self.centre_B2 is not None:
            centre_B2 = self.centre_B2 - self.side // 2
        return torch.cat((flip_B1, corner_B2, centre_B2), 1)


def _compiled_for(images_BCHW: Tensor) -> ModuleType | None:
    """The compiled kernels, if they can be used for these images."""
    usable = images_BCHW.device.type == "cpu" and images_BCHW.dtype == torch.uint8 and images_BCHW.numel()
    return compiled_kernels("compiled_around") if usable else None


def _empty_like(images_BCHW: Tensor, dtype: type[np.generic]) -> Tensor:
    return torch.from_numpy(np.empty(images_BCHW.shape, dtype))  # numpy's large arrays are on huge pages


def _flat(images_BCHW: Tensor) -> np.ndarray[Any, Any]:
    """A view, [B, N], that cannot be written."""
    return read_only(images_BCHW.contiguous().flatten(1).numpy())


def normalize(images_BCHW: Tensor, mean_C11: Tensor, std_C11: Tensor) -> Tensor:
    """uint8 to float32 of zero mean and unit deviation, given those of levels in 0..255."""
    return images_BCHW.float().sub_(mean_C11).div_(std_C11)


def pad_crop(images_BCHW: Tensor, padding: int, corner_B2: Tensor) -> Tensor:
    """Zero-pad every side and crop back to the size, at the given corners (0..2 * padding)."""
    B, channels, height, width = images_BCHW.shape
    device = images_BCHW.device
    padded = F.pad(images_BCHW, (padding,) * 4)
    top_B1, left_B1 = send(corner_B2, device).unsqueeze(2).unbind(1)
    row_BH = top_B1 + torch.arange(height, device=device)
    column_BW = left_B1 + torch.arange(width, device=device)
    image_B = torch.arange(B, device=device)[:, None, None, None]
    channel_C = torch.arange(channels, device=device)[None, :, None, None]
    return padded[image_B, channel_C, row_BH[:, None, :, None], column_BW[:, None, None, :]]


def cutout(images_BCHW: Tensor, side: int, centre_B2: Tensor) -> Tensor:
    """Set a square to 0, the mean of normalized images (DeVries & Taylor, 2017).

    The centres (row, column) are anywhere in the image, so a square may extend beyond its border.
    """
    device = images_BCHW.device
    top_B1, left_B1 = (send(centre_B2, device) - side // 2).unsqueeze(2).unbind(1)
    row_H = torch.arange(images_BCHW.shape[2], device=device)
    column_W = torch.arange(images_BCHW.shape[3], device=device)
    in_rows_BH = (row_H >= top_B1) & (row_H < top_B1 + side)
    in_columns_BW = (column_W >= left_B1) & (column_W < left_B1 + side)
    blank_B1HW = (in_rows_BH[:, :, None] & in_columns_BW[:, None, :])[:, None]
    return images_BCHW.masked_fill(blank_B1HW, 0.0)
