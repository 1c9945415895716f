"""Images of more than 8 bits per channel, scaled to 8 by their true range.

Pillow's own `convert` clips such an image: almost all of a grey one of 16 bits becomes white.
"""

import numpy as np
from PIL import Image

DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Pillow's modes of more than 8 bits; all are grey (it reads RGB of 16 bits as 8)."""
_SIXTEEN_BITS_AS_I = ("PNG", "PPM")
"""Formats of 16 bits that Pillow, or an older version of it, reads in mode I."""
_BITS_PER_SAMPLE = 258  # a tag of TIFF


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 9 to 16 bits in mode L: its 8 high bits, as Pillow reads RGB of 16 bits; any other as it is.

    The range is that of the file: a TIFF of 12 bits is not darkened as if it had 16.

    Raises:
        ValueError: for modes I and F, of 32 bits, whose range no file says.
    """
    if image.mode not in DEEP_GREY:
        return image
    if image.mode == "F" or (image.mode == "I" and image.format not in _SIXTEEN_BITS_AS_I):
        raise ValueError(
            f"it has 32 bits per pixel (Pillow's mode {image.mode}) and does not say which range they have: convert it "
            "to 8 or 16 bits"
        )
    (bits,) = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    levels = np.asarray(image) >> (bits - 8)
    return Image.fromarray(levels.astype(np.uint8))
