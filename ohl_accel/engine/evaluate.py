"""Evaluation of a trained network: top-1, top-5, loss, and a table per class.

python -m ohl_accel.evaluate RUN_OR_HUB_ID [--data PATH] [--split NAME] [data.key=value ...]

RUN is a run folder of the search or of training; a Hub id must be that of a network in timm's format. Data,
split and precision come from its recipe.yaml; a network without one needs --data.
"""

import copy
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, cast

import datasets
import timm
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

import ohl_accel.models  # noqa: F401  registers our networks with timm
from ohl_accel.data import open_images
from ohl_accel.data.images import check_not_constant
from ohl_accel.data.memory import GivenData
from ohl_accel.data.source import IN_MEMORY
from ohl_accel.engine.augment import Augmentation
from ohl_accel.engine.objective import OBJECTIVES, open_objective
from ohl_accel.engine.process import configure_torch, start_accelerator
from ohl_accel.engine.scoring import outcomes_of
from ohl_accel.errors import UserError, first_line, shown
from ohl_accel.hub.download import fetch_file
from ohl_accel.plain_json import read_object
from ohl_accel.recipe import AugmentSection, DataSection, Recipe, RunSection
from ohl_accel.recipe.reading import override
from ohl_accel.run_folder.digests import check_digest
from ohl_accel.run_folder.files import CONFIG_FILE, NETWORK_FILES, RECIPE_FILE, WEIGHTS_FILE

