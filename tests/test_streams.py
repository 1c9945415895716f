"""Streams: the same batches from any shards, workers and processes; nothing lost, repeated or leaked."""

import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import REPOSITORY, SMALL, final_state, launch, rewind, wait_for_checkpoint
from hub_server import Fault, HubServer
from PIL import Image
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms import functional as tv

from ohl_accel.data import (
    Blocks,
    Data,
    Images,
    RandomResizedCrop,
    TrainingOrder,
    evaluation_batches,
    open_data,
    training_batches,
)
from ohl_accel.data import index as index_module
from ohl_accel.data import shards as shards_module
from ohl_accel.data import stream as stream_module
from ohl_accel.data.crops import centre
from ohl_accel.data.images import Tally
from ohl_accel.data.index import Index
from ohl_accel.engine import run as run_module
from ohl_accel.engine.search import search
from ohl_accel.engine.train import train
from ohl_accel.errors import ProcessFailedError, RunFailedError, UserError
from ohl_accel.recipe import RandomResizedCropSection, Recipe
from ohl_accel.rng import keyed_seed
from ohl_accel.run_folder.metrics import read_metrics

COUNT, BATCH, CLASSES = 118, 12, ("cat", "dog", "eel")
DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")
Picture = tuple[bytes, int]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, and no long waits."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(shards_module, "FIRST_WAIT", 0.01)
    return tmp_path / "cache" / "ohl_accel"


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """Each has one level of its own, which tells it from the others after any crop."""
    made = []
    for level in range(COUNT):
        content = io.BytesIO()
        size = (10 + level % 5, 12 + level % 3)
        Image.fromarray(np.full((*size, 3), 2 * level, np.uint8)).save(content, "PNG")
        made.append((content.getvalue(), level % 3))
    return made


