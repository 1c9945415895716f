"""From a uint8 batch to the network's inputs: basic transforms, policy, normalization, erasing, mixing.

Section 4.1 of the paper. Random numbers are keyed by inner step (counted over the whole run) and generated
for the whole batch of a group, of which a process uses its own slice. Only the operations differ
between trajectories (footnote 1): flips, crops, signs, erased places and mixtures are the same for all.

Shapes: B images of the group's batch, b of this process, C channels, H rows, W columns.
"""

import random

import torch
import torch.nn.functional as F
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ohl_accel.policy.baselines import Mixing
from ohl_accel.policy.protocol import AugmentationPolicy, BatchDraw
from ohl_accel.recipe import AugmentSection
from ohl_accel.rng import keyed_generator, keyed_seed


class Augmentation:
    """The transforms of one run on one process.

    Args:
        section: the recipe's augment section.
        mean, std: of each channel, in 0..1.
        seed: of the run.
        batch_size: B.
        own: the slice of the group's batch that this process trains on.
        device: where images go.
        num_classes: of the data.
    """

    def __init__(
        self,
        section: AugmentSection,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int,
        batch_size: int,
        own: slice,
        device: torch.device,
        num_classes: int,
    ) -> None:
        self.section, self.seed, self.device = section, seed, device
        self.batch_size, self.own = batch_size, own
        self._mean_C11 = 255 * torch.tensor(mean, device=device)[:, None, None]
        self._std_C11 = 255 * torch.tensor(std, device=device)[:, None, None]
        self._erasing = RandomErasing(section.random_erasing, mode="const", device=device)
        self._mixing = Mixing(section, num_classes)

    def basic(self, images_bCHW: Tensor, labels_b: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Flip and pad-crop, the same for every trajectory: uint8 [b, C, H, W] and labels, on the device."""
        images_bCHW = images_bCHW.to(self.device, non_blocking=True)
        if self.section.flip:
            b = len(images_bCHW)
            chosen_b = torch.arange(b) + b * self._random_integers("flip", step, 2)
            # on the CPU, a tenth of the time of index_copy
            both = torch.cat((images_bCHW, images_bCHW.flip(3)))
            images_bCHW = both.index_select(0, chosen_b.to(self.device, non_blocking=True))
        if self.section.pad_crop:
            margin = 2 * self.section.pad_crop + 1
            top_b = self._random_integers("crop rows", step, margin)
            left_b = self._random_integers("crop columns", step, margin)
            images_bCHW = pad_crop(images_bCHW, self.section.pad_crop, top_b, left_b)
        return images_bCHW, labels_b.to(self.device, non_blocking=True)

    def apply(
        self, policy: AugmentationPolicy, images_bCHW: Tensor, step: int, trajectory: int
    ) -> tuple[Tensor, Tensor | None]:
        """Transform each image as the policy says.

        Each process of a group samples the operations of the whole batch, so counts need no communication.

        Args:
            policy: what transforms the images.
            images_bCHW: uint8 on the device, after the basic transforms.
            step: inner steps done so far in the whole run.
            trajectory: n.

        Returns:
            uint8 [b, C, H, W], and the operations of the group's batch, int64 [B], or None if the policy has none.
        """
        return policy.apply(images_bCHW, BatchDraw(self.seed, step, trajectory, self.batch_size, self.own))

    def finish(self, images_bCHW: Tensor, labels_b: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Normalize, then apply Cutout, random erasing, and mixup or CutMix: float32 [b, C, H, W] and the targets.

        Targets are the labels, int64 [b], or if they are mixed float [b, classes].
        """
        inputs = self.normalize(images_bCHW)
        if self.section.cutout:
            height, width = images_bCHW.shape[2:]
            row_b = self._random_integers("cutout row", step, height)
            column_b = self._random_integers("cutout column", step, width)
            inputs = cutout(inputs, self.section.cutout, row_b, column_b)
        if self.section.random_erasing:
            self._erase(inputs, step)
        return self._mixing(inputs, labels_b, self.seed, step)

    def _erase(self, inputs_bCHW: Tensor, step: int) -> None:
        """timm's random erasing (Zhong et al., 2020), in place, by draws of each image's own."""
        state = random.getstate()  # where timm draws
        for number, image_CHW in zip(range(self.batch_size)[self.own], inputs_bCHW, strict=True):
            random.seed(keyed_seed(self.seed, "random erasing", step, number))
            self._erasing(image_CHW)
        random.setstate(state)

    def normalize(self, images_bCHW: Tensor) -> Tensor:
        """uint8 to float32 of zero mean and unit deviation, on the device."""
        images_bCHW = images_bCHW.to(self.device, non_blocking=True).float()
        return images_bCHW.sub_(self._mean_C11).div_(self._std_C11)

    def _random_integers(self, purpose: str, step: int, below: int) -> Tensor:
        """This process's part of B integers in 0..below-1."""
        generator = keyed_generator(self.seed, purpose, step)
        return torch.randint(below, (self.batch_size,), generator=generator)[self.own]


def pad_crop(images_bCHW: Tensor, padding: int, top_b: Tensor, left_b: Tensor) -> Tensor:
    """Zero-pad every side and crop back to the size, at the given corners (0..2 * padding)."""
    b, channels, height, width = images_bCHW.shape
    device = images_bCHW.device
    padded = F.pad(images_bCHW, (padding,) * 4)
    row_bH = top_b.to(device, non_blocking=True)[:, None] + torch.arange(height, device=device)
    column_bW = left_b.to(device, non_blocking=True)[:, None] + torch.arange(width, device=device)
    image_b = torch.arange(b, device=device)[:, None, None, None]
    channel_C = torch.arange(channels, device=device)[None, :, None, None]
    return padded[image_b, channel_C, row_bH[:, None, :, None], column_bW[:, None, None, :]]


def cutout(images_bCHW: Tensor, side: int, row_b: Tensor, column_b: Tensor) -> Tensor:
    """Set a square to 0, the mean of normalized images (DeVries & Taylor, 2017).

    The centres (row, column) are anywhere in the image, so a square may extend beyond its border.
    """
    device = images_bCHW.device
    top_b1 = row_b.to(device, non_blocking=True)[:, None] - side // 2
    left_b1 = column_b.to(device, non_blocking=True)[:, None] - side // 2
    row_H = torch.arange(images_bCHW.shape[2], device=device)
    column_W = torch.arange(images_bCHW.shape[3], device=device)
    in_rows_bH = (row_H >= top_b1) & (row_H < top_b1 + side)
    in_columns_bW = (column_W >= left_b1) & (column_W < left_b1 + side)
    blank_b1HW = (in_rows_bH[:, :, None] & in_columns_bW[:, None, :])[:, None]
    return images_bCHW.masked_fill(blank_b1HW, 0.0)