_MAX_RECIPE_BYTES = 2**20
_MAX_CLASSES_SHOWN = 40
_MAX_SIDE = 8192
_JSON_NAMES = {"accuracy": "top1", "top5_accuracy": "top5"}
_HEADINGS = {"accuracy": "top-1", "top5_accuracy": "top-5", "top1": "top-1", "top5": "top-5"}
_FRACTIONS = {"accuracy", "top5_accuracy", "top1", "top5", "mAP", "average_precision"}
_NO_RECIPE: dict[str, Any] = {
    "run": {"dir": "."},
    "data": {},
    "model": {"name": "unknown"},
    "inner": {"batch_size": 1, "optimizer": {"lr": 1.0}},
    "outer": {"steps": 1},
}
"""Recipe for networks that come without one."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of one network on one split."""

    what: str
    """The split, in words."""
    images: int
    scores: dict[str, float]
    """Over all images: `accuracy` and `top5_accuracy` in 0..1, `loss` in nats; or the objective's scores."""
    classes: list[dict[str, Any]]
    """Scores of each class, and the class that its images were most often mistaken for (`Objective.table`)."""

    def document(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        named = {_JSON_NAMES.get(name, name): score for name, score in self.scores.items()}
        return {"images": self.images, **named, "classes": self.classes}


def evaluate(
    network: str | PathLike[str],
    *,
    revision: str | None = None,
    data: str | None = None,
    split: str | None = None,
    overrides: Sequence[str] = (),
    dataset: GivenData | None = None,
    model: nn.Module | None = None,
) -> Evaluation:
    """Load a network and score it on a split of its own data or of other data.

    Args:
        network: a run folder or a Hub id.
        revision: of the Hub id.
        data: instead of the recipe's data: a Hub dataset, a folder or a file.
        dataset: instead of the recipe's data: datasets in memory, as in `search`; a lone one is the split itself.
        model: the network that a search was given as `model`: the run folder has its weights, which are loaded into a
            copy of it.
        split: instead of the recipe's test split.
        overrides: `data.key=value`, of the data section.

    Raises:
        UserError: if there is no such network, or no suitable data.
    """
    name = os.fspath(network)
    module, config, recipe_file = open_network(name, revision, model)
    if dataset is not None:
        data = IN_MEMORY
    section, run, named = _sections(name, recipe_file, data, overrides)
    section = section.model_copy(update={"image_size": section.image_size or tuple(config["input_size"][1:])})
    split = split or (section.test_split if recipe_file else "test")
    if dataset is not None and not isinstance(dataset, Mapping):
        split = split or "test"
        dataset = {split: dataset}
    if split is None:
        raise UserError(
            f"{name} was trained without a test split (data.test_split=null): give one with --split"
        )
    accelerator = start_accelerator(run)
    configure_torch(run, accelerator.device)
    datasets.disable_progress_bars()
    path = section.test_path if section.test_path and split == section.test_split else section.path
    section = section.model_copy(update={"max_corrupt": 0.0})  # no image is replaced in an evaluation
    images, found = open_images(section, split, path, dataset=dataset)
    what = images.description
    names = tuple(config.get("label_names") or found.class_names)
    if len(names) != config["num_classes"]:
        raise UserError(
            f"{name} has {config['num_classes']} classes without names, but {what} has {len(names)}: they cannot be "
            "matched"
        )
    channels, height, width = config["input_size"]
    schema = dataclasses.replace(found, class_names=names, size=(height, width), channels=channels)
    images, _ = open_images(section, split, path, schema, dataset)
    if len(images) == 0:
        raise UserError(f"{what} is empty")
    check_not_constant(images)
    objective_name, options = named or ("multilabel" if schema.multi_label else "classification", {})
    objective = open_objective(objective_name, len(names), options)
    batch = section.eval_batch_size
    augmentation = Augmentation(
        AugmentSection(),
        mean=config["mean"],
        std=config["std"],
        seed=0,
        batch_size=batch,
        own=slice(0, batch),
        device=accelerator.device,
        num_classes=len(names),
    )
    module = accelerator.prepare_model(module, evaluation_mode=True)
    (outcomes_nM,) = outcomes_of(
        [module],
        images,
        objective=objective,
        augmentation=augmentation,
        batch_size=batch,
        workers=section.workers,
    )
    return Evaluation(
        what=what,
        images=len(images),
        scores=objective.scores(outcomes_nM, images.labels),
        classes=objective.table(outcomes_nM, images.labels, names),
    )


def open_network(
    name: str, revision: str | None = None, model: nn.Module | None = None
) -> tuple[nn.Module, dict[str, Any], Path | None]:
    """The network, how it is evaluated (timm's `pretrained_cfg`), and its recipe.yaml if it has one.

    Args:
        name: a run folder or a Hub id.
        revision, model: as in `evaluate`.

    Raises:
        UserError: if there is no such network, or one of its files is damaged.
    """
    folder = Path(name)
    recipe_file: Path | None
    if folder.exists():
        missing = [file for file in NETWORK_FILES if not (folder / file).is_file()]
        if missing:
            raise UserError(
                f"{name} has no {' and no '.join(missing)}: it is not a run folder, or the run is not finished"
            )
        if revision is not None:
            raise UserError(f"--revision {revision}: {name} is a folder; only a Hub id has revisions")
        check_digest(folder, *NETWORK_FILES)
        try:
            read_object(folder / CONFIG_FILE)
        except ValueError as error:
            raise UserError(f"{folder / CONFIG_FILE} is damaged: {error}") from None
        source = f"local-dir:{name}"
        recipe_file = folder / RECIPE_FILE if (folder / RECIPE_FILE).is_file() else None
    else:
        if name.count("/") != 1 or name.startswith((".", "~", "/")):
            raise UserError(f"{name}: there is no such run folder, and it is not a Hub id (user/name)")
        try:
            fetch_file(name, NETWORK_FILES[1], revision, _MAX_RECIPE_BYTES)
        except ValueError as error:
            raise UserError(f"there is no run folder {name}, and as a Hub id: {error}") from None
        source = f"hf-hub:{name}" + (f"@{revision}" if revision else "")
        try:
            recipe_file = fetch_file(name, RECIPE_FILE, revision, _MAX_RECIPE_BYTES)
        except ValueError:  # a network from another program
            recipe_file = None
    if model is not None:
        return *_given_network(folder, model), recipe_file
    try:
        network: nn.Module = timm.create_model(source, pretrained=True)
    except Exception as error:
        raise UserError(
            f"{name} does not have a network that timm can load: {first_line(error)}; if it was given to the search "
            "in Python, give it here as well: ohl_accel.evaluate(..., model=...)"
        ) from error
    return network, _checked(name, cast(dict[str, Any], network.pretrained_cfg)), recipe_file


def _given_network(folder: Path, model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of a network of the user's own with the weights of a run folder."""
    if not folder.exists():
        raise UserError(
            f"{folder}: there is no such run folder, from which the weights of model could be loaded"
        )
    document = read_object(folder / CONFIG_FILE)
    if not isinstance(document.get("pretrained_cfg"), dict):
        raise UserError(f"{folder / CONFIG_FILE} is damaged: pretrained_cfg must be an object")
    config = {"label_names": document.get("label_names"), **document["pretrained_cfg"]}
    network = copy.deepcopy(model)
    try:
        load_model(network, str(folder / WEIGHTS_FILE))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: its weights do not fit the {type(model).__name__} given as model: {error}"
        ) from error
    return network, _checked(str(folder), config)


def _checked(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """How a network is evaluated, if it says so in the right types.

    Raises:
        UserError: naming the first value that cannot be.
    """
    size, names = config.get("input_size"), config.get("label_names")
    channels = size[0] if isinstance(size, list | tuple) and len(size) == 3 else 0
    is_whole = channels in (1, 3) and all(type(side) is int and 0 < side <= _MAX_SIDE for side in size or ())
    right = {
        "input_size": is_whole,
        "num_classes": type(config.get("num_classes")) is int and config["num_classes"] > 0,
        "label_names": names is None
        or (isinstance(names, list | tuple) and all(isinstance(one, str) for one in names)),
    }
    for key in ("mean", "std"):
        levels = config.get(key)
        right[key] = isinstance(levels, list | tuple) and len(levels) == channels
        right[key] = right[key] and all(
            type(each) in (int, float) and math.isfinite(each) for each in levels or ()
        )
    right["std"] = right["std"] and all(each > 0 for each in config["std"])
    for key, fits in right.items():
        if not fits:
            raise UserError(
                f"{name}: {key} in its {CONFIG_FILE} cannot be {shown(config.get(key))}: it is damaged"
            )
    return config


def _sections(
    name: str, recipe_file: Path | None, data_path: str | None, overrides: Sequence[str]
) -> tuple[DataSection, RunSection, tuple[str, dict[str, Any]] | None]:
    """The data section, the run section (for the precision), and the objective with its arguments (None: by the kind
    of labels)."""
    for text in overrides:
        if not text.startswith("data."):
            raise UserError(f"{text}: only the data section can be changed here (data.key=value)")
    if recipe_file is None and data_path is None:
        raise UserError(f"{name} has no {RECIPE_FILE}, so its data is unknown: give it with --data")
    values: dict[str, Any] = _NO_RECIPE
    if recipe_file is not None:
        values = Recipe.load(str(recipe_file)).model_dump()
    values = {**values, "data": dict(values["data"])}
    if data_path is not None:  # these fields describe the recipe's own data
        own = ("name", "revision", "test_path", "image_column", "label_column")
        values["data"] |= {"path": data_path, **dict.fromkeys(own)}
    problems = [problem for text in overrides for problem in override(values, text)]
    recipe = Recipe.check(values, "data", problems)
    # code named in a downloaded recipe must not be run
    trusted = recipe_file is not None and (Path(name).exists() or recipe.objective in OBJECTIVES)
    return recipe.data, recipe.run, (recipe.objective, recipe.objective_args) if trusted else None


def show(evaluation: Evaluation, network: str) -> None:
    """Print the scores, and a table per class (if there are many, those with the lowest scores)."""
    console = Console(highlight=False, soft_wrap=True)
    key = next(name for name in evaluation.classes[0] if name not in ("class", "images"))
    classes, note = evaluation.classes, ""
    if len(classes) > _MAX_CLASSES_SHOWN:
        filled = [row for row in classes if row["images"]]
        classes = sorted(filled, key=lambda row: row[key])[:_MAX_CLASSES_SHOWN]
        note = (
            f"; the {_MAX_CLASSES_SHOWN} classes with the lowest {_HEADINGS.get(key, key)} (--json has all)"
        )
    scores = ", ".join(_in_words(name, score) for name, score in evaluation.scores.items())
    console.print(f"{network} on {evaluation.what}: {evaluation.images} images\n{scores}{note}", markup=False)
    table = Table()
    columns = [name for name in classes[0] if name != "mistaken"]
    for name in columns:
        percent = " %" if name in _FRACTIONS else ""
        table.add_column(_HEADINGS.get(name, name.replace("_", " ")) + percent)
    for row in classes:
        table.add_row(*(_cell(row, name) for name in columns))
    console.print(table)


def _in_words(name: str, score: float) -> str:
    heading = _HEADINGS.get(name, name.replace("_", " "))
    return f"{heading} {100 * score:.2f} %" if name in _FRACTIONS else f"{heading} {score:.4f}"


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if value is None:
        return ""
    if name == "most_often_taken_for":
        return f"{value} ({row['mistaken']})"
    if isinstance(value, float):
        return f"{100 * value:.2f}" if name in _FRACTIONS else f"{value:.4f}"
    return str(value)