def levels_of(images_bCHW: torch.Tensor) -> list[int]:
    """Which pictures they are."""
    assert bool((images_bCHW == images_bCHW[:, :1, :1, :1]).all())
    return (images_bCHW[:, 0, 0, 0] // 2).tolist()


def write_parquet(
    folder: Path, pictures: Sequence[Picture], cuts: Sequence[int] = (50, 57, 97), rows: int = 8
) -> Path:
    """Shards of unequal lengths, with row groups that do not divide them."""
    folder.mkdir(parents=True)
    label = datasets.ClassLabel(names=list(CLASSES))
    features = datasets.Features(image=datasets.Image(), label=label)
    for shard, (first, last) in enumerate(itertools.pairwise((0, *cuts, len(pictures)))):
        part = pictures[first:last]
        columns = {
            "image": [{"bytes": content, "path": None} for content, _ in part],
            "label": [label for _, label in part],
        }
        made = datasets.Dataset.from_dict(columns, features=features)
        pq.write_table(
            made.data.table, folder / f"train-{shard:05}-of-{len(cuts) + 1:05}.parquet", row_group_size=rows
        )
    return folder


def write_tars(folder: Path, pictures: Sequence[Picture]) -> Path:
    folder.mkdir(parents=True)
    for shard, part in enumerate((pictures[:70], pictures[70:])):
        with tarfile.open(folder / f"train-{shard:03}.tar", "w") as tar:
            for place, (content, label) in enumerate(part):
                facts = json.dumps({"name": CLASSES[label]}).encode()
                for ending, body in (("cls", str(label).encode()), ("json", facts), ("png", content)):
                    member = tarfile.TarInfo(f"some/{shard}{place:04}.{ending}")
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
    return folder


def write_folder(folder: Path, pictures: Sequence[Picture]) -> Path:
    for place, (content, label) in enumerate(pictures):
        file = folder / "train" / CLASSES[label] / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


WRITERS = {"parquet": write_parquet, "tar": write_tars, "folder": write_folder}


def recipe(path: object, **data: Any) -> Recipe:
    if "heldout_split" not in data:
        data.setdefault("heldout", 18)
    fixed: dict[str, Any] = {
        "test_split": None,
        "streaming": True,
        "image_size": 8,
        "shuffle_window": 48,
        "retries": 2,
    }
    fixed |= {"channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    return Recipe.check(
        {
            "run": {"dir": "unused"},
            "data": {"path": str(path), **fixed, **data},
            "model": {"name": "resnet8_cifar"},
            "inner": {"batch_size": BATCH, "optimizer": {"lr": 0.1}},
            "outer": {"steps": 1},
        }
    )


def batches(
    images: Images, first: int = 0, last: int = 20, rank: int = 0, num_replicas: int = 1, workers: int = 0,
    crop: RandomResizedCrop | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    blocks = Blocks.of(images, BATCH, 48)
    order = TrainingOrder(
        len(images), BATCH, 0, first=first, last=last, rank=rank, num_replicas=num_replicas, blocks=blocks
    )
    return list(training_batches(images, order, workers, False, crop))


def heldout_levels(data: Data) -> list[int]:
    assert data.heldout is not None
    return sorted(levels_of(data.heldout.__getitems__(range(len(data.heldout)))[0]))


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_stream(kind: str, tmp_path: Path, pictures: list[Picture]) -> None:
    """Every training image once in an epoch, up to the remainder, with its label; and the held-out ones apart."""
    data = open_data(recipe(WRITERS[kind](tmp_path / kind, pictures)))
    assert data.schema.class_names == (tuple("012") if kind == "tar" else CLASSES)
    heldout = heldout_levels(data)
    assert len(set(heldout)) == 18
    assert Counter(level % 3 for level in heldout) == {0: 6, 1: 6, 2: 6}
    per_epoch = 100 // BATCH
    made = batches(data.train, last=3 * per_epoch)
    assert len(made) == 3 * per_epoch
    epochs = []
    for epoch in range(3):
        seen = []
        for images, labels in made[epoch * per_epoch : (epoch + 1) * per_epoch]:
            assert (images.dtype, images.shape) == (torch.uint8, (BATCH, 3, 8, 8))
            assert [level % 3 for level in levels_of(images)] == labels.tolist()
            seen += levels_of(images)
        assert len(set(seen)) == len(seen) == per_epoch * BATCH
        assert not set(seen) & set(heldout)
        epochs.append(seen)
    assert epochs[0] != epochs[1]
    assert {*epochs[0], *epochs[1], *epochs[2]} == set(range(COUNT)) - set(heldout)


def test_the_held_out_images_do_not_depend_on_the_shards(tmp_path: Path, pictures: list[Picture]) -> None:
    """The same set from any files, order and row groups; another one for another seed."""
    shuffled = [pictures[i] for i in torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))]
    write_parquet(tmp_path / "one", pictures, cuts=(), rows=118)
    write_parquet(tmp_path / "many", shuffled, cuts=range(5, 118, 9), rows=3)
    write_tars(tmp_path / "tar", shuffled)
    write_folder(tmp_path / "folder", pictures)
    sets = [
        heldout_levels(open_data(recipe(tmp_path / name, heldout=17)))
        for name in ("one", "many", "tar", "folder")
    ]
    assert len(set(sets[0])) == 17
    assert sets == [sets[0]] * 4
    other = Recipe.check(
        {**recipe(tmp_path / "one", heldout=17).model_dump(), "run": {"dir": "x", "seed": 1}}
    )
    assert heldout_levels(open_data(other)) != sets[0]


def test_a_duplicated_image_is_never_on_both_sides(tmp_path: Path, pictures: list[Picture]) -> None:
    """Every image three times, once with another label."""
    thrice = [*pictures, *pictures, *((content, (label + 1) % 3) for content, label in pictures)]
    data = open_data(recipe(write_parquet(tmp_path / "data", thrice), heldout=40))
    assert data.heldout is not None
    assert len(data.heldout) == 40
    heldout = set(heldout_levels(data))
    trained = [level for images, _ in batches(data.train, last=30) for level in levels_of(images)]
    assert not heldout & set(trained)
    assert heldout | set(trained) == set(range(COUNT))
    assert len(set(data.record["hashes"])) == len(heldout)


@pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes")
def test_any_number_of_workers_and_processes(tmp_path: Path, pictures: list[Picture]) -> None:
    """Random crops included; nobody ends early."""
    train = open_data(recipe(write_parquet(tmp_path / "data", pictures))).train
    crop = RandomResizedCrop(RandomResizedCropSection(), (8, 8), seed=5)
    whole = batches(train, crop=crop)
    for workers, num_replicas in ((1, 1), (2, 2), (3, 1), (5, 3)):
        parts = [batches(train, 0, 20, rank, num_replicas, workers, crop) for rank in range(num_replicas)]
        assert [len(part) for part in parts] == [20] * num_replicas
        for (images, labels), *own in zip(whole, *parts, strict=True):
            assert torch.equal(images, torch.cat([part[0] for part in own]))
            assert torch.equal(labels, torch.cat([part[1] for part in own]))


