"""Conversion of images between files, tensors and data URIs.

Shapes: C channels (1 grey, 3 RGB), H rows, W columns.
"""

import base64
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ohl_accel.errors import UserError

_PIXELATED_BELOW = 65
"""Images with sides below this many pixels are kept losslessly, and enlarged without smoothing."""


def read_image(path: Path) -> Image.Image:
    """Open the user's image.

    Raises:
        UserError: if it does not exist, or Pillow cannot read it.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for some broken PNG files
        raise UserError(f"image {path} cannot be read: {error}; give a JPEG, PNG or WebP file") from None


def upright_rgb(image: Image.Image, side: int) -> Image.Image:
    """An image as viewers show it: rotated by its EXIF orientation, RGB, transparency on white, shrunk.

    Args:
        image: in any of Pillow's modes, including 16 bits.
        side: maximum side of the result, in pixels.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow's conversion would clip to white
        levels = np.asarray(image, dtype=np.int64).clip(0, 65535) // 256
        image = Image.fromarray(levels.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def to_tensor(image: Image.Image) -> Tensor:
    """uint8 [3, H, W] of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def to_image(image_CHW: Tensor) -> Image.Image:
    """The image of a uint8 [C, H, W] tensor, C = 1 or 3."""
    levels = image_CHW.numpy()
    return Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0).copy())


def data_uri(image: Image.Image, side: int) -> str:
    """The image as a data URI: small ones losslessly, as PNG, larger ones shrunk to `side`, as JPEG."""
    content = io.BytesIO()
    if max(image.size) < _PIXELATED_BELOW:
        image.save(content, "PNG")
        kind = "png"
    else:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.save(content, "JPEG", quality=82)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
