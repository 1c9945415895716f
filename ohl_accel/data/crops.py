"""Crops that bring images of any size to the size of the run: random ones in training, from the centre otherwise."""

import math

import torch
from PIL import Image, ImageOps

from ohl_accel.recipe import RandomResizedCropSection
from ohl_accel.rng import keyed_generator

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_ATTEMPTS = 10


class RandomResizedCrop:
    """torchvision's transform of this name with keyed randomness: the same crop on every trajectory and layout.

    Args:
        section: of the recipe.
        size: (H, W) of the result.
        seed: of the run.
    """

    def __init__(self, section: RandomResizedCropSection, size: tuple[int, int], seed: int) -> None:
        self._section, self._size, self._seed = section, size, seed

    def __call__(self, image: Image.Image, step: int, position: int) -> Image.Image:
        """Crop and resize the image at `position` in the group's batch of an inner step."""
        generator = keyed_generator(self._seed, "random resized crop", step, position)
        top, left, rows, columns = cut(
            image.height, image.width, self._section.scale, self._section.ratio, generator
        )
        part = image.crop((left, top, left + columns, top + rows))
        return part.resize((self._size[1], self._size[0]), _FILTERS[self._section.interpolation])


def cut(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> tuple[int, int, int, int]:
    """(top, left, rows, columns) as sampled by `torchvision.transforms.RandomResizedCrop.get_params`."""
    least, greatest = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_ATTEMPTS):
        area = height * width * torch.empty(1).uniform_(scale[0], scale[1], generator=generator).item()
        aspect = math.exp(torch.empty(1).uniform_(least, greatest, generator=generator).item())
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top = int(torch.randint(0, height - rows + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - columns + 1, (1,), generator=generator))
            return top, left, rows, columns
    rows, columns = height, width
    if width / height < ratio[0]:
        rows = round(width / ratio[0])
    elif width / height > ratio[1]:
        columns = round(height * ratio[1])
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def centre(image: Image.Image, size: tuple[int, int], crop_pct: float) -> Image.Image:
    """Fill the size (H, W), crop the excess, and keep `crop_pct` of each side; bicubic."""
    bleed = (1 - crop_pct) / 2
    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC, bleed=bleed)
