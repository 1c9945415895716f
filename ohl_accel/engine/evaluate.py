"""How good is a trained network: top-1, top-5, loss, and a table by class.

python -m ohl_accel.evaluate RUN_OR_HUB_ID [--data PATH] [--split NAME] [data.key=value ...]

RUN is a run folder of the search or of training; a Hub id is that of a network in timm's format. Data,
split and precision are those of its recipe.yaml; a network without one needs --data.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import ohl_accel.models  # noqa: F401  registers our networks with timm
from ohl_accel.data import Images, evaluation_batches, open_images
from ohl_accel.engine.augment import Augmentation
from ohl_accel.engine.scoring import outcomes_of
from ohl_accel.engine.setup import configure_torch, start_accelerator
from ohl_accel.errors import UserError
from ohl_accel.hub.download import fetch_file
from ohl_accel.recipe import AugmentSection, DataSection, Recipe, RunSection
from ohl_accel.recipe.reading import override
from ohl_accel.run_folder.files import NETWORK_FILES, RECIPE_FILE

_MAX_RECIPE_BYTES = 2**20
_MAX_CLASSES_SHOWN = 40
_NO_RECIPE: dict[str, Any] = {
    "run": {"dir": "."},
    "data": {},
    "model": {"name": "unknown"},
    "inner": {"batch_size": 1, "optimizer": {"lr": 1.0}},
    "outer": {"steps": 1},
}
"""The recipe of a network that comes without one."""


@dataclass(frozen=True)
class Evaluation:
    """Of one network on one split: C classes; counts are of images."""

    class_names: tuple[str, ...]
    outcomes_C3: Tensor
    """float64: correct, correct among the best five and summed loss, for the images of each class."""
    confusion_CC: Tensor
    """int64: images of the class of a row that were taken for the class of a column."""

    def document(self) -> dict[str, Any]:
        """Plain numbers for people and JSON: accuracies in 0..1, mean loss in nats; None where a class is empty."""
        images_C = self.confusion_CC.sum(1)
        mean_C3 = (self.outcomes_C3 / images_C[:, None]).tolist()
        top1, top5, loss = (self.outcomes_C3.sum(0) / images_C.sum()).tolist()
        mistaken_CC = self.confusion_CC.clone().fill_diagonal_(0)
        classes = []
        for place, name in enumerate(self.class_names):
            count, taken_for = int(mistaken_CC[place].max()), int(mistaken_CC[place].argmax())
            images = int(images_C[place])
            classes.append(
                {
                    "class": name,
                    "images": images,
                    "top1": mean_C3[place][0] if images else None,
                    "top5": mean_C3[place][1] if images else None,
                    "loss": mean_C3[place][2] if images else None,
                    "most_often_taken_for": self.class_names[taken_for] if count else None,
                    "mistaken": count,
                }
            )
        return {"images": int(images_C.sum()), "top1": top1, "top5": top5, "loss": loss, "classes": classes}


@torch.no_grad()
def evaluate_network(
    network: nn.Module,
    images: Images,
    augmentation: Augmentation,
    batch_size: int,
    names: tuple[str, ...],
    workers: int,
) -> Evaluation:
    """Score a network on all images of a split, decoded by some workers, class by class."""
    outcomes_C3 = torch.zeros(len(names), 3, dtype=torch.float64)
    confusion_CC = torch.zeros(len(names), len(names), dtype=torch.int64)
    network.eval()
    for _, (pixels, labels_b) in evaluation_batches(images, batch_size, 0, 1, workers):
        logits = network(augmentation.normalize(pixels))
        outcomes = outcomes_of(logits, labels_b.to(logits.device, non_blocking=True)).cpu()
        outcomes_C3.index_add_(0, labels_b, outcomes)
        taken_for_b = logits.argmax(1).cpu()
        confusion_CC.index_put_((labels_b, taken_for_b), torch.ones_like(labels_b), accumulate=True)
    return Evaluation(names, outcomes_C3, confusion_CC)


def evaluate(
    name: str,
    revision: str | None,
    data_path: str | None,
    split: str | None,
    overrides: Sequence[str],
) -> tuple[Evaluation, str]:
    """Load a network and score it on a split of its own data or of other data.

    Args:
        name: a run folder or a Hub id.
        revision: of the Hub id.
        data_path: other data than the recipe's.
        split: another split than the recipe's test split.
        overrides: of the data section.

    Returns:
        The scores, and what they are of.

    Raises:
        UserError: if there is no such network, or data that it can be scored on.
    """
    network, recipe_file = _open_network(name, revision)
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    data, run = _sections(name, recipe_file, data_path, overrides)
    data = data.model_copy(update={"image_size": data.image_size or tuple(config["input_size"][1:])})
    split = split or (data.test_split if recipe_file else "test")
    if split is None:
        raise UserError(
            f"{name} was trained without a test split (data.test_split=null): name one by --split"
        )
    accelerator = start_accelerator(run)
    configure_torch(run, accelerator.device)
    datasets.disable_progress_bars()
    place = data.test_path if data.test_path and split == data.test_split else data.path
    data = data.model_copy(update={"max_corrupt": 0.0})  # a score is of the images themselves
    images, found = open_images(data, split, place)
    what = images.description
    names = tuple(config.get("label_names") or found.class_names)
    if len(names) != config["num_classes"]:
        raise UserError(
            f"{name} has {config['num_classes']} classes without names, but {what} has {len(names)}: they cannot be "
            "matched"
        )
    channels, height, width = config["input_size"]
    schema = dataclasses.replace(found, class_names=names, size=(height, width), channels=channels)
    images, _ = open_images(data, split, place, schema)
    if len(images) == 0:
        raise UserError(f"{what} is empty")
    batch = data.eval_batch_size
    augmentation = Augmentation(
        AugmentSection(),
        config["mean"],
        config["std"],
        0,
        batch,
        slice(0, batch),
        accelerator.device,
        len(names),
    )
    network = accelerator.prepare_model(network, evaluation_mode=True)
    return evaluate_network(network, images, augmentation, batch, names, data.workers), what


def _open_network(name: str, revision: str | None) -> tuple[nn.Module, Path | None]:
    """The network, and its recipe.yaml if it has one."""
    folder = Path(name)
    recipe_file: Path | None
    if folder.exists():
        missing = [file for file in NETWORK_FILES if not (folder / file).is_file()]
        if missing:
            raise UserError(
                f"{name} holds no {' and no '.join(missing)}: it is no run folder, or its run is not finished"
            )
        if revision is not None:
            raise UserError(f"--revision {revision}: {name} is a folder; only a Hub id has revisions")
        source = f"local-dir:{name}"
        recipe_file = folder / RECIPE_FILE if (folder / RECIPE_FILE).is_file() else None
    else:
        if name.count("/") != 1 or name.startswith((".", "~", "/")):
            raise UserError(f"{name}: there is no such run folder, and it is no Hub id (user/name)")
        try:
            fetch_file(name, NETWORK_FILES[1], revision, _MAX_RECIPE_BYTES)
        except ValueError as error:
            raise UserError(f"there is no run folder {name}, and as a Hub id: {error}") from None
        source = f"hf-hub:{name}" + (f"@{revision}" if revision else "")
        try:
            recipe_file = fetch_file(name, RECIPE_FILE, revision, _MAX_RECIPE_BYTES)
        except ValueError:  # a network that was not made by this program
            recipe_file = None
    try:
        return timm.create_model(source, pretrained=True), recipe_file
    except Exception as error:
        raise UserError(f"{name} holds no network that timm can load: {error}") from error


def _sections(
    name: str, recipe_file: Path | None, data_path: str | None, overrides: Sequence[str]
) -> tuple[DataSection, RunSection]:
    """What to score the network on, and with which precision."""
    for text in overrides:
        if not text.startswith("data."):
            raise UserError(f"{text}: only the data section can be changed here (data.key=value)")
    if recipe_file is None and data_path is None:
        raise UserError(f"{name} has no {RECIPE_FILE}, so its data are not known: name them by --data")
    values: dict[str, Any] = _NO_RECIPE
    if recipe_file is not None:
        values = Recipe.load(str(recipe_file)).model_dump()
    values = {**values, "data": dict(values["data"])}
    if data_path is not None:  # what the recipe says of its own data does not hold for others
        own = ("name", "revision", "test_path", "image_column", "label_column")
        values["data"] |= {"path": data_path, **dict.fromkeys(own)}
    problems = [problem for text in overrides for problem in override(values, text)]
    recipe = Recipe.check(values, "data", problems)
    return recipe.data, recipe.run


def show(evaluation: Evaluation, title: str) -> None:
    """Print the numbers, and a table by class (of many classes those with the lowest top-1)."""
    console = Console(highlight=False, soft_wrap=True)
    document = evaluation.document()
    classes = document["classes"]
    note = ""
    if len(classes) > _MAX_CLASSES_SHOWN:
        filled = [row for row in classes if row["images"]]
        classes = sorted(filled, key=lambda row: row["top1"])[:_MAX_CLASSES_SHOWN]
        note = f"; the {_MAX_CLASSES_SHOWN} classes with the lowest top-1 (--json has all)"
    console.print(
        f"{title}: {document['images']} images\n"
        f"top-1 {100 * document['top1']:.2f} %, top-5 {100 * document['top5']:.2f} %, loss {document['loss']:.4f}"
        f"{note}",
        markup=False,
    )
    table = Table()
    for heading in ("class", "images", "top-1 %", "top-5 %", "loss", "most often taken for"):
        table.add_column(heading)
    for row in classes:
        table.add_row(
            row["class"],
            str(row["images"]),
            *(f"{100 * row[key]:.2f}" if row["images"] else "" for key in ("top1", "top5")),
            f"{row['loss']:.4f}" if row["images"] else "",
            f"{row['most_often_taken_for']} ({row['mistaken']})" if row["mistaken"] else "",
        )
    console.print(table)
