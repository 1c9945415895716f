"""From a uint8 batch to the network's inputs: basic transforms, policy, normalization, erasing, mixing.

Section 4.1 of the paper. Random numbers are keyed by inner step (counted over the whole run) and generated
for the whole batch of a group, of which a process uses its own slice. Only the operations differ
between trajectories (footnote 1): flips, crops, signs, erased places and mixtures are the same for all.

Shapes: B images of the group's batch, b of this process, C channels, H rows, W columns.
"""

import random

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ohl_accel.operations.kernels.around import RawBatch, normalize, send
from ohl_accel.policy import Policy
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

    def batch(self, images_bCHW: Tensor, step: int) -> RawBatch:
        """Images as they come, uint8 [b, C, H, W], on the device, with what is drawn for them in an inner step.

        That is the same for every trajectory. It is drawn on the CPU, where the same key gives the same numbers
        whatever the device, and before the device needs it: the host waits for nothing.
        """
        section, (height, width) = self.section, images_bCHW.shape[2:]
        flip, corner, centre = None, None, None
        if section.flip:
            flip = self._random_integers("flip", step, 2)
        if section.pad_crop:
            margin = 2 * section.pad_crop + 1
            rows, columns = (
                self._random_integers(f"crop {direction}", step, margin) for direction in ("rows", "columns")
            )
            corner = torch.stack((rows, columns), 1)
        if section.cutout:
            row = self._random_integers("cutout row", step, height)
            centre = torch.stack((row, self._random_integers("cutout column", step, width)), 1)
        return RawBatch(
            images_BCHW=send(images_bCHW, self.device),
            mean_C11=self._mean_C11,
            std_C11=self._std_C11,
            flip_B=flip,
            padding=section.pad_crop,
            corner_B2=corner,
            side=section.cutout,
            centre_B2=centre,
        )

    def inputs(
        self, policy: AugmentationPolicy, batch: RawBatch, labels_b: Tensor, step: int, trajectory: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Transform each image as the policy says, between what is done before and after for every policy.

        Each process of a group samples the operations of the whole batch, so counts need no communication.

        Args:
            policy: what transforms the images.
            batch: of this inner step.
            labels_b: int64.
            step: inner steps done so far in the whole run.
            trajectory: n.

        Returns:
            Normalized images with Cutout, random erasing, and mixup or CutMix: float32 [b, C, H, W]; the targets, which
            are the labels, int64 [b], or if they are mixed float [b, classes]; and the operations of the group's batch,
            int64 [B] on the CPU, or None if the policy has none.
        """
        draw = BatchDraw(self.seed, step, trajectory, self.batch_size, self.own)
        operation_B: Tensor | None
        if type(policy) is Policy:  # what derives from it may apply something else
            inputs, operation_B = policy.augment(batch, draw)
        else:
            images_bCHW, operation_B = policy.apply(batch.basic, draw)
            inputs = batch.finish(images_bCHW)
        if self.section.random_erasing:
            self._erase(inputs, step)
        return *self._mixing(inputs, send(labels_b, self.device), self.seed, step), operation_B

    def _erase(self, inputs_bCHW: Tensor, step: int) -> None:
        """timm's random erasing (Zhong et al., 2020), in place, by draws of each image's own."""
        state = random.getstate()  # where timm draws
        for number, image_CHW in zip(range(self.batch_size)[self.own], inputs_bCHW, strict=True):
            random.seed(keyed_seed(self.seed, "random erasing", step, number))
            self._erasing(image_CHW)
        random.setstate(state)

    def normalize(self, images_bCHW: Tensor) -> Tensor:
        """uint8 to float32 of zero mean and unit deviation, on the device."""
        return normalize(send(images_bCHW, self.device), self._mean_C11, self._std_C11)

    def _random_integers(self, purpose: str, step: int, below: int) -> Tensor:
        """This process's part of B integers in 0..below-1."""
        generator = keyed_generator(self.seed, purpose, step)
        return torch.randint(below, (self.batch_size,), generator=generator)[self.own]
