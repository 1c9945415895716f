"""What a run measured, others measure; and a few damaged images do not end it."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from test_data import recipe, some_images
from timm.data import create_dataset, create_loader, resolve_data_config

from ohl_accel.data import Images, open_data
from ohl_accel.data.images import Decoding, Replaced
from ohl_accel.data.memory import Items
from ohl_accel.distributed.groups import Groups
from ohl_accel.engine.network import create_network, save_network
from ohl_accel.engine.replacements import Replacements
from ohl_accel.errors import RunFailedError
from ohl_accel.recipe import ModelSection


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # timm leaves its files open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("use_test_size", [False, True])
@pytest.mark.parametrize(
    ("crop_mode", "crop_pct", "image_size"),
    [("center", 0.875, 28), ("center", 1.0, [24, 32]), ("squash", 1.0, 32), ("center", 1.0, None)],
)
def test_timms_loader_shows_what_the_run_measured_with(
    tmp_path: Path, crop_mode: str, crop_pct: float, image_size: Any, use_test_size: bool
) -> None:
    """Of a network whose own test size and crop are others."""
    size = (32, 32) if image_size is None else (56, 40)
    for number, noise in enumerate(some_images(8, size=(7, 5))):
        for split in ("train", "test"):
            file = tmp_path / "data" / split / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            noise.resize(size, Image.Resampling.BICUBIC).save(file)
    crop = {"crop_mode": crop_mode, "crop_pct": crop_pct, "image_size": image_size}
    data = open_data(recipe(tmp_path / "data", heldout=2, **crop))
    section = ModelSection(name="test_resnet.r160_in1k")
    network = create_network(section, data.schema, 0)
    network.pretrained_cfg |= {"test_input_size": (3, 288, 288), "test_crop_pct": 0.95, "crop_mode": "border"}  # type: ignore[operator]
    save_network(network, tmp_path, section, data.schema, data.mean, data.std, crop_pct, crop_mode)
    read = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    config = resolve_data_config({}, model=read, use_test_size=use_test_size)
    loader = create_loader(
        create_dataset("", str(tmp_path / "data" / "test")),
        batch_size=8,
        is_training=False,
        use_prefetcher=False,
        num_workers=0,
        device=torch.device("cpu"),
        **{
            name: config[name]
            for name in ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
        },
    )
    images_nCHW, labels = next(iter(loader))
    test = data.open_test()
    assert test is not None
    expected_nCHW, expected_labels = test.__getitems__(range(8))
    assert torch.equal(labels, expected_labels)
    mean, std = (torch.tensor(each)[:, None, None] for each in (data.mean, data.std))
    levels_nCHW = (images_nCHW * std + mean) * 255
    assert levels_nCHW.shape == expected_nCHW.shape
    # timm resizes, then crops; here both are one: only rounding differs
    assert (levels_nCHW - expected_nCHW).abs().mean() < (2 if image_size and crop_mode == "center" else 0.01)


def test_damaged_images_are_judged_by_their_share_of_the_whole_run() -> None:
    groups = Groups.build(
        trajectories=1, processes=1, rank=0, device=torch.device("cpu"), timeout=timedelta(seconds=10)
    )
    replacements = Replacements(groups=groups, allowed=0.01, log=None, first_outer_step=0)

    def images(count: int) -> Images:
        return Images(Items([], "x"), torch.zeros(count), Decoding((8, 8), 1, None), "split 'train'")

    def decode(images: Images, decoded: int, bad: int) -> None:
        images.tally.add(
            decoded, [Replaced(f"image {number}", "another", "damaged") for number in range(bad)]
        )

    many = images(5000)
    decode(many, 100, 2)
    assert replacements.count(0, many) == 2  # of the first 100
    for outer_step in range(1, 10):
        decode(many, 100, 0)
        replacements.count(outer_step, many)
    decode(many, 100, 10)
    with pytest.raises(
        RunFailedError, match=r"^12 of 1100 images of split 'train' could not be decoded, more"
    ):
        replacements.count(10, many)
    resumed = Replacements(
        groups=groups, allowed=0.01, log=None, first_outer_step=1, before={"split 'train'": [1000, 9]}
    )
    another = images(5000)
    decode(another, 100, 2)
    assert resumed.count(1, another) == 2  # 11 of 1,100
    assert resumed.totals == {"split 'train'": (1100, 11)}
    decode(another, 100, 2)
    with pytest.raises(RunFailedError, match=r"^13 of 1200 images"):
        resumed.count(2, another)
    few = images(100)
    decode(few, 50, 2)
    with pytest.raises(RunFailedError, match=r"^2 of 50 images"):
        replacements.count(0, few)
    at_once = images(5000)
    decode(at_once, 40, 11)
    with pytest.raises(RunFailedError, match=r"^11 of the first 40 of 100 images"):
        replacements.check(0, at_once, 100)
