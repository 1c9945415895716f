"""Splits, columns, classes, decoding and order, on data sets of every kind that a recipe can name."""

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hub_server import HubServer
from PIL import Image

from ohl_accel.data import (
    Data,
    Images,
    TrainingOrder,
    evaluation_batches,
    num_chunks,
    open_data,
    training_batches,
)
from ohl_accel.data.stratification import choose_stratified
from ohl_accel.errors import UserError
from ohl_accel.recipe import Recipe


def recipe(path: object, **data: Any) -> Recipe:
    if "heldout_split" not in data:
        data.setdefault("heldout", 4)
    return Recipe.check(
        {
            "run": {"dir": "unused"},
            "data": {"path": str(path), "workers": 0, **data},
            "model": {"name": "resnet8_cifar"},
            "inner": {"batch_size": 4, "optimizer": {"lr": 0.1}},
            "outer": {"steps": 1},
        }
    )


def some_images(
    count: int, mode: str = "RGB", size: tuple[int, int] = (8, 8), seed: int = 0
) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    arrays = rng.integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
    return [Image.fromarray(array).convert(mode) for array in arrays]


def rows(images: list[Image.Image], labels: list[Any], label_feature: Any = None) -> datasets.Dataset:
    label_feature = label_feature or datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features(image=datasets.Image(), label=label_feature)
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    folder = tmp_path / "parquet"
    folder.mkdir()
    rows(some_images(20), [0, 1] * 10).to_parquet(folder / "train-00000-of-00001.parquet")
    rows(some_images(6, seed=1), [1, 0] * 3).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    for split, count in (("train", 10), ("test", 4)):
        for name, seed in (("cat", 1), ("dog", 2)):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i, image in enumerate(some_images(count, seed=seed)):
                image.save(tmp_path / "images" / split / name / f"{i}.png")
    return tmp_path / "images"


def test_digits() -> None:
    data = open_data(recipe("sklearn:digits", heldout=297))
    assert data.heldout is not None
    assert (len(data.train), len(data.heldout)) == (1000, 297)
    assert (data.schema.channels, data.schema.size) == (1, (8, 8))
    assert data.schema.class_names == tuple("0123456789")
    test = data.open_test()
    assert test is not None
    assert len(test) == 500
    images, _ = data.train.__getitems__(range(1000))
    assert (images.dtype, images.shape) == (torch.uint8, (1000, 1, 8, 8))
    assert images.max() == 255


def test_parquet_folder(parquet: Path) -> None:
    data = open_data(recipe(parquet))
    original = rows(some_images(20), [0, 1] * 10)
    assert data.heldout_rows is not None
    stays = [row for row in range(20) if row not in data.heldout_rows]
    images, labels = data.train.__getitems__(range(16))
    assert labels.tolist() == [original[row]["label"] for row in stays]
    for pixels, row in zip(images, stays, strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0), np.array(original[row]["image"]))


def test_cifar10_as_on_the_hub(cifar10_folder: Path) -> None:
    data = open_data(recipe(cifar10_folder, heldout=5000, in_memory=False))
    assert data.heldout is not None
    assert (len(data.train), len(data.heldout), data.schema.size) == (45_000, 5000, (32, 32))
    assert data.schema.image_column == "img"
    assert data.schema.class_names[:2] == ("airplane", "automobile")
    assert torch.bincount(data.heldout.labels).tolist() == [500] * 10
    # the published mean and deviation of CIFAR-10, on a sample of its JPEG copy
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.01)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.01)


def test_image_folder(image_folder: Path) -> None:
    data = open_data(recipe(image_folder))
    assert data.schema.class_names == ("cat", "dog")
    assert torch.bincount(data.train.labels).tolist() == [8, 8]
    test = data.open_test()
    assert test is not None
    assert len(test) == 8


def test_single_files(parquet: Path) -> None:
    train, test = sorted(parquet.glob("*.parquet"), reverse=True)
    assert len(open_data(recipe(train, test_split=None)).train) == 16
    opened = open_data(recipe(train, test_path=str(test))).open_test()
    assert opened is not None
    assert len(opened) == 6
    with pytest.raises(UserError, match=r"is a single split, so there is no 'test': give data\.test_path"):
        open_data(recipe(train))
    with pytest.raises(UserError, match=r"no 'validation': hold out images of it with data\.heldout"):
        open_data(recipe(train, test_split=None, heldout_split="validation"))


