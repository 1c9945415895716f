"""Masks, boxes and key points, moved as an operation moves the image.

Geometric elements are those with an `Affine` kernel. Tone elements leave annotations as they are.

Shapes: N boxes, H rows, W columns. Coordinates are (x, y) in pixels from the upper left corner of the image, whose
pixel (0, 0) covers [0, 1) x [0, 1), as in torchvision.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ohl_accel.operations.kernels.geometry import Affine, Matrix
from ohl_accel.operations.space import Space
from ohl_accel.operations.table_1 import IDENTITY
from ohl_accel.operations.transforms import Element

_STAYING_FAMILIES = ("enhance", "tone")


class Motion:
    """How one operation moves the pixels of an image.

    Args:
        space: of the operation.
        operation: in [0, K).
        negative: the signs of its elements.

    Raises:
        ValueError: for an element of the user's own of which it is not known whether it moves pixels.
    """

    def __init__(self, space: Space, operation: int, negative: Sequence[bool]) -> None:
        self._steps: list[Callable[[int, int], Matrix]] = []
        for index, sign in zip(space.elements_of(operation), negative, strict=True):
            element = space.elements[index]
            kernel = element.transform.kernel
            if isinstance(kernel, Affine):
                self._steps.append(partial(kernel.matrix, element.value(sign)))
            else:
                _check_that_it_stays(element)

    @property
    def moves(self) -> bool:
        """Whether any element is geometric."""
        return bool(self._steps)

    def mask(self, mask: Tensor, fill: int) -> Tensor:
        """A mask, [..., H, W] of any dtype and on any device: the pixels that the image's come from.

        Args:
            mask: left unchanged.
            fill: the value of pixels whose source lies outside the image.

        Raises:
            ValueError: if the dtype of the mask cannot have this value.
        """
        height, width = mask.shape[-2:]
        if torch.tensor(fill).to(mask.dtype).item() != fill:
            raise ValueError(f"a mask of {mask.dtype} cannot be filled with {fill}: change mask_fill")
        if not self.moves or mask.numel() == 0:
            return mask.clone()
        numbers = np.arange(height * width, dtype=np.int32).reshape(height, width)
        source_HW = torch.from_numpy(np.array(self.pil_mask(Image.fromarray(numbers), -1))).to(mask.device)
        moved = mask.flatten(-2)[..., source_HW.clamp(min=0).long()]
        return moved.masked_fill(source_HW < 0, fill)

    def pil_mask(self, mask: Image.Image, fill: int) -> Image.Image:
        """A mask as a PIL image of any mode, with its palette if it has one."""
        bands = len(mask.getbands())
        for matrix in self._steps:
            mask = mask.transform(
                mask.size,
                Image.Transform.AFFINE,
                matrix(mask.height, mask.width),
                fillcolor=fill if bands == 1 else (fill,) * bands,
            )
        return mask.copy() if not self.moves else mask

    def boxes(self, boxes: tv_tensors.BoundingBoxes) -> tv_tensors.BoundingBoxes:
        """The boxes around the moved corners, clamped to the image after each element, as torchvision does.

        Raises:
            ValueError: for rotated boxes, since a sheared one is no rectangle.
        """
        if tv_tensors.is_rotated_bounding_format(boxes.format):
            raise ValueError(
                f"boxes of format {boxes.format.name} cannot be moved: an element may shear them; convert them with "
                "torchvision.transforms.v2.ConvertBoundingBoxFormat('XYXY')"
            )
        if not self.moves or boxes.numel() == 0:
            return boxes
        floats = boxes.as_subclass(Tensor)
        floats = floats if floats.is_floating_point() else floats.float()
        moved = F.convert_bounding_box_format(
            tv_tensors.wrap(floats, like=boxes), new_format=tv_tensors.BoundingBoxFormat.XYXY
        )
        for matrix in self._steps:
            xyxy_N4 = moved.as_subclass(Tensor)
            corners_N42 = xyxy_N4[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
            least_N2, greatest_N2 = _moved(corners_N42, matrix(*boxes.canvas_size)).aminmax(dim=1)
            around_N4 = torch.cat([least_N2, greatest_N2], 1)
            moved = F.clamp_bounding_boxes(tv_tensors.wrap(around_N4, like=moved))
        result = F.convert_bounding_box_format(moved, new_format=boxes.format).as_subclass(Tensor)
        moved_boxes: tv_tensors.BoundingBoxes = tv_tensors.wrap(result.to(boxes.dtype), like=boxes)
        return moved_boxes

    def key_points(self, points: tv_tensors.KeyPoints) -> tv_tensors.KeyPoints:
        """The moved points, [..., 2]; they may lie outside of the image, as torchvision leaves them."""
        moved = points.as_subclass(Tensor)
        moved = moved if moved.is_floating_point() else moved.float()
        for matrix in self._steps:
            moved = _moved(moved, matrix(*points.canvas_size))
        moved_points: tv_tensors.KeyPoints = tv_tensors.wrap(moved.to(points.dtype), like=points)
        return moved_points


def move_annotation(annotation: Any, motions: Sequence[Motion], batch: int | None, mask_fill: int) -> Any:
    """A mask, boxes or key points, moved with their images; type and device are kept.

    Args:
        annotation: `tv_tensors.BoundingBoxes` or `KeyPoints`, or a mask: a PIL image, a tensor [..., H, W], an array
            [H, W] or [H, W, C]; a batch of masks has an index more.
        motions: one for each image of the batch, or a single one.
        batch: the number of images, if the annotation is a batch.
        mask_fill: the value of pixels whose source lies outside the image.

    Raises:
        ValueError: see `Motion`.
    """
    if isinstance(annotation, tv_tensors.BoundingBoxes):
        return motions[0].boxes(annotation)
    if isinstance(annotation, tv_tensors.KeyPoints):
        return motions[0].key_points(annotation)
    if isinstance(annotation, Image.Image):
        return motions[0].pil_mask(annotation, mask_fill)
    if isinstance(annotation, np.ndarray):
        channels_last = annotation.ndim == (3 if batch is None else 4)
        masks = torch.from_numpy(np.array(annotation))
        masks = masks.movedim(-1, -3) if channels_last else masks
        moved = move_annotation(masks, motions, batch, mask_fill)
        return np.ascontiguousarray((moved.movedim(-3, -1) if channels_last else moved).numpy())
    masks = annotation.as_subclass(Tensor)
    if batch is None:
        moved = motions[0].mask(masks, mask_fill)
    elif batch == 0:
        moved = masks.clone()
    else:
        moved = torch.stack(
            [motion.mask(mask, mask_fill) for motion, mask in zip(motions, masks, strict=True)]
        )
    return tv_tensors.wrap(moved, like=annotation) if isinstance(annotation, tv_tensors.TVTensor) else moved


def _moved(points: Tensor, matrix: Matrix) -> Tensor:
    """Where points [..., 2] go when the pixel at (x, y) comes from (a0 x + a1 y + a2, a3 x + a4 y + a5)."""
    a0, a1, a2, a3, a4, a5 = matrix
    if (a0, a1, a3, a4) == (1, 0, 0, 1):  # Pillow shifts by whole pixels
        a2, a5 = math.floor(a2 + 0.5), math.floor(a5 + 0.5)
    x, y = (points - points.new_tensor([a2, a5])).unbind(-1)
    determinant = a0 * a4 - a1 * a3
    return torch.stack([a4 * x - a1 * y, a0 * y - a3 * x], -1) / determinant


def _check_that_it_stays(element: Element) -> None:
    transform = element.transform
    if transform.family not in _STAYING_FAMILIES and transform != IDENTITY:
        raise ValueError(
            f"{transform.name} is a transform of your own, and it is not known whether it moves pixels, so masks, "
            "boxes and key points cannot follow: give it the kernel Affine(matrix) if it does, or family='tone' if it "
            "does not"
        )
