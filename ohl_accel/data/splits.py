"""The splits of a run: what trains the network, what scores the trajectories, what tests the end."""

from dataclasses import dataclass

import datasets
import torch
from torch import Tensor

from ohl_accel.data.images import Images, first_image, is_grey
from ohl_accel.data.source import check_split_exists, open_split
from ohl_accel.draws import keyed_generator
from ohl_accel.errors import UserError
from ohl_accel.recipe import DataSection, Recipe

_IMAGES_FOR_STATISTICS = 10_000


@dataclass(frozen=True)
class Schema:
    """What the training split tells about every split: columns, classes, size and channels."""

    image_column: str
    label_column: str
    class_names: tuple[str, ...]
    size: tuple[int, int]
    channels: int

    @classmethod
    def of(cls, rows: datasets.Dataset, data: DataSection, description: str) -> "Schema":
        """Found in the features and the first images, where the recipe does not say it.

        Raises:
            UserError: if there is no such column, or no label or image can be made of it.
        """
        image_column = _image_column(rows, data)
        label_column = _label_column(rows, data)
        class_names = _class_names(rows, label_column)
        rows = _with_images(rows, image_column)
        first = first_image(rows, image_column, description)
        channels = data.channels or (1 if is_grey(rows, image_column, description) else 3)
        size = data.image_size or (first.height, first.width)
        return cls(image_column, label_column, class_names, size, channels)

    def images(self, rows: datasets.Dataset, data: DataSection, description: str) -> Images:
        """The images of a split.

        Raises:
            UserError: if it lacks a column or has other labels.
        """
        for column in (self.image_column, self.label_column):
            if column not in rows.column_names:
                raise UserError(
                    f"{description} has no column {column!r}; it has: {', '.join(rows.column_names)}"
                )
        labels = _labels(rows, self.label_column, self.class_names, description)
        rows = _with_images(rows, self.image_column)
        squash = data.crop_mode == "squash" if data.image_size else None
        return Images(rows, self.image_column, labels, self.size, self.channels, squash, description)