def test_dataset_saved_to_disk(parquet: Path, tmp_path: Path) -> None:
    datasets.load_dataset(str(parquet)).save_to_disk(tmp_path / "saved")
    assert len(open_data(recipe(tmp_path / "saved")).train) == 16
    with pytest.raises(UserError, match="has no split 'training'; it has: train, test"):
        open_data(recipe(tmp_path / "saved", train_split="training"))
    datasets.load_dataset(str(parquet), split="train").save_to_disk(tmp_path / "one")
    assert len(open_data(recipe(tmp_path / "one", test_path=str(tmp_path / "saved"))).train) == 16
    with pytest.raises(UserError, match="is a single split, so there is no 'test'"):
        open_data(recipe(tmp_path / "one"))


CARD = b"""---
dataset_info:
  config_name: plain_text
  features:
  - {name: image, dtype: image}
  - {name: label, dtype: {class_label: {names: {'0': cat, '1': dog}}}}
  splits:
  - {name: train, num_bytes: 1, num_examples: 20}
  - {name: test, num_bytes: 1, num_examples: 6}
configs:
- config_name: plain_text
  data_files:
  - {split: train, path: plain_text/train-*}
  - {split: test, path: plain_text/test-*}
  default: true
---
"""
"""What uoft-cs/cifar10 has as README.md, in small."""


