"""A policy applied to your own image: its most and least probable operations, and randomly sampled ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ohl_accel.errors import UserError
from ohl_accel.operations.space import Space
from ohl_accel.policy import Policy
from ohl_accel.report.operations import Operation, least_probable, most_probable, operation_in
from ohl_accel.report.pictures import to_image, to_tensor, upright_rgb
from ohl_accel.rng import keyed_generator

MAX_DRAWS = 100
_RANKED = 12
_SIDE = 320


@dataclass(frozen=True)
class Tile:
    """The image after an operation."""

    operation: Operation
    image: Image.Image


@dataclass(frozen=True)
class Gallery:
    """What a policy does to an image; all images are RGB and of one size."""

    original: Image.Image
    likely: list[Tile]
    unlikely: list[Tile]
    drawn: list[Tile]
    """Sampled as in training."""


def load_policy(name: str) -> Policy:
    """A policy from a run folder, a `policy.json` or the Hub.

    Raises:
        UserError: if it is not available or cannot be used.
    """
    try:
        return Policy.from_pretrained(name)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None


def draw_gallery(policy: Policy, image: Image.Image, draws: int = 12, seed: int = 0) -> Gallery:
    """Apply operations of a policy to an image.

    Args:
        policy: any.
        image: in any of Pillow's modes; sides longer than 320 pixels are shrunk to that.
        draws: number of randomly sampled operations, 1 to 100.
        seed: of the operations and signs; 0 or more.

    Raises:
        UserError: if `draws` or `seed` is out of range.
    """
    if not 1 <= draws <= MAX_DRAWS:
        raise UserError(f"draws must be 1 to {MAX_DRAWS}, got {draws}")
    if seed < 0:
        raise UserError(f"seed must be 0 or more, got {seed}")
    original = upright_rgb(image, _SIDE)
    image_CHW = to_tensor(original)
    numbers = policy.sample(draws, keyed_generator(seed, "gallery operations")).tolist()
    return Gallery(
        original,
        _tiles(policy.space, image_CHW, most_probable(policy, _RANKED), seed, "likely"),
        _tiles(policy.space, image_CHW, least_probable(policy, _RANKED), seed, "unlikely"),
        _tiles(
            policy.space,
            image_CHW,
            [operation_in(policy, number) for number in numbers],
            seed,
            "drawn",
        ),
    )


def _tiles(
    space: Space, image_CHW: Tensor, operations: Sequence[Operation], seed: int, purpose: str
) -> list[Tile]:
    n = len(operations)
    generator = keyed_generator(seed, "gallery signs " + purpose)
    negative_nA = torch.rand(n, space.arity, generator=generator) < 0.5
    numbers_n = torch.tensor([operation.number for operation in operations])
    images_nCHW = space.apply(image_CHW.expand(n, -1, -1, -1), numbers_n, negative_nA)
    return [
        Tile(operation, to_image(result_CHW))
        for operation, result_CHW in zip(operations, images_nCHW, strict=True)
    ]
