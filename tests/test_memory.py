"""Data given in Python gives the same results as the same data on disk."""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from test_data import image_folder, parquet, recipe, rows, some_images  # noqa: F401  two of them are fixtures
from torch.utils.data import Dataset, IterableDataset, Subset
from torchvision.datasets import ImageFolder

from ohl_accel.data import Data, TrainingOrder, open_data, training_batches
from ohl_accel.data.batches import _BatchBuffers
from ohl_accel.errors import ProcessFailedError, UserError
from ohl_accel.hub.card import hub_dataset


class Pairs(Dataset[tuple[Any, Any]]):
    """A typical torch dataset."""

    def __init__(self, images: list[Any], labels: list[Any]) -> None:
        self.images, self.labels = images, labels
        self.reads = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        self.reads += 1
        return self.images[number], self.labels[number]


def contents(data: Data) -> tuple[Any, ...]:
    """What trains, what scores and what tests."""
    parts = []
    for images in (data.train, data.heldout, data.open_test()):
        assert images is not None
        pixels, labels = images.__getitems__(range(len(images)))
        parts.append((pixels.tolist(), labels.tolist()))
    return parts, data.heldout_rows, data.mean, data.std, data.schema.class_names


def test_hugging_face_datasets(parquet: Path) -> None:  # noqa: F811
    on_disk = contents(open_data(recipe(parquet)))
    splits = datasets.load_dataset(str(parquet))
    assert contents(open_data(recipe("memory"), splits)) == on_disk
    assert (
        contents(open_data(recipe("memory"), {str(name): rows for name, rows in splits.items()})) == on_disk
    )
    shuffled = splits["train"].shuffle(seed=0)
    back = np.argsort(list(shuffled._indices.column("indices").to_pylist()))
    reordered = {"train": shuffled.select(back), "test": splits["test"]}
    assert contents(open_data(recipe("memory"), reordered)) == on_disk


def test_formats_and_transforms_are_not_applied_but_maps_are(parquet: Path) -> None:  # noqa: F811
    splits = datasets.load_dataset(str(parquet))
    plain = contents(open_data(recipe("memory"), splits))
    assert contents(open_data(recipe("memory"), splits.with_format("torch"))) == plain
    assert (
        contents(open_data(recipe("memory"), splits.with_transform(lambda batch: {"image": [None]}))) == plain
    )
    inverted = splits.map(lambda row: {"image": Image.eval(row["image"], lambda level: 255 - level)})
    (train, *_), *_ = contents(open_data(recipe("memory"), inverted))
    assert (255 - np.array(train[0]) == np.array(plain[0][0][0])).all()


def test_a_single_dataset_is_the_training_split(parquet: Path) -> None:  # noqa: F811
    original = recipe("not/looked/at", revision="main", name="x")
    data = open_data(original, datasets.load_dataset(str(parquet), split="train"))
    assert (len(data.train), len(data.heldout or ()), data.open_test()) == (16, 4, None)
    resolved = data.resolve(original).data
    assert (resolved.path, resolved.name, resolved.revision, resolved.test_split) == (
        "memory",
        None,
        None,
        None,
    )
    with pytest.raises(UserError, match="the dataset of this run was given in Python: give it again"):
        open_data(data.resolve(original))
    assert hub_dataset(resolved) is None


@pytest.mark.parametrize("kind", ["PIL", "tensor", "array", "grey array", "grey tensor"])
def test_torch_datasets(parquet: Path, kind: str) -> None:  # noqa: F811
    train, test = datasets.load_dataset(str(parquet)).values()
    if "grey" in kind:
        train, test = (
            rows([image.convert("L") for image in split["image"]], split["label"][:])
            for split in (train, test)
        )
    convert: Callable[[Image.Image], Any] = {
        "PIL": lambda image: image,
        "tensor": lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1),
        "array": lambda image: np.array(image),
        "grey array": lambda image: np.array(image),
        "grey tensor": lambda image: torch.from_numpy(np.array(image))[None],
    }[kind]
    given = {
        name: Pairs([convert(image) for image in split["image"]], split["label"][:])
        for name, split in (("train", train), ("test", test))
    }
    expected = open_data(recipe("memory"), {"train": train, "test": test})
    data = open_data(recipe("memory", in_memory=False), given)
    assert contents(data)[:-1] == contents(expected)[:-1]
    assert data.schema.class_names == ("0", "1")


