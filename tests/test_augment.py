"""The transforms around the operations, against torchvision and by hand, and the slices of a group."""

import random
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torchvision.transforms import v2

from ohl_accel.engine.augment import Augmentation
from ohl_accel.errors import UserError
from ohl_accel.operations.kernels.around import RawBatch, cutout, pad_crop
from ohl_accel.operations.kernels.optional import compiled_kernels
from ohl_accel.policy.baselines import TorchvisionPolicy, open_policy, resolve_augment
from ohl_accel.policy.protocol import AugmentationPolicy, BatchDraw, NoPolicy
from ohl_accel.recipe import AugmentSection
from ohl_accel.rng import keyed_generator, keyed_seed

CPU = torch.device("cpu")


def images(count: int = 12, channels: int = 3, height: int = 10, width: int = 14) -> torch.Tensor:
    generator = keyed_generator(0, "test")
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def augmentation(rank: int = 0, num_replicas: int = 1, **section: object) -> Augmentation:
    own = slice(rank * 12 // num_replicas, (rank + 1) * 12 // num_replicas)
    section = {"flip": True, "pad_crop": 2, "cutout": 4, **section}
    return Augmentation(
        AugmentSection.model_validate(section),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.2, 0.3),
        seed=7,
        batch_size=12,
        own=own,
        device=CPU,
        num_classes=5,
    )


