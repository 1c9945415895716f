"""Images of every common format as what elements take: 8 bits, grey or RGB, with an alpha channel kept apart.

Shapes: B images of a batch, T frames of a clip, C channels (1 grey, 3 RGB, 4 RGB and alpha), H rows, W columns.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from ohl_accel.operations.depth import eight_bits

_ALPHA = {"LA": "L", "RGBA": "RGB"}
"""Modes with an alpha channel, and without."""
_CONVERTED = {"1": "L", "La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
"""What other modes become; all that are not listed become RGB, as in a search."""
_DEPTHS = (torch.uint8, torch.uint16)


def number_of_images(inpt: Any) -> int | None:
    """How many images of its own an input is; None for one that is not a batch (a clip is one).

    Args:
        inpt: a PIL image, a tensor or an array.

    Raises:
        ValueError: if it cannot be processed; the message says what to do.
    """
    if isinstance(inpt, Image.Image):
        height, width = inpt.height, inpt.width
        batch = None
    elif isinstance(inpt, np.ndarray):
        _check_array(inpt)
        height, width = inpt.shape[:2] if inpt.ndim < 4 else inpt.shape[1:3]
        batch = len(inpt) if inpt.ndim == 4 else None
    else:
        _check_tensor(inpt)
        height, width = inpt.shape[-2:]
        single = 4 if isinstance(inpt, tv_tensors.Video) else 3
        batch = len(inpt) if inpt.ndim > single else None
    if height == 0 or width == 0:
        raise ValueError(f"an image of {height} x {width} has no pixels")
    return batch


def looks_like_images(inpt: Tensor | np.ndarray[Any, Any]) -> bool:
    """Whether a plain tensor or an array has the dtype and the shape of images."""
    if isinstance(inpt, np.ndarray):
        if inpt.dtype not in (np.uint8, np.uint16):
            return False
        return inpt.ndim == 2 or (inpt.ndim in (3, 4) and inpt.shape[-1] in (1, 3, 4))
    return inpt.dtype in _DEPTHS and inpt.ndim in (3, 4) and inpt.shape[-3] in (1, 3, 4)


def split_pil(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """A PIL image of any mode as mode L or RGB, and its alpha channel (mode L) if it has one.

    Raises:
        ValueError: for modes that Pillow cannot convert, and those of 32 bits, whose range is unknown.
    """
    if image.mode in ("L", "RGB"):
        return image, None
    image = eight_bits(image)
    if image.mode not in ("L", *_ALPHA):
        image = image.convert(_CONVERTED.get(image.mode, "RGB"))
    if image.mode not in _ALPHA:
        return image, None
    return image.convert(_ALPHA[image.mode]), image.getchannel("A")


def join_pil(image: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """The inverse of `split_pil`: mode LA or RGBA if there is an alpha channel."""
    return image if alpha is None else Image.merge(f"{image.mode}A", (*image.split(), alpha))


def split_tensor(images: Tensor) -> tuple[Tensor, Tensor | None]:
    """A tensor [..., C, H, W] as uint8 with 1 or 3 channels, and the alpha channel [..., 1, H, W] if C = 4."""
    if images.dtype == torch.uint16:  # torch has few functions for it
        images = (images.int() >> 8).to(torch.uint8)
    return (images, None) if images.shape[-3] != 4 else (images[..., :3, :, :], images[..., 3:, :, :])


def in_format_of(images: Tensor, result: Tensor) -> Tensor:
    """The result in the memory format of the images, channels_last or contiguous."""
    if (
        images.ndim == 4
        and images.is_contiguous(memory_format=torch.channels_last)
        and not images.is_contiguous()
    ):
        return result.contiguous(memory_format=torch.channels_last)
    return result.contiguous()


def as_tensor(images_BHWC: np.ndarray[Any, Any]) -> Tensor:
    """A batch of arrays as a tensor [B, C, H, W] with memory of its own."""
    return torch.from_numpy(np.array(images_BHWC)).permute(0, 3, 1, 2)


def as_array(images_BCHW: Tensor) -> np.ndarray[Any, Any]:
    """A batch as an array [B, H, W, C]."""
    return np.ascontiguousarray(images_BCHW.permute(0, 2, 3, 1).numpy())


def as_pil(array: np.ndarray[Any, Any]) -> Image.Image:
    """An array [H, W] or [H, W, C] as a PIL image of mode L, RGB, RGBA or I;16."""
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _check_array(array: np.ndarray[Any, Any]) -> None:
    if not looks_like_images(array):
        raise ValueError(
            "arrays of images must be uint8 (or uint16) [H, W], [H, W, C] or [B, H, W, C] with C = 1, 3 or 4, got "
            f"{array.dtype} {list(array.shape)}: put the policy before anything that makes floats"
        )


def _check_tensor(tensor: Tensor) -> None:
    if tensor.dtype not in _DEPTHS:
        raise ValueError(
            f"images must be uint8 in 0..255 (or uint16), got {tensor.dtype} of shape {list(tensor.shape)}: put the "
            "policy before ToTensor, ToDtype and Normalize; if this is not an image, wrap the images in "
            "torchvision.tv_tensors.Image"
        )
    if isinstance(tensor, tv_tensors.Video):
        if tensor.ndim not in (4, 5) or tensor.shape[-3] not in (1, 3, 4):
            raise ValueError(
                f"videos must be [T, C, H, W] or [B, T, C, H, W] with C = 1, 3 or 4, got {list(tensor.shape)}"
            )
    elif not looks_like_images(tensor):
        raise ValueError(
            f"images must be [C, H, W] or [B, C, H, W] with C = 1, 3 or 4, got {list(tensor.shape)}"
        )