def test_workers_ahead_leave_batches_alone(
    tmp_path: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slowly they are taken: nothing is decoded over a batch that was not."""
    data = open_data(recipe(write_parquet(tmp_path / "data", pictures), in_memory=False))
    assert data.heldout is not None
    whole = batches(data.train, workers=0)
    chunks = dict(evaluation_batches(data.heldout, 1, 0, 1))
    add = Tally.add

    def slowly(*arguments: Any) -> None:
        time.sleep(0.01)  # between the arrival of a part and its copy
        add(*arguments)

    monkeypatch.setattr(Tally, "add", slowly)
    for one, other in zip(whole, batches(data.train, workers=2), strict=True):
        assert torch.equal(one[0], other[0])
    for chunk, (images, _) in evaluation_batches(data.heldout, 1, 0, 1, workers=2):
        assert torch.equal(images, chunks[chunk][0])


@pytest.mark.parametrize("first", [3, 8, 13])
def test_a_stream_is_entered_at_any_step(tmp_path: Path, pictures: list[Picture], first: int) -> None:
    """Inside an epoch and at its end (8 steps), on other workers and processes: no image lost or repeated."""
    train = open_data(recipe(write_parquet(tmp_path / "data", pictures))).train
    whole = batches(train)[first:]
    parts = [batches(train, first, 20, rank, 2, workers=rank) for rank in range(2)]
    for (images, labels), left, right in zip(whole, *parts, strict=True):
        assert torch.equal(images, torch.cat([left[0], right[0]]))
        assert torch.equal(labels, torch.cat([left[1], right[1]]))


def test_blocks_are_read_by_few_and_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4,000 images in 400 row groups, each of 4 processes reads about a quarter, each once in an epoch."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(5, 15, 400)
    blocks = torch.repeat_interleave(torch.arange(400), torch.from_numpy(sizes))
    order = [
        TrainingOrder(
            len(blocks),
            64,
            0,
            first=0,
            last=len(blocks) // 64,
            rank=rank,
            num_replicas=4,
            blocks=Blocks(blocks, 64, 1024),
        )
        for rank in range(4)
    ]
    touched = [{int(blocks[row]) for rows in part for row in rows} for part in order]
    assert sum(map(len, touched)) < 400 + 64 + 4
    for rows in order[0]:
        assert len({int(blocks[row]) for row in rows}) >= 12  # of 16 images
    whole = torch.tensor([row for part in order for rows in part for row in rows])
    assert len(whole.unique()) == len(whole) == len(blocks) // 64 * 64


def test_reading_ahead_holds_little(tmp_path: Path, pictures: list[Picture], monkeypatch: Any) -> None:
    """Each block is read once in an epoch, and only some of them are held at a time."""
    train = open_data(recipe(write_parquet(tmp_path / "data", pictures, rows=2), heldout=10)).train
    monkeypatch.setattr(stream_module, "_BYTES_AHEAD", 0)
    read: list[int] = []
    original = Index.read

    def counted(self: Index, block: int) -> list[bytes | None]:
        read.append(block)
        return original(self, block)

    monkeypatch.setattr(Index, "read", counted)
    held: list[int] = []
    take = stream_module._Ahead.open

    def watched(self: Any, numbers: Any) -> Any:
        held.append(len(self._held))
        return take(self, numbers)

    monkeypatch.setattr(stream_module._Ahead, "open", watched)
    order = TrainingOrder(len(train), BATCH, 0, first=0, last=9, blocks=Blocks(train.blocks.long(), 2, 24))  # type: ignore[union-attr]
    assert len(list(training_batches(train, order, 0, False))) == 9
    assert len(read) == len(set(read))
    assert max(held) <= 24 + 2 * 4


def test_the_pass_does_not_decode_and_is_made_once(
    tmp_path: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    folder = write_parquet(tmp_path / "data", pictures)
    scanned: list[str] = []
    scan = shards_module.scan

    def counted(urls: Sequence[str], *arguments: Any) -> Any:
        scanned.extend(urls)
        return scan(urls, *arguments)

    monkeypatch.setattr(index_module, "scan", counted)
    decoded: list[bytes | None] = []

    def decode(content: bytes | None) -> Image.Image:
        decoded.append(content)
        return shards_module.decode(content)

    monkeypatch.setattr(stream_module, "decode", decode)
    first = open_data(recipe(folder, in_memory=False))
    assert len(decoded) == 2 + 2  # two of each split, to see that not all are of one colour
    assert len(scanned) == 4
    again = open_data(recipe(folder, in_memory=False, heldout=30))
    assert len(scanned) == 4
    assert set(first.record["rows"]) < set(again.record["rows"])
    assert first.record["fingerprint"] == again.record["fingerprint"]
    shutil.copy(folder / "train-00001-of-00004.parquet", folder / "train-00002-of-00004.parquet")
    assert open_data(recipe(folder, in_memory=False)).record != first.record
    assert len(scanned) == 5  # only the file that has changed
    assert sorted({path.suffix for path in cache.iterdir()}) == [".bytes", ".lock", ".npz"]


def test_the_pass_has_a_bar_on_a_terminal(
    tmp_path: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    folder = write_parquet(tmp_path / "data", pictures)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    open_data(recipe(folder, in_memory=False))
    assert re.search(r"indexing files [0-3]/4", terminal.getvalue())


def test_nodes_that_share_the_cache_share_the_pass(
    tmp_path: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is read once, by one of them; both get the same index."""
    folder = write_parquet(tmp_path / "data", pictures, cuts=range(4, 118, 4))
    scanned: list[tuple[str, int]] = []
    scan = shards_module.scan

    def slow(urls: Sequence[str], image_column: str, label_column: str, retries: int) -> Any:
        time.sleep(0.05)
        scanned.extend((url, retries) for url in urls)
        return scan(urls, image_column, label_column, retries)

    monkeypatch.setattr(index_module, "scan", slow)
    with ThreadPoolExecutor(2) as machines:  # told apart by `data.retries`
        made = machines.map(lambda retries: open_data(recipe(folder, retries=retries)).record, (3, 4))
    assert len({str(record) for record in made}) == 1
    assert Counter(url for url, _ in scanned) == {str(file): 1 for file in folder.iterdir()}
    assert min(Counter(machine for _, machine in scanned).values()) >= 8


@pytest.mark.parametrize("kind", WRITERS)
def test_held_out_images_are_copied_undecoded(kind: str, tmp_path: Path, pictures: list[Picture]) -> None:
    """They lie scattered over all shards: read from there once, not after every outer step."""
    folder = WRITERS[kind](tmp_path / kind, pictures)
    kept = open_data(recipe(folder)).heldout
    copied = open_data(recipe(folder, in_memory=False)).heldout
    assert kept is not None
    assert copied is not None
    assert kept.kept
    assert not copied.kept
    shutil.rmtree(folder)
    images, labels = kept.__getitems__(range(18))
    for workers in (0, 2):
        parts = dict(evaluation_batches(copied, 7, 0, 1, workers))
        assert torch.equal(torch.cat([parts[chunk][0] for chunk in range(3)]), images)
        assert torch.equal(torch.cat([parts[chunk][1] for chunk in range(3)]), labels)


def test_test_split_and_labels_in_json(tmp_path: Path, pictures: list[Picture]) -> None:
    write_tars(tmp_path / "tar", pictures)
    shutil.copy(tmp_path / "tar" / "train-001.tar", tmp_path / "tar" / "test-000.tar")
    data = open_data(recipe(tmp_path / "tar", test_split="test", label_column="json.name"))
    assert data.schema.class_names == CLASSES
    test = data.open_test()
    assert test is not None
    assert levels_of(test.__getitems__(range(48))[0]) == list(range(70, 118))
    single = recipe(tmp_path / "tar" / "train-000.tar", heldout=10, image_column="png")
    assert len(open_data(single).train) == 60


def test_statistics_of_a_stream(tmp_path: Path, pictures: list[Picture]) -> None:
    data = open_data(recipe(write_parquet(tmp_path / "data", pictures), mean=None, std=None))
    images, _ = data.train.__getitems__(range(100))
    assert data.mean == pytest.approx((images.numpy() / 255).mean((0, 2, 3)))
    assert data.std == pytest.approx((images.numpy() / 255).std((0, 2, 3)))


# what goes wrong


def with_damage(pictures: Sequence[Picture], damaged: Sequence[int]) -> list[Picture]:
    return [
        (p[0][:40] + bytes([level]) if level in damaged else p[0], p[1]) for level, p in enumerate(pictures)
    ]


def test_an_undecodable_image_is_replaced_the_same_everywhere(
    tmp_path: Path, pictures: list[Picture]
) -> None:
    damaged = (3, 60, 77)
    bad = with_damage(pictures, damaged)
    train = open_data(recipe(write_parquet(tmp_path / "data", bad), heldout=1)).train
    whole = batches(train, last=9)
    assert {level for images, _ in whole for level in levels_of(images)}.isdisjoint(damaged)
    for images, labels in whole:
        assert [level % 3 for level in levels_of(images)] == labels.tolist()
    replaced = train.tally.replaced
    assert len(replaced) >= 2  # all three, but for the remainder of the epoch
    assert train.tally.decoded == 9 * BATCH
    for one in replaced:
        assert "train-0000" in one.image
        assert "hash" in one.image
        assert one.why == "not a recognized image" or "Error: " in one.why
    train.tally.replaced = []
    parts = [batches(train, 0, 9, rank, 2, workers=2) for rank in range(2)]
    for (images, _), left, right in zip(whole, *parts, strict=True):
        assert torch.equal(images, torch.cat([left[0], right[0]]))
    assert set(train.tally.replaced) == set(replaced)


def test_if_nothing_can_be_decoded(tmp_path: Path, pictures: list[Picture]) -> None:
    folder = write_parquet(tmp_path / "data", with_damage(pictures, range(COUNT)))
    with pytest.raises(UserError, match=r"cannot be decoded: .*; neither can 100 others of split"):
        open_data(recipe(folder, in_memory=False))


def test_a_shard_that_goes_missing(tmp_path: Path, pictures: list[Picture]) -> None:
    folder = write_parquet(tmp_path / "data", pictures)
    train = open_data(recipe(folder)).train
    (folder / "train-00002-of-00004.parquet").unlink()
    for workers in (0, 2):
        with pytest.raises(
            ProcessFailedError,
            match=r"train-00002-of-00004.parquet cannot be read, tried 3 times .*FileNotFoundError",
        ):
            batches(train, workers=workers)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", r"train-00001-of-00004.parquet cannot be read, tried 3 times .*: ArrowInvalid"),
        ("empty", r"train-00001-of-00004.parquet cannot be read, tried 3 times"),
        ("column", r"train-00001-of-00004.parquet has no column 'image'; it has: picture, label"),
        ("label", r"train-00001-of-00004.parquet has rows without a label in 'label'"),
    ],
)
def test_bad_shards(tmp_path: Path, pictures: list[Picture], kind: str, message: str) -> None:
    folder = write_parquet(tmp_path / "data", pictures)
    shard = folder / "train-00001-of-00004.parquet"
    table = pq.read_table(shard)
    match kind:
        case "truncated":
            shard.write_bytes(shard.read_bytes()[:-200])
        case "empty":
            shard.write_bytes(b"")
        case "column":
            pq.write_table(table.rename_columns(["picture", "label"]), shard)
        case "label":
            pq.write_table(table.set_column(1, "label", [[None] * len(table)]), shard)
    with pytest.raises(UserError, match=message):
        open_data(recipe(folder))


