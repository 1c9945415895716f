"""What a cost depends on of the data: numbers of images, their shape, and the classes.

Of well-known datasets on the Hub it is known without downloading them; other data is opened.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ohl_accel.data import Data, Schema, open_data
from ohl_accel.errors import UserError
from ohl_accel.recipe import Recipe


@dataclass(frozen=True)
class Published:
    """A dataset as its card describes it."""

    training_images: int
    test_images: int
    classes: int
    channels: int
    size: tuple[int, int] | None
    """Height and width; None if images differ."""


PUBLISHED = {
    "uoft-cs/cifar10": Published(50_000, 10_000, 10, 3, (32, 32)),
    "uoft-cs/cifar100": Published(50_000, 10_000, 100, 3, (32, 32)),
    "ufldl-stanford/svhn": Published(73_257, 26_032, 10, 3, (32, 32)),
    "zalando-datasets/fashion_mnist": Published(60_000, 10_000, 10, 1, (28, 28)),
    "ILSVRC/imagenet-1k": Published(1_281_167, 50_000, 1000, 3, None),
    "timm/oxford-iiit-pet": Published(3_680, 3_669, 37, 3, None),
}
"""Hub id -> numbers of its `train` and `test` (ImageNet: `validation`) splits."""


@dataclass(frozen=True)
class Facts:
    """The data of a run."""

    training_images: int
    """Images that networks are trained on."""
    heldout_images: int
    """Images that score trajectories; 0 if there are none."""
    counted_images: int
    """Those of both that are from the training split, which is what Table 4 counts."""
    schema: Schema
    is_here: bool
    """Whether the data was opened; otherwise these are the published numbers."""

    @classmethod
    def of(cls, data: Data) -> "Facts":
        """Of opened data; those of a held-out split of its own are not of the training split."""
        train, heldout = len(data.train), len(data.heldout or ())
        inside = heldout if data.heldout_rows is not None else 0
        return cls(train, heldout, train + inside, data.schema, True)


def facts_of(recipe: Recipe, dataset: Any = None) -> Facts:
    """The data of a recipe: as published if it is a well-known dataset that is not a local path, else opened.

    Args:
        recipe: of the run.
        dataset: given in Python, as in `search`.

    Raises:
        UserError: if the data cannot be opened, or its published numbers do not suffice.
    """
    data = recipe.data
    known = PUBLISHED.get(data.path) if dataset is None and not Path(data.path).exists() else None
    if known is None:
        return Facts.of(open_data(recipe, dataset))
    size = data.image_size or known.size
    if size is None:
        raise UserError(f"data.image_size: needed, since the images of {data.path} have different sizes")
    heldout = 0 if data.heldout is None else _count(data.heldout, known.training_images)
    rest = known.training_images - heldout
    train = rest if data.train_images is None else _count(data.train_images, rest)
    if not 0 < train <= rest:
        raise UserError(
            f"data.heldout={data.heldout}, data.train_images={data.train_images}: {data.path} has "
            f"{known.training_images} training images"
        )
    if train < recipe.inner.batch_size:
        raise UserError(
            f"inner.batch_size={recipe.inner.batch_size} is more than the {train} training images"
        )
    names = tuple(map(str, range(known.classes)))
    columns = data.image_column or "image", data.label_column or "label"
    schema = Schema(*columns, names, size, data.channels or known.channels)
    return Facts(train, heldout, train + heldout, schema, False)


def _count(asked: int | float, total: int) -> int:
    return round(asked * total) if isinstance(asked, float) else asked
