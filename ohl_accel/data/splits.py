"""The splits of a run: images for training the network, scoring the trajectories, and testing the finished network.

Shapes: n images, C channels, H rows, W columns.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ohl_accel.data.identity import fingerprint
from ohl_accel.data.images import Images, check_not_constant
from ohl_accel.data.memory import GivenData, Items, open_given, section_of
from ohl_accel.data.schema import Schema
from ohl_accel.data.source import check_split_exists, open_split
from ohl_accel.data.stratification import choose_stratified
from ohl_accel.data.stream import Shards, open_stream
from ohl_accel.errors import UserError
from ohl_accel.recipe import DataSection, Recipe
from ohl_accel.rng import keyed_generator, keyed_seed

_IMAGES_FOR_STATISTICS = 10_000
_IMAGES_FOR_STATISTICS_OF_A_STREAM = 2_000
_IMAGES_IN_A_FINGERPRINT = 256


@dataclass(frozen=True)
class Data:
    """The data of a run, ready except for the test split, which `open_test` opens.

    `heldout` scores the trajectories, None if nothing is held out; `heldout_rows` are its rows of the
    training split, None if it is a separate split. `mean` and `std` are per channel, in 0..1.
    """

    section: DataSection
    schema: Schema
    train: Images
    heldout: Images | None
    heldout_rows: list[int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprints: dict[str, str]
    """Of the training split, and of the split that `data.heldout_split` names: images, labels, order."""
    copies: int
    """Images of the training split that do not train because they are copies of held-out ones."""
    dataset: GivenData | None = None
    """The dataset given in Python, if any."""

    @property
    def record(self) -> dict[str, Any]:
        """What the run folder keeps of the images: the fingerprints, and which images are held out.

        Those are rows of the training split; of a stream their hashes as well. `copies`, if there are any, is the
        number of images that do not train because they are copies of held-out ones.
        """
        record: dict[str, Any] = {}
        if self.heldout_rows is not None:
            record |= {"split": self.section.train_split, "rows": self.heldout_rows}
        record |= self.fingerprints
        if self.copies:
            record["copies"] = self.copies
        if isinstance(self.train.source, Shards) and self.heldout_rows is not None:
            hash_n = self.train.source.index.found.hash[self.heldout_rows]
            record["hashes"] = [f"{value:016x}" for value in hash_n.tolist()]
        return record

    @property
    def skipped_files(self) -> int:
        """Files among those of a stream's training split that are not images or shards."""
        return self.train.source.skipped if isinstance(self.train.source, Shards) else 0

    def open_test(self) -> Images | None:
        """The test split, opened and decoded only now; None if the recipe has none.

        Raises:
            UserError: if it cannot be read, has labels that are not in the training split, or only constant images.
        """
        data = self.section
        if data.test_split is None:
            return None
        test, _ = open_images(data, data.test_split, data.test_path, self.schema, self.dataset)
        test.keep(data.in_memory)
        check_not_constant(test)
        return test

    def resolve(self, recipe: Recipe) -> Recipe:
        """The recipe, completed with what was found in the data."""
        columns = {"image_column": self.schema.image_column, "label_column": self.schema.label_column}
        found = {
            **self.section.model_dump(),
            **columns,
            "channels": self.schema.channels,
            "mean": self.mean,
            "std": self.std,
        }
        return recipe.with_values(data=found)


def open_images(
    data: DataSection,
    split: str,
    path: str | None = None,
    schema: Schema | None = None,
    dataset: GivenData | None = None,
) -> tuple[Images, Schema]:
    """The images of a split, and the schema: the one given, or as found in the split.

    Args:
        data: the recipe's data section.
        split: its name.
        path: where it is, if not in `data.path`.
        schema: of the training split.
        dataset: in memory, instead of `data.path`.

    Raises:
        UserError: if it cannot be read, or does not match the schema.
    """
    if dataset is not None:
        return open_given(data, dataset, split, schema)
    name = f"split {split!r} of {path or data.path}"
    if data.streaming:
        return open_stream(data, split, path, schema, name)
    rows = open_split(data, split, path)
    schema = schema or Schema.of(rows, data, name)
    return schema.images(rows, data, name), schema


