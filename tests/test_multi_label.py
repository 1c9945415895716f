"""Multi-label data: lists of classes as labels, stratified choices, batches."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from test_data import recipe, some_images
from torch import Tensor

from ohl_accel.data import Schema, TrainingOrder, evaluation_batches, open_data, training_batches
from ohl_accel.data.stratification import choose_stratified
from ohl_accel.errors import UserError
from ohl_accel.report.examples import open_examples

CLASSES = ("cat", "dog", "owl")


def write(path: Path, labels: list[Any], item: Any = None, column: str = "labels") -> None:
    feature = datasets.List(item or datasets.ClassLabel(names=list(CLASSES)))
    features = datasets.Features(**{"image": datasets.Image(), column: feature})
    rows = {"image": some_images(len(labels)), column: labels}
    path.parent.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def multi_hot(labels: list[list[int]]) -> Tensor:
    """One row at a time, as one would by hand."""
    return torch.tensor([[int(index in several) for index in range(3)] for several in labels])


def test_lists_of_classes(tmp_path: Path) -> None:
    labels = [[0], [1, 2], [], [2, 2], [0, 1, 2]] * 4
    write(tmp_path / "train.parquet", labels)
    data = open_data(recipe(tmp_path, test_split=None))
    assert data.schema.multi_label
    assert (data.schema.class_names, data.schema.label_column) == (CLASSES, "labels")
    assert data.heldout is not None
    assert data.heldout_rows is not None
    stays = [row for row in range(20) if row not in data.heldout_rows]
    assert data.train.labels.dtype == torch.uint8
    assert torch.equal(data.train.labels, multi_hot([labels[row] for row in stays]))
    assert torch.equal(data.heldout.labels, multi_hot([labels[row] for row in data.heldout_rows]))
    assert [data.schema.label_text(label) for label in multi_hot(labels[:3])] == ["cat", "dog, owl", "none"]


@pytest.mark.parametrize(
    ("kind", "labels"), [("int64", [[7, -1], [3], []]), ("string", [["b", "a"], ["c"], []])]
)
def test_lists_of_numbers_and_text(tmp_path: Path, kind: str, labels: list[Any]) -> None:
    write(tmp_path / "train.parquet", labels * 4, datasets.Value(kind), column="label")
    write(tmp_path / "test.parquet", [labels[1], labels[2]], datasets.Value(kind), column="label")
    data = open_data(recipe(tmp_path))
    known = sorted({value for several in labels for value in several})
    assert data.schema.class_names == tuple(map(str, known))
    test = data.open_test()
    assert test is not None
    assert test.labels.tolist() == [[int(value in labels[1]) for value in known], [0, 0, 0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(tmp_path: Path, workers: int) -> None:
    labels = [[0], [1, 2], [], [2], [0, 1, 2]] * 4
    write(tmp_path / "train.parquet", labels)
    kept = open_data(recipe(tmp_path, test_split=None, in_memory=True)).train
    decoded = open_data(recipe(tmp_path, test_split=None, in_memory=False)).train
    order = TrainingOrder(16, 4, 0, first=0, last=6)
    pairs = zip(
        order,
        training_batches(kept, order, 0, False),
        training_batches(decoded, order, workers, False),
        strict=True,
    )
    for rows, (images, targets), (other_images, other_targets) in pairs:
        assert (targets.dtype, targets.shape) == (torch.float32, (4, 3))
        assert torch.equal(targets, kept.labels[rows].float())
        assert torch.equal(targets, other_targets)
        assert torch.equal(images, other_images)
    for split in (kept, decoded):
        chunks = dict(evaluation_batches(split, 5, 0, 1, workers))
        assert torch.equal(torch.cat([targets for _, targets in chunks.values()]), split.labels.float())


def test_the_label_column_of_today_stays(tmp_path: Path) -> None:
    """A single column of classes, or one named `label`, wins over lists of classes."""
    features = datasets.Features(
        image=datasets.Image(),
        kind=datasets.ClassLabel(names=["cat", "dog"]),
        attributes=datasets.List(datasets.ClassLabel(names=["big", "old"])),
    )
    columns = {"image": some_images(20), "kind": [0, 1] * 10, "attributes": [[0], [0, 1]] * 10}
    rows = datasets.Dataset.from_dict(columns, features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    schema = open_data(recipe(tmp_path, test_split=None)).schema
    assert (schema.label_column, schema.multi_label) == ("kind", False)
    schema = open_data(recipe(tmp_path, test_split=None, label_column="attributes")).schema
    assert (schema.class_names, schema.multi_label) == (("big", "old"), True)
    named = rows.rename_column("kind", "label").cast_column("label", datasets.Value("int64"))
    assert Schema.of(named, recipe("unused").data, "rows").label_column == "label"


def test_what_cannot_work(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train.parquet", [[0], [1, 2]] * 10)
    with pytest.raises(
        UserError, match=r"lists of labels in column 'labels': multi-label data cannot be streamed"
    ):
        open_data(recipe(tmp_path / "data", test_split=None, streaming=True))
    write(tmp_path / "data" / "test.parquet", [[0], [2]], datasets.ClassLabel(names=["cat", "dog", "cow"]))
    data = open_data(recipe(tmp_path / "data"))
    with pytest.raises(
        UserError, match="the label 2 in column 'labels', which is not one of the 3 training classes"
    ):
        data.open_test()
    write(tmp_path / "nulls" / "train.parquet", [[0], None] * 10)
    with pytest.raises(UserError, match="has rows without a list of labels"):
        open_data(recipe(tmp_path / "nulls", test_split=None))
    write(tmp_path / "floats" / "train.parquet", [[0.5]] * 20, datasets.Value("float32"))
    with pytest.raises(
        UserError, match=r"no label column that is recognized by its type; .* labels \(List\)"
    ):
        open_data(recipe(tmp_path / "floats", test_split=None))
    with pytest.raises(
        UserError, match=r"column 'labels' does not hold labels: it is List\(Value\('float32'\)\)"
    ):
        open_data(recipe(tmp_path / "floats", test_split=None, label_column="labels"))
    features = datasets.Features(image=datasets.Image(), labels=datasets.ClassLabel(names=list(CLASSES)))
    single = datasets.Dataset.from_dict({"image": some_images(2), "labels": [0, 1]}, features=features)
    single.to_parquet(tmp_path / "data" / "test.parquet")
    with pytest.raises(
        UserError, match="has one label per image, but the training split has a list of labels"
    ):
        open_data(recipe(tmp_path / "data")).open_test()


def test_pictures_of_the_report(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [[0], [1, 2], []] * 8)
    examples = open_examples(recipe(tmp_path, test_split=None))
    assert set(examples.class_names) == {"cat", "dog, owl", "none"}


@pytest.mark.parametrize("asked", [0.1, 0.25, 500])
def test_iterative_stratification(asked: float) -> None:
    """Each class has its share of the part to within a row; random parts miss the worst class by five and more."""
    rng = np.random.default_rng(0)
    prevalence = np.array([0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005])
    labels_nC = torch.from_numpy((rng.random((2000, 8)) < prevalence).astype(np.uint8))
    chosen = choose_stratified(labels_nC, asked, "data.heldout", "holds out", seed=0)
    count = round(asked * 2000) if isinstance(asked, float) else asked
    assert len(set(chosen)) == len(chosen) == count
    assert chosen == sorted(chosen)
    wanted_C = labels_nC.double().sum(0) * count / 2000
    missed_C = (labels_nC[chosen].sum(0) - wanted_C).abs()
    assert missed_C.max() < 1, missed_C
    at_random = [labels_nC[rng.permutation(2000)[:count]].sum(0) for _ in range(20)]
    assert sum((part_C - wanted_C).abs().max() for part_C in at_random) / 20 > 5
    assert chosen == choose_stratified(labels_nC, asked, "data.heldout", "holds out", seed=0)
    assert chosen != choose_stratified(labels_nC, asked, "data.heldout", "holds out", seed=1)


def test_one_label_each_gives_exact_shares() -> None:
    """Where every image has one class, iterative stratification is the ordinary one."""
    labels_nC = torch.nn.functional.one_hot(torch.tensor([0] * 60 + [1] * 30 + [2] * 10)).to(torch.uint8)
    chosen = choose_stratified(labels_nC, 0.2, "data.heldout", "holds out", seed=0)
    assert labels_nC[chosen].sum(0).tolist() == [12, 6, 2]