@pytest.mark.network
def test_hub_dataset(parquet: Path, tmp_path: Path) -> None:
    """In a process of its own, because the client libraries read the Hub's address when imported."""
    program = (
        "import sys\n"
        "from test_data import open_data, recipe\n"
        "from ohl_accel.errors import UserError\n"
        "name, opens_test = sys.argv[1:]\n"
        "try:\n"
        "    data = open_data(recipe(name))\n"
        "    print(len(data.train), len(data.open_test()) if opens_test == 'yes' else None)\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    with HubServer() as hub:
        files = {f"plain_text/{path.name}": path.read_bytes() for path in parquet.iterdir()}
        hub.add_dataset("somebody/cats", {"README.md": CARD, **files})

        def opened(name: str, opens_test: str) -> str:
            done = subprocess.run(
                [sys.executable, "-c", program, name, opens_test],
                cwd=Path(__file__).parent,
                env=hub.environment(tmp_path / "home"),
                capture_output=True,
                text=True,
                check=True,
            )
            return done.stdout

        assert opened("somebody/cats", "no") == "16 None\n"
        assert not any("/resolve/" in request and "test-0" in request for request in hub.requests)
        assert opened("somebody/cats", "yes") == "16 6\n"
        assert any("/resolve/" in request and "test-0" in request for request in hub.requests)
        assert opened("somebody/dogs", "no").startswith(
            "data.path=somebody/dogs: the Hub dataset cannot be opened"
        )


def test_a_separate_split_scores(parquet: Path) -> None:
    rows(some_images(6, seed=3), [0, 1] * 3).to_parquet(parquet / "validation-00000-of-00001.parquet")
    data = open_data(recipe(parquet, heldout_split="validation"))
    assert data.heldout is not None
    assert (len(data.train), len(data.heldout), data.heldout_rows) == (20, 6, None)


def test_split_expressions(parquet: Path) -> None:
    assert len(open_data(recipe(parquet, train_split="train[:50%]+train[15:]", heldout=3)).train) == 12


@pytest.mark.parametrize("heldout", [10, 33, 0.25, 1])
def test_heldout_is_exact_and_stratified(heldout: float) -> None:
    labels = torch.tensor([0] * 50 + [1] * 31 + [2] * 18 + [3])
    chosen = choose_stratified(labels, heldout, "data.heldout", "holds out", seed=0)
    count = round(heldout * 100) if isinstance(heldout, float) else heldout
    assert len(set(chosen)) == count
    shares = torch.bincount(labels) * count / 100
    assert ((torch.bincount(labels[chosen], minlength=4) - shares).abs() < 1).all()
    assert chosen == choose_stratified(labels, heldout, "data.heldout", "holds out", seed=0)
    assert count == 1 or chosen != choose_stratified(labels, heldout, "data.heldout", "holds out", seed=1)


def test_labels_of_text_and_numbers(tmp_path: Path) -> None:
    for kind, labels in (("string", ["b", "a"]), ("int64", [7, -1]), ("bool", [True, False])):
        folder = tmp_path / kind
        folder.mkdir()
        part = rows(some_images(10), labels * 5, datasets.Value(kind))
        part.to_parquet(folder / "train.parquet")
        part.select(range(3)).to_parquet(folder / "test.parquet")
        data = open_data(recipe(folder))
        assert data.schema.class_names == tuple(str(label) for label in sorted(labels))
        test = data.open_test()
        assert test is not None
        assert test.labels.tolist() == [1, 0, 1]


def test_classes_of_the_test_split_are_matched_by_name(tmp_path: Path) -> None:
    rows(some_images(10), [0, 1] * 5).to_parquet(tmp_path / "train.parquet")
    other = datasets.ClassLabel(names=["dog", "bird", "cat"])
    rows(some_images(3), [0, 2, 0], other).to_parquet(tmp_path / "test.parquet")
    test = open_data(recipe(tmp_path)).open_test()
    assert test is not None
    assert test.labels.tolist() == [1, 0, 1]
    rows(some_images(3), [0, 1, 0], other).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(
        UserError, match="label 1 in column 'label', which is not one of the 2 training classes"
    ):
        open_data(recipe(tmp_path)).open_test()


def test_grey_images_and_resizing(tmp_path: Path) -> None:
    images = [image.resize((8 + i % 3, 8)) for i, image in enumerate(some_images(10, "L"))]
    rows(images, [0, 1] * 5).to_parquet(tmp_path / "train.parquet")
    refused = recipe(tmp_path, test_split=None)
    with pytest.raises(
        UserError, match=r"row \d of .* has 8 x (9|10) pixels, others 8 x 8: set data.image_size"
    ):
        open_data(refused)
    assert open_data(recipe(tmp_path, test_split=None, image_size=12)).schema.channels == 1
    for crop_mode in ("center", "squash"):
        data = open_data(
            recipe(tmp_path, test_split=None, image_size=[6, 7], channels=3, crop_mode=crop_mode)
        )
        assert data.train.__getitems__([0])[0].shape == (1, 3, 6, 7)


@pytest.mark.parametrize("kind", ["parquet", "folder", "rows", "items"])
def test_copies_of_heldout_images_do_not_train(tmp_path: Path, kind: str) -> None:
    """Whatever holds them; and what a split is known by changes with its images, labels and length."""
    images = some_images(40)
    for copy in range(10):
        images[2 * copy + 1] = images[2 * copy]
    made = rows(images, [0, 1] * 20)

    def opened(number: int, images: list[Image.Image], made: datasets.Dataset) -> Data:
        folder = tmp_path / f"{kind}{number}"
        folder.mkdir()
        if kind == "items":
            return open_data(recipe("memory", heldout=20), [(image, i % 2) for i, image in enumerate(images)])  # type: ignore[arg-type]
        if kind == "rows":
            return open_data(recipe("memory", heldout=20), made)
        if kind == "parquet":
            made.to_parquet(folder / "train.parquet")
        else:
            for i, image in enumerate(images):
                file = folder / "train" / ["cat", "dog"][i % 2] / f"{i // 2:02}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image.save(file)
        return open_data(recipe(folder, heldout=20, test_split=None), None)

    data = opened(0, images, made)
    assert data.heldout is not None
    kept = {image.numpy().tobytes() for image in data.heldout.__getitems__(range(20))[0]}
    trains = {image.numpy().tobytes() for image in data.train.__getitems__(range(len(data.train)))[0]}
    assert not kept & trains
    assert data.copies == 20 - len(data.train) == data.record["copies"] > 0
    assert opened(1, images, made).record == data.record
    others = [*images[:-1], some_images(1, seed=9)[0]]
    assert opened(2, others, rows(others, [0, 1] * 20)).fingerprints != data.fingerprints
    assert opened(3, images[:-1], made.select(range(39))).fingerprints != data.fingerprints
    if kind in ("parquet", "rows"):
        assert opened(4, images, rows(images, [1, 0] * 20)).fingerprints != data.fingerprints


def test_messages_name_the_file_or_the_row(image_folder: Path, parquet: Path) -> None:
    train = open_data(recipe(image_folder, in_memory=False)).train
    named = Path(train.source.name(3))
    assert named.is_file()
    assert named.is_relative_to(image_folder)
    assert open_data(recipe(parquet)).train.source.name(3) == f"row 3 of split 'train' of {parquet}"


def test_statistics(parquet: Path) -> None:
    data = open_data(recipe(parquet))
    pixels = data.train.__getitems__(range(16))[0].numpy() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)))
    assert data.std == pytest.approx(pixels.std((0, 2, 3)))
    assert open_data(recipe(parquet, mean=[0.5] * 3, std=[0.25] * 3)).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"path": "no/such/folder"}, "data.path=no/such/folder: there is no such file or folder"),
        ({"path": "pictures.zip"}, "there is no such file or folder|cannot be opened"),
        ({"train_split": "training"}, "has no split 'training'; it has: train, test"),
        ({"test_split": "exam"}, "has no split 'exam'; it has: train, test"),
        ({"image_column": "img"}, "data.image_column=img: there is no such column; columns: image, label"),
        ({"label_column": "y"}, "data.label_column=y: there is no such column; columns: image, label"),
        ({"label_column": "image"}, "column 'image' does not hold labels"),
        ({"image_column": "label"}, "column 'label' does not hold images"),
        ({"heldout": 20}, "data.heldout=20 holds out 20 of the 20 images"),
        ({"heldout": 60_000}, "data.heldout=60000 holds out 60000 of the 20 images"),
        ({"heldout": 17}, "inner.batch_size=4 is more than the 3 training images"),
        ({"mean": [0.5], "std": [0.5]}, r"data.mean=\[0.5\] has 1 numbers, but the images have 3 channels"),
    ],
)
def test_bad_data(parquet: Path, data: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message):
        open_data(recipe(data.pop("path", parquet), **data))