@dataclass(frozen=True)
class Data:
    """The data of a run, ready but for the test split, which `open_test` opens.

    `heldout` scores the trajectories, None if nothing is held out; `heldout_rows` are its rows of the
    training split, None where it is a split of its own. `mean` and `std` are of each channel, in 0..1.
    """

    section: DataSection
    schema: Schema
    train: Images
    heldout: Images | None
    heldout_rows: list[int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def open_test(self) -> Images | None:
        """The test split, opened and decoded only now; None if the recipe has none.

        Raises:
            UserError: if it cannot be read, or has labels that the training split lacks.
        """
        data = self.section
        if data.test_split is None:
            return None
        rows = open_split(data, data.test_split, data.test_path)
        test = self.schema.images(rows, data, f"split {data.test_split!r} of {data.test_path or data.path}")
        test.keep(data.in_memory)
        return test

    def resolve(self, recipe: Recipe) -> Recipe:
        """The recipe with all filled in that was found in the data."""
        found = {
            "image_column": self.schema.image_column,
            "label_column": self.schema.label_column,
            "channels": self.schema.channels,
            "mean": self.mean,
            "std": self.std,
        }
        return recipe.with_values(data=found)


def open_data(recipe: Recipe) -> Data:
    """Open the training and held-out splits of a recipe; only check that there is a test split.

    Raises:
        UserError: if anything about the data cannot work.
    """
    data, seed = recipe.data, recipe.run.seed
    if data.test_split is not None:
        check_split_exists(data, data.test_split, data.test_path)
    rows = open_split(data, data.train_split)
    name = f"split {data.train_split!r} of {data.path}"
    schema = Schema.of(rows, data, name)
    train = schema.images(rows, data, name)
    heldout, heldout_rows = None, None
    if data.heldout_split is not None:
        heldout_name = f"split {data.heldout_split!r} of {data.path}"
        heldout = schema.images(open_split(data, data.heldout_split), data, heldout_name)
        if len(heldout) == 0:
            raise UserError(f"{heldout_name} is empty: there is nothing to score trajectories with")
    elif data.heldout is not None:
        heldout_rows = choose_stratified(train.labels, data.heldout, "data.heldout", "holds out", seed)
        stays = torch.ones(len(train), dtype=torch.bool)
        stays[heldout_rows] = False
        heldout = train.subset(heldout_rows)
        train = train.subset(stays.nonzero().squeeze(1).tolist())
    if data.train_images is not None:
        chosen = choose_stratified(train.labels, data.train_images, "data.train_images", "trains on", seed)
        train = train.subset(chosen)
    if len(train) < recipe.inner.batch_size:
        raise UserError(
            f"inner.batch_size={recipe.inner.batch_size} is more than the {len(train)} training images"
        )
    train.keep(data.in_memory)
    if heldout is not None:
        heldout.keep(data.in_memory)
    mean, std = data.mean, data.std
    if mean is None or std is None:
        mean, std = channel_statistics(train, seed)
    if len(mean) != schema.channels:
        raise UserError(
            f"data.mean={list(mean)} has {len(mean)} numbers, but the images have {schema.channels} channels"
        )
    return Data(data, schema, train, heldout, heldout_rows, mean, std)


def choose_stratified(labels: Tensor, asked: int | float, field: str, does: str, seed: int) -> list[int]:
    """Rows of a part of a split: exactly as many as asked for, each class with its share, ascending.

    Shares are rounded by largest remainder; which rows of a class are taken is keyed by the seed.

    Args:
        labels: int64 [rows], places in the list of classes.
        asked: how many rows, or which fraction of them.
        field: of the recipe; its last part is the purpose that keys the choice.
        does: what the part does, for messages.
        seed: of the run.

    Raises:
        UserError: if none, or all, of the rows would be taken.
    """
    total = len(labels)
    count = round(asked * total) if isinstance(asked, float) else asked
    if not 0 < count < total:
        raise UserError(
            f"{field}={asked} {does} {count} of the {total} images: it must leave some on both sides"
        )
    sizes = torch.bincount(labels)
    exact = sizes.double() * count / total
    quota = exact.floor().long()
    by_remainder = (quota - exact).argsort(stable=True)
    quota[by_remainder[: count - int(quota.sum())]] += 1
    shuffled = torch.randperm(total, generator=keyed_generator(seed, field.removeprefix("data.")))
    of_class = [shuffled[labels[shuffled] == label][: int(quota[label])] for label in range(len(sizes))]
    return torch.cat(of_class).sort().values.tolist()


def channel_statistics(images: Images, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in 0..1, over at most 10,000 images (keyed choice).

    Whole numbers are summed, so the result is the same on every machine. A channel without any
    variation gets a standard deviation of 1.
    """
    chosen = torch.randperm(len(images), generator=keyed_generator(seed, "statistics"))
    chosen = chosen[:_IMAGES_FOR_STATISTICS].sort().values
    pixels, total, squares = 0, torch.zeros(images.channels), torch.zeros(images.channels)
    total, squares = total.long(), squares.long()
    for part in chosen.split(500):
        levels = images.__getitems__(part.tolist())[0].long()
        pixels += levels[:, 0].numel()
        total += levels.sum((0, 2, 3))
        squares += (levels * levels).sum((0, 2, 3))
    mean = total.double() / pixels
    variance = squares.double() / pixels - mean * mean
    std = torch.where(variance > 0, variance.clamp(min=0).sqrt(), 255.0)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _image_column(rows: datasets.Dataset, data: DataSection) -> str:
    if data.image_column is not None:
        return _named_column(rows, "data.image_column", data.image_column)
    found = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if len(found) != 1:
        raise UserError(
            f"{data.path} has {'several' if found else 'no'} image columns; set data.image_column to one of: "
            f"{', '.join(found or rows.column_names)}"
        )
    return str(found[0])


def _label_column(rows: datasets.Dataset, data: DataSection) -> str:
    if data.label_column is not None:
        return _named_column(rows, "data.label_column", data.label_column)
    found = [name for name, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(found) == 1:
        return str(found[0])
    if "label" in rows.column_names:
        return "label"
    raise UserError(
        f"{data.path} has {'several' if found else 'no'} label columns; set data.label_column to one of: "
        f"{', '.join(found or rows.column_names)}"
    )


def _named_column(rows: datasets.Dataset, key: str, name: str) -> str:
    if name not in rows.column_names:
        raise UserError(f"{key}={name}: there is no such column; there are: {', '.join(rows.column_names)}")
    return name


def _with_images(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    """Rows whose image column decodes to PIL images, also where the file holds plain bytes or paths."""
    if isinstance(rows.features[column], datasets.Image):
        return rows
    try:
        return rows.cast_column(column, datasets.Image())
    except Exception as error:
        raise UserError(f"column {column!r} holds no images: {error}") from error


def _class_names(rows: datasets.Dataset, column: str) -> tuple[str, ...]:
    """Names of the classes: of the ClassLabel, or the sorted values of a column of numbers or text."""
    feature = rows.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    kinds = ("string", "bool", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)))
    if getattr(feature, "dtype", None) not in kinds:
        raise UserError(
            f"column {column!r} holds no labels: it is {feature}, not classes, whole numbers or text"
        )
    values = rows.unique(column)
    if None in values:
        raise UserError(f"column {column!r} holds rows without a label")
    return tuple(str(value) for value in sorted(values))


def _labels(rows: datasets.Dataset, column: str, class_names: tuple[str, ...], description: str) -> Tensor:
    """int64 [rows]: the place of each label in the list of classes.

    Raises:
        UserError: for a label that is not in the list.
    """
    feature = rows.features[column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    place_of = {name: place for place, name in enumerate(class_names)}
    values = rows.data.column(column).to_pylist() if rows._indices is None else rows[column][:]
    place_of_value: dict[object, int] = {}
    for value in set(values):
        known = names is None or (value is not None and 0 <= value < len(names))
        name = str(value) if names is None else names[value] if known else None
        if name is None or name not in place_of:
            raise UserError(
                f"{description} has the label {value!r} in column {column!r}, which is none of the "
                f"{len(class_names)} training classes"
            )
        place_of_value[value] = place_of[name]
    return torch.tensor([place_of_value[value] for value in values], dtype=torch.int64)