def test_a_shard_that_is_replaced_in_a_run(tmp_path: Path, pictures: list[Picture]) -> None:
    train = open_data(recipe(write_parquet(tmp_path / "data", pictures))).train
    larger = [(content + b" ", label) for content, label in pictures]
    shutil.rmtree(tmp_path / "data")
    write_parquet(tmp_path / "data", larger)
    assert isinstance(train.source, stream_module.Shards)
    train.source.index._footers.clear()
    with pytest.raises(
        ProcessFailedError, match=r"train-0000\d-of-00004.parquet has changed since it was indexed"
    ):
        batches(train)


def test_a_failed_read_is_retried(
    tmp_path: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = open_data(recipe(write_parquet(tmp_path / "data", pictures))).train
    expected = batches(train, last=8)
    failures, waits = itertools.count(), list[float]()
    read = vars(index_module)["read_row_group"]

    def failing(*arguments: Any) -> Any:
        if next(failures) in (3, 4, 9):
            raise ConnectionResetError("the network is down")
        return read(*arguments)

    monkeypatch.setattr(index_module, "read_row_group", failing)
    monkeypatch.setattr("time.sleep", waits.append)
    for (images, _), (same, _) in zip(batches(train, last=8), expected, strict=True):
        assert torch.equal(images, same)
    assert len(waits) == 3
    assert set(waits) <= {0.01, 0.02}


@pytest.mark.parametrize(
    ("path", "data", "message"),
    [
        ("sklearn:digits", {}, "data.path=sklearn:digits cannot be streamed: set data.streaming=false"),
        ("data", {"train_split": "train[:50%]"}, "a stream is a whole split that consists of files"),
        ("data", {"train_split": "training"}, "has no split 'training'; it has: train"),
        ("data", {"image_column": "img"}, "data.image_column=img: there is no such column"),
        ("data", {"heldout": 118}, "data.heldout=118 holds out 118 of the 118 images"),
        ("data", {"heldout": 110}, "inner.batch_size=12 is more than the 8 training images"),
        ("table.csv", {}, "cannot be streamed: it must be parquet, tar"),
    ],
)
def test_what_cannot_be_streamed(
    tmp_path: Path, pictures: list[Picture], path: str, data: dict[str, Any], message: str
) -> None:
    write_parquet(tmp_path / "data", pictures)
    (tmp_path / "table.csv").write_text("image,label\n")
    place = path if path.startswith("sklearn") else tmp_path / path
    with pytest.raises(UserError, match=message):
        open_data(recipe(place, **data))


HUB_PROGRAM = """
import sys
from ohl_accel.data import open_data, shards
from ohl_accel.errors import UserError
from test_streams import batches, levels_of, recipe
shards.FIRST_WAIT = 0.01
for name in sys.argv[1:]:
    try:
        train = open_data(recipe(name)).train
        print(sorted(level for images, _ in batches(train, 0, 8, workers=2) for level in levels_of(images)))
    except UserError as error:
        print(error)
"""


@pytest.mark.network
def test_a_stream_of_the_hub(tmp_path: Path, pictures: list[Picture]) -> None:
    """Over real HTTP: downloads that fail twice are tried again; one that always fails ends with its name."""
    folder = write_parquet(tmp_path / "data", pictures)
    with HubServer() as hub:
        files = {f"data/{path.name}": path.read_bytes() for path in folder.iterdir()}
        hub.add_dataset("somebody/fails", files)
        hub.add_dataset("somebody/works", {**files, "README.md": b"one that works"})
        hub.faults = [  # 403: what the client does not try again by itself
            Fault("somebody/works/resolve/.*/train-00001-of-00004.parquet", 403, times=2),
            Fault("somebody/fails/resolve/.*/train-00002-of-00004.parquet", 403, times=1_000_000),
        ]
        done = subprocess.run(
            [sys.executable, "-c", HUB_PROGRAM, "somebody/works", "somebody/fails"],
            cwd=REPOSITORY,
            env={**hub.environment(tmp_path / "home"), "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    works, fails = done.stdout.splitlines()
    train = open_data(recipe(folder)).train
    assert works == str(sorted(level for images, _ in batches(train, 0, 8) for level in levels_of(images)))
    assert re.match(
        r"hf://datasets/somebody/fails@\w+/data/train-00002-of-00004.parquet cannot be read, tried 3 times",
        fails,
    )


# crops


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_random_resized_crop_is_torchvisions(interpolation: str) -> None:
    """Bit for bit, for photographs of many shapes, the fall-back for long ones included."""
    generator = np.random.default_rng(0)
    section = RandomResizedCropSection(interpolation=interpolation)  # type: ignore[arg-type]
    crop = RandomResizedCrop(section, (20, 24), seed=7)
    for place, size in enumerate([(60, 80), (33, 20), (9, 300), (400, 7)] * 5):
        image: Any = Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        torch.manual_seed(keyed_seed(7, "random resized crop", 11, place))
        box = TorchvisionCrop.get_params(image, list(section.scale), list(section.ratio))
        expected = tv.resized_crop(image, *box, [20, 24], tv.InterpolationMode(interpolation))
        assert np.array_equal(np.array(crop(image, 11, place)), np.array(expected))


def test_the_centre_is_that_of_resizing_and_cropping() -> None:
    """As torchvision's Resize(32) and CenterCrop(28), but for the rounding of the middle size to whole pixels."""
    image: Any = Image.radial_gradient("L").crop((0, 0, 256, 192)).convert("RGB")
    expected = tv.center_crop(tv.resize(image, [32], tv.InterpolationMode.BICUBIC), [28, 28])
    difference = np.subtract(np.array(centre(image, (28, 28), 28 / 32)), np.array(expected), dtype=np.int16)
    assert np.abs(difference).max() <= 8
    assert np.abs(difference).mean() < 2


def test_map_style_images_take_the_same_crops_and_replacements(
    tmp_path: Path, pictures: list[Picture]
) -> None:
    folder = write_parquet(tmp_path / "data", with_damage(pictures, (4, 44)))
    stream = open_data(recipe(folder)).train
    with pytest.raises(
        ProcessFailedError, match=r"row \d+ of split 'train' .* cannot be decoded: .*data.max_corrupt"
    ):
        list(training_batches(*map_style(folder), 0, False))
    rows, order = map_style(folder, max_corrupt=0.1)
    assert len(rows) == len(stream)
    for workers in (0, 2):
        made = list(training_batches(rows, order, workers, False))
        assert {4, 44}.isdisjoint(level for images, _ in made for level in levels_of(images))
    assert len(set(rows.tally.replaced)) >= 1


def map_style(folder: Path, **data: Any) -> tuple[Images, TrainingOrder]:
    rows = open_data(recipe(folder, streaming=False, in_memory=False, heldout=18, **data)).train
    return rows, TrainingOrder(len(rows), BATCH, 0, first=0, last=8)


# whole searches


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy images in parquet shards, some of them damaged, and a test split."""
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("colours")
    for split, count in (("train", 160), ("test", 20)):
        made = []
        for number in range(count):
            content = io.BytesIO()
            levels = generator.integers(0, 100, (12, 14, 3)) + 70 * (np.arange(3) == number % 3)
            Image.fromarray(levels.astype(np.uint8)).save(content, "PNG")
            made.append((content.getvalue(), number % 3))
        if split == "train":
            made = with_damage(made, range(10, 160, 25))
        for file in write_parquet(folder / split, made, cuts=(count // 2, count // 2 + 3)).iterdir():
            file.rename(folder / file.name.replace("train", split))
        (folder / split).rmdir()
    return folder


def stream_overrides(colours: Path) -> list[str]:
    return [
        f"data.path={colours}",
        "data.streaming=true",
        "data.image_size=8",
        "data.crop_pct=0.875",
        "data.heldout=30",
        "data.channels=3",
        "data.mean=[0.2, 0.2, 0.2]",
        "data.std=[0.2, 0.2, 0.2]",
        "data.max_corrupt=0.2",
        "data.shuffle_window=32",
        "inner.batch_size=20",
        "outer.inner_steps=4",  # an epoch has 6 steps
        "augment.random_resized_crop={scale: [0.5, 1]}",
    ]


@pytest.mark.slow
def test_a_search_on_a_stream(colours: Path, tmp_path: Path) -> None:
    """The same on one process and on two, with other workers; resumed inside an epoch, but not on other images."""
    overrides = stream_overrides(colours)
    environment = {"HF_HOME": str(tmp_path / "home")}
    folders = [tmp_path / "one", tmp_path / "two"]
    search(DIGITS, [*SMALL, f"run.dir={folders[0]}", "data.workers=0", *overrides])
    launch(2, f"run.dir={folders[1]}", "data.workers=2", *overrides, **environment)
    assert final_state(folders[0]) == final_state(folders[1])
    lines = read_metrics(folders[0] / "replaced.jsonl")
    assert 1 <= len({line["image"] for line in lines}) == len(lines) <= 6
    metrics = read_metrics(folders[0] / "metrics.jsonl")
    assert 1 <= sum(line["replaced_images"] for line in metrics) <= 18  # 16 steps, 6 in an epoch
    before = final_state(folders[0])
    shard = colours / "train-00001-of-00003.parquet"
    content = shard.read_bytes()
    shutil.copy(colours / "train-00002-of-00003.parquet", shard)
    with pytest.raises(
        UserError, match=r"has a run on different images: those of split 'train' of .* have changed"
    ):
        search(DIGITS, [*SMALL, f"run.dir={folders[0]}", "run.resume=auto", *overrides])
    shard.write_bytes(content)
    rewind(folders[0], "step-000003")
    search(DIGITS, [*SMALL, f"run.dir={folders[0]}", "run.resume=auto", "data.workers=1", *overrides])
    assert final_state(folders[0]) == before


@pytest.mark.parametrize("changed", ["train", "validation"])
def test_resuming_with_a_changed_stream_is_refused(
    pictures: list[Picture], tmp_path: Path, changed: str
) -> None:
    """Also where nothing is held out of it."""
    for split in ("train", "validation"):
        shards = write_parquet(tmp_path / split, pictures, cuts=(60,))
        for file in shards.iterdir():
            (tmp_path / "data").mkdir(exist_ok=True)
            file.rename(tmp_path / "data" / file.name.replace("train", split))
    overrides = [
        *SMALL,
        *stream_overrides(tmp_path / "data"),
        f"run.dir={tmp_path / 'run'}",
        "data.test_split=null",
    ]
    overrides += ["data.heldout=null", "outer.steps=1", "run.resume=auto", "augment.policy=none"]
    if changed == "validation":
        overrides.append("data.heldout_split=validation")
    train(DIGITS, overrides)
    train(DIGITS, overrides)
    shard = tmp_path / "data" / f"{changed}-00001-of-00002.parquet"
    pq.write_table(pq.read_table(shard).slice(1), shard)
    with pytest.raises(
        UserError, match=f"has a run on different images: those of split '{changed}' of .* have changed"
    ):
        train(DIGITS, overrides)


@pytest.mark.long
def test_a_shard_that_goes_missing_on_one_node(pictures: list[Picture], tmp_path: Path) -> None:
    """Both processes end soon: that one names the file, the other one says that it lost it."""
    processes = []
    for rank in range(2):
        overrides = stream_overrides(write_parquet(tmp_path / f"machine{rank}", pictures))
        overrides += [f"run.dir={tmp_path / f'run{rank}'}", "data.retries=1", "data.test_split=null"]
        overrides += [*SMALL, "outer.steps=9999", "outer.groups=1"]
        launched = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29515", "ACCELERATE_USE_CPU": "true"}
        process = subprocess.Popen(
            [sys.executable, "-m", "ohl_accel.search", DIGITS, *overrides],
            cwd=REPOSITORY,
            env={**os.environ, **launched, "HF_HOME": str(tmp_path / "home")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
    wait_for_checkpoint(processes[0], tmp_path / "run0", "step-000001")
    (tmp_path / "machine1" / "train-00001-of-00004.parquet").unlink()
    went = time.monotonic()
    lost, failed = [process.communicate(timeout=120)[0] for process in processes]
    assert time.monotonic() - went < 60  # run.timeout is 1,800
    assert [process.returncode for process in processes] == [1, 1]
    assert re.fullmatch(
        r"error: .*/machine1/train-00001-of-00004.parquet cannot be read, tried 2 times .*",
        failed.splitlines()[-1],
    )
    assert "Traceback" not in failed
    assert re.match(
        r"error: process 0 of 2 on .* lost the others: .*run.resume=auto resumes", lost.splitlines()[-1]
    )
    assert "Traceback" not in lost


def test_too_many_corrupt_images_stop_a_search(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RunFailedError, match=r"[1-6] of \d+ images of split .* could not be decoded, more than"
    ):
        search(DIGITS, [*SMALL, *stream_overrides(colours), f"run.dir={tmp_path}", "data.max_corrupt=0.001"])
    assert "image" in read_metrics(tmp_path / "replaced.jsonl")[0]


def test_too_many_corrupt_images_stop_a_long_outer_step(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as it is certain, not at its end; and no sooner."""
    monkeypatch.setattr(run_module, "CHECK_EVERY", 1)
    overrides = [*SMALL, *stream_overrides(colours), f"run.dir={tmp_path}", "outer.inner_steps=500"]
    message = (
        r"^11 of the first (\d+) of 10000 images of split 'train' of .* could not be decoded, more than "
        r"data.max_corrupt=0.001 allows; replaced.jsonl in .* lists them, the first is image \d+ of .*parquet .*: \w"
    )
    with pytest.raises(RunFailedError, match=message) as caught:
        search(DIGITS, [*overrides, "data.max_corrupt=0.001"])
    decoded = int(re.match(message, str(caught.value))[1])  # type: ignore[index]
    assert 11 * 15 < decoded < 11 * 60  # 6 of 160 are damaged
    assert len(read_metrics(tmp_path / "replaced.jsonl")) <= 6
    assert read_metrics(tmp_path / "metrics.jsonl") == []