def test_damaged_files(tmp_path: Path) -> None:
    good = rows(some_images(10), [0, 1] * 5).cast_column("image", datasets.Image(decode=False))
    damaged = good.map(
        lambda row, i: {"image": {"bytes": b"no image" if i == 7 else row["image"]["bytes"], "path": None}},
        with_indices=True,
    )
    damaged.cast_column("image", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"row \d+ of split 'train' of .* cannot be decoded"):
        open_data(recipe(tmp_path, test_split=None))
    (tmp_path / "train.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"split 'train' of .* cannot be read"):
        open_data(recipe(tmp_path, test_split=None))
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "train.jsonl").write_text("[1")
    with pytest.raises(UserError, match=r"cannot be read: DatasetGenerationError: .* dataset; ValueError: "):
        open_data(recipe(tmp_path, test_split=None))


def test_the_test_split_is_not_read_before_it_is_opened(parquet: Path) -> None:
    next(parquet.glob("test*")).write_bytes(b"no parquet")
    data = open_data(recipe(parquet))
    with pytest.raises(UserError, match=r"split 'test' of .* cannot be read"):
        data.open_test()


def order(first: int, last: int, rank: int = 0, num_replicas: int = 1, seed: int = 0) -> list[list[int]]:
    return list(TrainingOrder(103, 20, seed, first=first, last=last, rank=rank, num_replicas=num_replicas))


def test_training_order() -> None:
    epochs = [order(5 * epoch, 5 * epoch + 5) for epoch in range(3)]
    for batches in epochs:
        assert len({row for batch in batches for row in batch}) == 100  # no image twice in an epoch
    assert epochs[0] != epochs[1]
    whole = order(0, 15)
    assert whole == [batch for epoch in epochs for batch in epoch]
    assert order(7, 15) == whole[7:]  # entered anywhere
    assert whole != order(0, 15, seed=1)
    slices = [order(0, 15, rank, 4) for rank in range(4)]
    assert whole == [list(chain(*parts)) for parts in zip(*slices, strict=True)]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_give_the_batches_that_memory_gives(parquet: Path, workers: int) -> None:
    kept = open_data(recipe(parquet, in_memory=True)).train
    decoded = open_data(recipe(parquet, in_memory=False)).train
    assert kept.kept
    assert not decoded.kept
    steps = TrainingOrder(16, 4, 0, first=0, last=10)
    pairs = zip(
        training_batches(kept, steps, 0, False), training_batches(decoded, steps, workers, False), strict=True
    )
    for (images, labels), (other_images, other_labels) in pairs:
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_evaluation_batches_cover_a_split_once(parquet: Path) -> None:
    images: Images = open_data(recipe(parquet)).train
    chunks = [dict(evaluation_batches(images, 3, rank, 4)) for rank in range(4)]
    numbers = sorted(number for part in chunks for number in part)
    assert numbers == list(range(num_chunks(images, 3))) == list(range(6))
    assert sum(len(labels) for part in chunks for _, labels in part.values()) == 16


def test_the_resolved_recipe_holds_what_was_found(parquet: Path) -> None:
    original = recipe(parquet)
    data = open_data(original)
    resolved = data.resolve(original)
    assert (resolved.data.image_column, resolved.data.channels) == ("image", 3)
    again = open_data(resolved)
    assert (again.mean, again.heldout_rows) == (data.mean, data.heldout_rows)
    assert json.loads(json.dumps(resolved.model_dump(mode="json")))["data"]["mean"] == list(data.mean)
