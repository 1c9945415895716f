"""Operations applied to images of the run's training split.

Shapes: n images, A elements of an operation, C channels, H rows, W columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ohl_accel.data import open_data
from ohl_accel.errors import UserError
from ohl_accel.operations.space import Space
from ohl_accel.recipe import Recipe
from ohl_accel.report.operations import Operation
from ohl_accel.report.pictures import data_uri, to_image
from ohl_accel.rng import keyed_generator

_IMAGES = 5
_CANDIDATES = 200
_SIDE = 128  # of a picture on the page, in pixels


@dataclass(frozen=True)
class TrainingExamples:
    """A few images of the training split, of different classes if there are enough, and their classes."""

    images_nCHW: Tensor
    class_names: list[str]


@dataclass(frozen=True)
class Row:
    """An operation and the example images after it, as data URIs."""

    operation: Operation
    pictures: list[str]


def open_examples(recipe: Recipe) -> TrainingExamples:
    """Choose images of the training split, always the same ones for a seed; the test split is not opened.

    Args:
        recipe: resolved, as in the run folder.

    Raises:
        UserError: if the data is no longer available.
    """
    data = open_data(recipe.with_values(data={"in_memory": False}))
    generator = keyed_generator(recipe.run.seed, "report examples")
    order = torch.randperm(len(data.train), generator=generator)[:_CANDIDATES].tolist()
    label_of = {index: data.schema.label_text(data.train.labels[index]) for index in order}
    first_of_class = {label: index for index, label in reversed(label_of.items())}
    chosen = sorted(order, key=lambda index: first_of_class[label_of[index]] != index)[:_IMAGES]
    images_nCHW, _ = data.train.__getitems__(chosen)
    return TrainingExamples(images_nCHW, [label_of[index] for index in chosen])


def originals(examples: TrainingExamples) -> list[str]:
    """The images as they are, as data URIs."""
    return [data_uri(to_image(image_CHW), _SIDE) for image_CHW in examples.images_nCHW]


def rows_of(examples: TrainingExamples | None, space: Space, operations: Sequence[Operation]) -> list[Row]:
    """The images after each operation, without crop, flip or Cutout.

    Signs differ between the images and are the same for every operation. Without examples, rows
    have no images.
    """
    if examples is None:
        return [Row(operation, []) for operation in operations]
    n = len(examples.images_nCHW)
    negative_nA = torch.rand(n, space.arity, generator=keyed_generator(0, "report signs")) < 0.5
    rows = []
    for operation in operations:
        images_nCHW = space.apply(examples.images_nCHW, torch.full((n,), operation.number), negative_nA)
        rows.append(Row(operation, [data_uri(to_image(image_CHW), _SIDE) for image_CHW in images_nCHW]))
    return rows


def examples_or_reason(recipe: Recipe | None) -> tuple[TrainingExamples | None, str]:
    """Examples, or why there are none."""
    if recipe is None:
        return None, "There is no recipe, so it is not known where the training images are."
    try:
        return open_examples(recipe), ""
    except UserError as error:
        return None, f"The training images are not available: {error}"