def finished(
    augment: Augmentation,
    batch: torch.Tensor,
    labels: torch.Tensor,
    step: int,
    policy: AugmentationPolicy | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, by default without a policy."""
    return augment.inputs(policy or NoPolicy(), augment.batch(batch, step), labels, step, trajectory=0)[:2]


plainly = partial(augmentation, flip=False, pad_crop=0)
"""Without basic transforms."""


def test_pad_crop_equals_torchvision() -> None:
    batch = images()
    top, left = torch.arange(12) % 5, (torch.arange(12) * 3) % 5
    got = pad_crop(batch, 2, torch.stack((top, left), 1))
    for i in range(12):
        padded = tv.pad(batch[i], [2, 2, 2, 2])
        assert torch.equal(got[i], tv.crop(padded, int(top[i]), int(left[i]), 10, 14))


def test_cutout_by_hand() -> None:
    got = cutout(torch.ones(3, 1, 6, 6), 4, torch.tensor([[3, 3], [0, 5], [5, 0]]))
    expected = torch.ones(3, 1, 6, 6)
    expected[0, 0, 1:5, 1:5] = 0
    expected[1, 0, 0:2, 3:6] = 0  # reaches over the border, as in DeVries & Taylor
    expected[2, 0, 3:6, 0:2] = 0
    assert torch.equal(got, expected)
    assert cutout(torch.ones(1, 1, 9, 9), 3, torch.tensor([[4, 4]])).sum() == 81 - 9


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (32, 32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_compiled_transforms_equal_torch(channels: int, size: tuple[int, int]) -> None:
    """Bit for bit, also where paddings and squares are larger than the image."""
    height, width = size
    assert compiled_kernels("compiled_around") is not None  # otherwise torch is compared with torch
    generator = keyed_generator(1, "test")
    for padding, side, flip in product((0, 2, 12), (0, 3, 40), (True, False)):
        batch = RawBatch(
            images_BCHW=images(12, channels, height, width),
            mean_C11=torch.tensor([125.3, 123.0, 113.9])[:channels, None, None],
            std_C11=torch.tensor([63.0, 62.1, 66.7])[:channels, None, None],
            flip_B=torch.randint(2, (12,), generator=generator) if flip else None,
            padding=padding,
            corner_B2=torch.randint(2 * padding + 1, (12, 2), generator=generator),
            side=side,
            centre_B2=torch.randint(height * width, (12, 2), generator=generator) % torch.tensor(size),
        )
        assert torch.equal(batch.basic, batch.basic_by_torch())
        assert torch.equal(batch.finish(batch.basic), batch.finish_by_torch(batch.basic))
    flat = replace(batch, std_C11=torch.zeros(channels, 1, 1))  # images of one level
    torch.testing.assert_close(
        flat.finish(flat.images_BCHW), flat.finish_by_torch(flat.images_BCHW), equal_nan=True, rtol=0, atol=0
    )
    backwards = replace(batch, images_BCHW=images(12, channels, width, height).transpose(2, 3))
    assert torch.equal(backwards.basic, backwards.basic_by_torch())


def test_basic_transforms_flip_half() -> None:
    augment = augmentation(pad_crop=0)
    flipped = 0
    for step in range(100):
        for got, original in zip(augment.batch(images(), step).basic, images(), strict=True):
            assert torch.equal(got, original) or torch.equal(got, original.flip(2))
            flipped += not torch.equal(got, original)
    assert 540 < flipped < 660


def test_normalization_and_the_zero_of_cutout() -> None:
    labels = torch.arange(12) % 5
    whole, targets = finished(plainly(cutout=0), images(), labels, 0)
    assert torch.equal(targets, labels)
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.2, 0.3])[:, None, None]
    torch.testing.assert_close(whole, (images() / 255 - mean) / std)
    blanked, _ = finished(plainly(cutout=4), images(), labels, 0)
    assert ((blanked == whole) | (blanked == 0)).all()
    assert (blanked == 0).sum() > 12 * 3 * 4


@pytest.mark.parametrize("name", ["none", "uniform", "autoaugment", "randaugment", "trivialaugment"])
def test_processes_of_a_group_make_up_the_whole_batch(name: str) -> None:
    """Each process transforms its slice as the one process of a smaller group would."""
    policy = open_policy(AugmentSection(policy=name), side=10)

    def pixels(rank: int, of: int) -> torch.Tensor:
        augment = augmentation(rank, of)
        labels = torch.zeros(12 // of, dtype=torch.int64)
        inputs, _, operations = augment.inputs(policy, augment.batch(images()[augment.own], 5), labels, 5, 0)
        assert (operations is not None and len(operations) == 12) == (name == "uniform")
        return inputs

    for of in (2, 3, 4):
        assert torch.equal(torch.cat([pixels(rank, of) for rank in range(of)]), pixels(0, 1))


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("autoaugment", v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)),
        ("randaugment", v2.RandAugment()),
        ("trivialaugment", v2.TrivialAugmentWide()),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_policies_are_torchvisions(name: str, transform: v2.Transform, channels: int) -> None:
    """Every image as torchvision makes it of the PIL image, with the seed of the image; each its own."""
    policy, batch = open_policy(AugmentSection(policy=name), side=32), images(12, channels, 16, 16)
    assert isinstance(policy, TorchvisionPolicy)

    def apply(batch: torch.Tensor, step: int) -> torch.Tensor:
        transformed, operations = policy.apply(batch, BatchDraw(7, step, 0, 12, slice(0, 12)))
        assert operations is None
        return transformed

    got = apply(batch, 3)
    seeds = torch.randint(2**62, (12,), generator=keyed_generator(7, "torchvision", 3)).tolist()
    for image, seed, expected in zip(batch, seeds, got, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(tv.pil_to_tensor(transform(tv.to_pil_image(image))), expected)
    assert not torch.equal(apply(batch[:1].expand(12, -1, -1, -1), 3)[0], got[1])
    assert not torch.equal(apply(batch, 4), got)


def test_mixup_mixes_images_and_labels_in_one_proportion() -> None:
    augment, labels = plainly(policy="mixup", cutout=0), torch.arange(12) % 5
    plain, _ = finished(plainly(cutout=0), images(), labels, 3)
    inputs, targets = finished(augment, images(), labels, 3)
    assert targets.shape == (12, 5)
    torch.testing.assert_close(targets.sum(1), torch.ones(12))
    weight = targets[0, 0]  # labels 0 and 1 are mixed: the partner is the image before
    assert 0 < weight < 1
    torch.testing.assert_close(inputs, weight * plain + (1 - weight) * plain.roll(1, 0))
    assert torch.equal(finished(augment, images(), labels, 3)[0], inputs)
    assert not torch.equal(finished(augment, images(), labels, 4)[1], targets)


def test_mixup_and_cutmix_with_any_policy_take_turns() -> None:
    """Each batch gets one of them, as in timm: mixup blends all pixels, CutMix pastes a rectangle of the partner."""
    augment, labels = plainly(mixup=0.8, cutmix=1.0, cutout=0), torch.arange(12) % 5
    plain, _ = finished(plainly(cutout=0), images(), labels, 3)
    partner, pasted = plain.roll(1, 0), 0
    for step in range(40):
        inputs, targets = finished(augment, images(), labels, step)
        torch.testing.assert_close(targets.sum(1), torch.ones(12))
        weight = targets[0, 0]
        if torch.all((inputs == plain) | (inputs == partner)):
            pasted += 1
            other = ((inputs != plain) | (plain == partner)).all(1).all(0)
            assert int(other.sum()) == pytest.approx((1 - float(weight)) * 140, abs=1e-3)
        else:
            torch.testing.assert_close(inputs, weight * plain + (1 - weight) * partner)
    assert 10 <= pasted <= 30
    alone = finished(plainly(policy="mixup", policy_args={"alpha": 0.8}, cutout=0), images(), labels, 3)
    same = finished(plainly(policy="none", mixup=0.8, cutout=0), images(), labels, 3)
    assert all(torch.equal(a, b) for a, b in zip(alone, same, strict=True))


@pytest.mark.parametrize(
    ("policy", "asked", "resolved"),
    [
        ("none", 8, 0),
        ("mixup", 8, 0),
        ("cutout", 8, 8),
        ("cutout", 0, 16),
        ("uniform", 8, 8),
        ("uniform", 0, 0),
    ],
)
def test_the_cutout_that_a_policy_means(policy: str, asked: int, resolved: int) -> None:
    assert resolve_augment(AugmentSection(policy=policy, cutout=asked), side=32).cutout == resolved


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"policy": "randaug"},
            r"no such policy; did you mean randaugment\? Known: none, cutout, mixup, uniform",
        ),
        ({"policy": "runs"}, "runs has no policy.json"),
        ({"policy": "uniform", "policy_args": {"alpha": 1}}, "augment.policy=uniform takes no arguments"),
        ({"policy": "randaugment", "policy_args": {"magnitud": 5}}, "not valid for randaugment"),
        ({"policy": "randaugment", "policy_args": {"magnitude": 50}}, "not valid for randaugment"),
        ({"policy": "autoaugment", "policy_args": {"policy": "mnist"}}, "not one of autoaugment's: imagenet"),
    ],
)
def test_policies_that_are_not_available(
    section: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        open_policy(AugmentSection.model_validate(section), side=32)


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
    assert not torch.equal(augmentation().batch(images(), 0).basic, augmentation().batch(images(), 1).basic)


def test_random_erasing_sets_rectangles_of_some_images_to_the_mean() -> None:
    """The same ones whatever the layout, others in the next step; timm's share of the area; `random` as it was."""
    levels, labels = torch.full((12, 3, 20, 20), 255, dtype=torch.uint8), torch.zeros(12).long()
    erasing = partial(plainly, random_erasing=0.5, cutout=0)
    random.seed(3)
    before = random.getstate()
    whole = [finished(erasing(), levels, labels, step)[0] for step in range(20)]
    halves = [finished(erasing(rank, 2), levels[:6], labels[:6], 0)[0] for rank in (0, 1)]
    assert random.getstate() == before
    assert torch.equal(torch.cat(halves), whole[0])
    assert not torch.equal(whole[0], whole[1])
    blank_nHW = (torch.cat(whole) == 0).all(1)
    erased = blank_nHW[blank_nHW.any(2).any(1)]
    assert 0.35 < len(erased) / 240 < 0.65
    for blank_HW in erased:
        rows, columns = blank_HW.any(1), blank_HW.any(0)
        assert torch.equal(blank_HW, rows[:, None] & columns)
        assert 0.01 < blank_HW.float().mean() < 0.35