def test_torchvision_names_its_classes_and_labels_are_not_read_image_by_image(
    image_folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_disk = open_data(recipe(image_folder, in_memory=False))
    splits = {name: ImageFolder(str(image_folder / name)) for name in ("train", "test")}
    read, rows = ImageFolder.__getitem__, []

    def counted(folder: ImageFolder, row: int) -> Any:
        rows.append(row)
        return read(folder, row)

    monkeypatch.setattr(ImageFolder, "__getitem__", counted)
    fast = open_data(
        recipe("memory", in_memory=False, mean=[0.5] * 3, std=[0.5] * 3, channels=3, image_size=8), splits
    )
    assert fast.heldout_rows == on_disk.heldout_rows
    assert fast.schema.class_names == ("cat", "dog")
    half = Subset(splits["train"], range(0, 20, 2))
    part = open_data(
        recipe("memory", in_memory=False, mean=[0.5] * 3, std=[0.5] * 3, channels=3, image_size=8), half
    )
    assert part.schema.class_names == ("cat", "dog")
    assert len(rows) == 4  # one look at training and one at held-out images, twice
    assert sorted([*part.train.labels.tolist(), *part.heldout.labels.tolist()]) == [0] * 5 + [1] * 5  # type: ignore[union-attr]


def test_labels_behind_a_transform_are_read(image_folder: Path) -> None:  # noqa: F811
    swapped = ImageFolder(str(image_folder / "train"), target_transform=lambda label: 1 - label)
    data = open_data(recipe("memory", train_images=None), swapped)
    assert data.heldout is not None
    rows_left = [row for row in range(20) if row not in (data.heldout_rows or ())]
    assert data.train.labels.tolist() == [1 - swapped.targets[row] for row in rows_left]


@pytest.mark.parametrize(
    "labels",
    [
        [[0], [1, 2], [], (0, 2)],
        [torch.tensor(row) for row in ([1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1])],
        [np.array(row, np.float32) for row in ([1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1])],
    ],
)
def test_multi_label(labels: list[Any]) -> None:
    data = open_data(recipe("memory"), Pairs(some_images(20), labels * 5))
    assert data.schema.multi_label
    assert data.schema.class_names == ("0", "1", "2")
    assert data.heldout is not None
    assert (
        data.train.labels.sum(0).tolist() == (torch.tensor([10, 5, 10]) - data.heldout.labels.sum(0)).tolist()
    )
    _, targets = data.heldout.__getitems__(range(4))
    whole = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1]] * 5)
    assert torch.equal(targets, whole[data.heldout_rows].float())


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