def open_data(recipe: Recipe, dataset: GivenData | None = None) -> Data:
    """Open the training and held-out splits of a recipe; for the test split, only check that it exists.

    Args:
        recipe: of the run.
        dataset: used instead of `data.path`: the training split, or splits by name, each a `datasets.Dataset` or a
            map-style torch dataset of (image, label).

    Raises:
        UserError: if anything about the data cannot work.
    """
    data, seed = recipe.data, recipe.run.seed
    if dataset is not None:
        data = section_of(data, dataset)
    elif data.test_split is not None:
        check_split_exists(data, data.test_split, data.test_path)
    train, schema = open_images(data, data.train_split, dataset=dataset)
    hash_n = train.source.hashes()
    known_by = {"fingerprint": _fingerprint(train, schema, hash_n)}
    heldout, heldout_rows, copies = None, None, 0
    if data.heldout_split is not None:
        heldout, _ = open_images(data, data.heldout_split, schema=schema, dataset=dataset)
        if len(heldout) == 0:
            raise UserError(f"{heldout.description} is empty: there are no images to score trajectories with")
        known_by["heldout_fingerprint"] = _fingerprint(heldout, schema, heldout.source.hashes())
    elif data.heldout is not None:
        order = _keyed_order(train, seed, "heldout")
        heldout_rows = choose_stratified(train.labels, data.heldout, "data.heldout", "holds out", seed, order)
        stays = torch.ones(len(train), dtype=torch.bool)
        stays[heldout_rows] = False
        if hash_n is not None:  # a duplicated image must not be on both sides
            stays &= ~torch.from_numpy(np.isin(hash_n, hash_n[heldout_rows]))
        copies = len(train) - len(heldout_rows) - int(stays.sum())
        heldout = train.subset(heldout_rows)
        train = train.subset(stays.nonzero().squeeze(1))
    if data.train_images is not None:
        order = _keyed_order(train, seed, "train_images")
        chosen = choose_stratified(
            train.labels, data.train_images, "data.train_images", "trains on", seed, order
        )
        train = train.subset(chosen)
    if len(train) < recipe.inner.batch_size:
        raise UserError(
            f"inner.batch_size={recipe.inner.batch_size} is more than the {len(train)} training images"
        )
    if not data.streaming and recipe.augment.random_resized_crop is None:
        train.keep(data.in_memory)
    check_not_constant(train)
    if heldout is not None:
        heldout = _keep_near(heldout, data)
        check_not_constant(heldout)
    mean, std = data.mean, data.std
    if mean is None or std is None:
        mean, std = channel_statistics(train, seed)
    if len(mean) != schema.channels:
        raise UserError(
            f"data.mean={list(mean)} has {len(mean)} numbers, but the images have {schema.channels} channels"
        )
    return Data(data, schema, train, heldout, heldout_rows, mean, std, known_by, copies, dataset)


def _fingerprint(images: Images, schema: Schema, hash_n: NDArray[np.uint64] | None) -> str:
    """Of a whole split: images, labels and order. Without hashes of all images those of some stand for them."""
    if isinstance(images.source, Shards):
        return images.source.index.fingerprint
    if hash_n is None:
        assert isinstance(images.source, Items)
        some = np.linspace(0, len(images) - 1, min(len(images), _IMAGES_IN_A_FINGERPRINT), dtype=np.int64)
        hash_n = np.fromiter(images.source.hashes_of(some.tolist()), np.uint64)
    return fingerprint(hash_n, images.labels, schema.class_names)


def _keep_near(heldout: Images, data: DataSection) -> Images:
    """Held-out images, which are needed after every outer step: decoded, or at least their bytes, on this machine."""
    heldout.keep(data.in_memory)
    if heldout.kept or not isinstance(heldout.source, Shards):
        return heldout
    near = Shards(heldout.source.index.copy(heldout.numbers.numpy()))
    return Images(near, heldout.labels, heldout.decoding, heldout.description)


def _keyed_order(images: Images, seed: int, purpose: str) -> Tensor | None:
    """Order of a stream's images by keyed hashes of their bytes: independent of how they are sharded.

    Equal images are ordered by label. None for images that are not streamed.
    """
    if not isinstance(images.source, Shards):
        return None
    hash_n = images.source.index.found.hash[images.numbers.numpy()]
    return torch.from_numpy(
        np.lexsort((images.labels.numpy(), keyed_hash(hash_n, keyed_seed(seed, purpose))))
    )


def keyed_hash(hash_n: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """A keyed bijection of hashes: the finalizer of SplitMix64 (Steele et al., 2014)."""
    mixed = hash_n ^ np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def channel_statistics(images: Images, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in 0..1, over at most 10,000 images (keyed choice).

    For a stream, over at most 2,000 images, taken block by block.

    Integers are summed, so the result is the same on every machine. A channel without any
    variation gets a standard deviation of 1.
    """
    generator, block_n = keyed_generator(seed, "statistics"), images.blocks
    if block_n is None:
        chosen = torch.randperm(len(images), generator=generator)[:_IMAGES_FOR_STATISTICS].sort().values
    else:
        rank = torch.randperm(int(block_n.max()) + 1, generator=generator)
        chosen = rank[block_n.long()].argsort(stable=True)[:_IMAGES_FOR_STATISTICS_OF_A_STREAM]
    pixels, total, squares = 0, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for part in chosen.split(500):
        images_nCHW = images.empty(len(part))
        images.decode(part.tolist(), images_nCHW)  # not counted: a resumed run already has the statistics
        levels = images_nCHW.long()
        pixels += levels[:, 0].numel()
        total = total + levels.sum((0, 2, 3))
        squares = squares + (levels * levels).sum((0, 2, 3))
    mean = total.double() / pixels
    variance = squares.double() / pixels - mean * mean
    std = torch.where(variance > 0, variance.clamp(min=0).sqrt(), 255.0)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
