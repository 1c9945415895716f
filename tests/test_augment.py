"""The transforms around the operations, against torchvision and by hand, and the slices of a group."""

import pytest
import torch
import torchvision.transforms.v2.functional as tv

from ohl_accel.augment import Augmentation, cutout, pad_crop
from ohl_accel.draws import keyed_generator, keyed_seed
from ohl_accel.policy import Policy
from ohl_accel.recipe import AugmentSection

CPU = torch.device("cpu")


def images(count: int = 12, channels: int = 3, height: int = 10, width: int = 14) -> torch.Tensor:
    generator = keyed_generator(0, "test")
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def augmentation(share: int = 0, shares: int = 1, **section: object) -> Augmentation:
    own = slice(share * 12 // shares, (share + 1) * 12 // shares)
    section = {"flip": True, "pad_crop": 2, "cutout": 4, **section}
    return Augmentation(
        AugmentSection.model_validate(section), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), 7, 12, own, CPU
    )


def test_pad_crop_equals_torchvision() -> None:
    batch = images()
    top, left = torch.arange(12) % 5, (torch.arange(12) * 3) % 5
    got = pad_crop(batch, 2, top, left)
    for i in range(12):
        padded = tv.pad(batch[i], [2, 2, 2, 2])
        assert torch.equal(got[i], tv.crop(padded, int(top[i]), int(left[i]), 10, 14))


def test_cutout_by_hand() -> None:
    got = cutout(torch.ones(3, 1, 6, 6), 4, torch.tensor([3, 0, 5]), torch.tensor([3, 5, 0]))
    expected = torch.ones(3, 1, 6, 6)
    expected[0, 0, 1:5, 1:5] = 0
    expected[1, 0, 0:2, 3:6] = 0  # reaches over the border, as in DeVries & Taylor
    expected[2, 0, 3:6, 0:2] = 0
    assert torch.equal(got, expected)
    assert cutout(torch.ones(1, 1, 9, 9), 3, torch.tensor([4]), torch.tensor([4])).sum() == 81 - 9


def test_basic_transforms_flip_half_and_keep_labels() -> None:
    augment = augmentation(pad_crop=0)
    flipped = 0
    for step in range(100):
        batch, labels = augment.basic(images(), torch.arange(12), step)
        assert labels.tolist() == list(range(12))
        for got, original in zip(batch, images(), strict=True):
            assert torch.equal(got, original) or torch.equal(got, original.flip(2))
            flipped += not torch.equal(got, original)
    assert 540 < flipped < 660


def test_normalization_and_the_zero_of_cutout() -> None:
    finished = augmentation(cutout=0).finish(images(), 0)
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.2, 0.3])[:, None, None]
    torch.testing.assert_close(finished, (images() / 255 - mean) / std)
    blanked = augmentation(cutout=4).finish(images(), 0)
    assert ((blanked == finished) | (blanked == 0)).all()
    assert (blanked == 0).sum() > 12 * 3 * 4


@pytest.mark.parametrize("shares", [2, 3, 4])
def test_processes_of_a_group_make_up_the_whole_batch(shares: int) -> None:
    """Each process transforms its slice as the one process of a smaller group would."""
    operations = Policy().sample(12, keyed_generator(0, "operations"))

    def pixels(share: int, of: int) -> torch.Tensor:
        augment = augmentation(share, of)
        batch, _ = augment.basic(images()[augment.own], torch.zeros(12 // of), 5)
        return augment.finish(augment.operate(batch, operations, 5), 5)

    assert torch.equal(torch.cat([pixels(share, shares) for share in range(shares)]), pixels(0, 1))


def test_draws_depend_on_the_whole_key() -> None:
    seeds = [
        keyed_seed(0, "flip", 1),
        keyed_seed(1, "flip", 1),
        keyed_seed(0, "crop", 1),
        keyed_seed(0, "flip", 2),
        keyed_seed(0, "flip", 1, 0),
        keyed_seed(0, "flip", 11),
    ]
    assert len(set(seeds)) == len(seeds)
    assert keyed_seed(0, "flip", 1) == keyed_seed(0, "flip", 1) < 2**63
    assert not torch.equal(augmentation().basic(images(), torch.zeros(12), 0)[0],
                           augmentation().basic(images(), torch.zeros(12), 1)[0])  # fmt: skip