IMAGES = some_images(20)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            Stream(),
            "is a Stream: give a datasets.Dataset, or a torch dataset that has __getitem__ and __len__",
        ),
        ("uoft-cs/cifar10", "is a str: give a datasets.Dataset"),
        (42, "is a int: give a datasets.Dataset"),
        ({"training": Pairs(IMAGES, [0, 1] * 10)}, "has no split 'train'; it has: training"),
        ({"train": Pairs(IMAGES, [0, 1] * 10)}, "has no split 'test'; it has: train"),
        (Pairs(IMAGES, ["cat", "dog"] * 10), "the label of image 0 .* is 'cat': it must be a whole number"),
        (Pairs(IMAGES, [0.5] * 20), r"the label of image 0 .* is 0\.5: it must be a whole number"),
        (Pairs(IMAGES, [-1] * 20), "has the label -1, which is not one of the"),
        (
            Pairs([torch.rand(3, 8, 8)] * 20, [0, 1] * 10),
            r"a torch\.float32 Tensor of shape \[3, 8, 8\]: give",
        ),
        (Pairs(["path.png"] * 20, [0, 1] * 10), "image 0 .* is a str: give a PIL image"),
        (IMAGES, "image 0 .* is a Image: an item must be"),
        ([], "split 'train' of the given dataset is empty"),
        (
            Pairs(IMAGES[:5], [0, 1] * 10),
            "image 5 of split 'train' of the given dataset cannot be read: IndexError",
        ),
        (
            Pairs(IMAGES, [0, [1]] * 10),
            "has a list of labels per image, but the training split has one label",
        ),
    ],
)
def test_what_cannot_work(dataset: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_data(recipe("memory"), dataset)


def test_a_separate_split_scores(parquet: Path) -> None:  # noqa: F811
    splits = datasets.load_dataset(str(parquet))
    data = open_data(recipe("memory", test_split=None, heldout_split="test"), splits)
    assert (len(data.train), len(data.heldout or ()), data.heldout_rows) == (20, 6, None)
    with pytest.raises(UserError, match=r"data\.heldout_split=test: the given dataset is a single split"):
        open_data(recipe("memory", heldout_split="test", test_split=None), splits["train"])


def test_workers_decode_given_data() -> None:
    given = Pairs(some_images(20), [0, 1] * 10)
    train = open_data(recipe("memory", in_memory=False), given).train
    order = TrainingOrder(16, 4, 0, first=0, last=8)
    single, parallel = (training_batches(train, order, workers, False) for workers in (0, 2))
    for here, there in zip(single, parallel, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))


def test_a_damaged_item_is_replaced() -> None:
    class Damaged(Pairs):
        def __getitem__(self, number: int) -> tuple[Any, Any]:
            if number == 7:
                raise OSError("the disk says no")
            return super().__getitem__(number)

    damaged = Damaged(some_images(20), [0, 1] * 10)
    damaged.targets = damaged.labels  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"image 7 of .* cannot be decoded: OSError: the disk says no"):
        open_data(recipe("memory"), damaged)
    data = open_data(recipe("memory", max_corrupt=0.1, in_memory=True), damaged)
    assert data.heldout is not None
    replaced = data.train.tally.replaced + data.heldout.tally.replaced
    assert [one.image for one in replaced] == ["image 7 of split 'train' of the given dataset"]


class Slow(Pairs):
    """Takes forever for one of its items, in another process."""

    waits = False

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        if self.waits and number == 7:
            time.sleep(60)
        return super().__getitem__(number)


def test_a_worker_that_sends_nothing_is_given_up() -> None:
    given = Slow(some_images(20), [0, 1] * 10)
    train = open_data(recipe("memory", in_memory=False), given).train
    given.waits = True
    batches = training_batches(train, TrainingOrder(16, 4, 0, first=0, last=8), 1, False, timeout=0.5)
    with pytest.raises(ProcessFailedError, match=r"no images came for 0\.5 s \(run\.timeout\)"):
        list(batches)


def test_a_part_that_does_not_come_is_noticed() -> None:
    train = open_data(recipe("memory", in_memory=False), Pairs(some_images(20), [0, 1] * 10)).train
    buffers = _BatchBuffers(train.decoding, 4, 1)
    with pytest.raises(ProcessFailedError, match="only 3 of the 4 images of a batch"):
        buffers.take(0, 4, train, [(np.zeros(3, np.int64), [])])


def test_workers_leave_no_temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they send goes through pipes; to hand over shared memory, multiprocessing makes a folder `pymp-*`."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delitem(vars(multiprocessing.current_process())["_config"], "tempdir", raising=False)
    train = open_data(recipe("memory", in_memory=False), Pairs(some_images(20), [0, 1] * 10)).train
    batches = training_batches(train, TrainingOrder(16, 4, 0, first=0, last=8), 2, False)
    assert [list(tmp_path.iterdir()) for _ in batches] == 8 * [[]]
