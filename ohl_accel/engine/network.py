"""The network of a recipe: any of timm's by name, created equal on every process, saved in timm's format."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import timm
import torch
from safetensors.torch import save_model
from timm.models import save_for_hf
from torch import nn

import ohl_accel.models  # noqa: F401  registers our networks with timm
from ohl_accel.data import Schema
from ohl_accel.distributed.sharding import check_can_be_sharded
from ohl_accel.errors import UserError, did_you_mean, first_line, ran_out_of_memory
from ohl_accel.recipe import ModelSection
from ohl_accel.rng import keyed_seed
from ohl_accel.run_folder.atomic import replacing
from ohl_accel.run_folder.files import CONFIG_FILE, NETWORK_FILES, WEIGHTS_FILE

_NO_MEMORY = "there is not enough memory for it: use a smaller network, or a smaller data.image_size"


def create_network(
    section: ModelSection, schema: Schema, seed: int, model: nn.Module | None = None
) -> nn.Module:
    """The network with its initial weights, keyed by the seed; tried once on a blank image.

    Args:
        section: the recipe's model section.
        schema: of the images and classes.
        seed: of the run.
        model: instead of the section's: the user's own network, which is copied.

    Raises:
        UserError: for an unknown name, invalid arguments, or images that it cannot process.
    """
    classes, channels, (height, width) = len(schema.class_names), schema.channels, schema.size
    torch.manual_seed(keyed_seed(seed, "weights"))
    network = _build(section, schema) if model is None else copy.deepcopy(model).cpu()
    what = f"model.name={section.name}" if model is None else f"the {type(model).__name__} given as model"
    try:
        with torch.no_grad():
            outputs = network.eval()(torch.zeros(2, channels, height, width))
    except Exception as error:
        if ran_out_of_memory(error):
            raise UserError(f"{what}: {_NO_MEMORY} ({first_line(error)})") from error
        raise UserError(
            f"{what} cannot take images of {channels} x {height} x {width} "
            f"(data.image_size resizes them): {error}"
        ) from error
    if not isinstance(outputs, torch.Tensor):
        raise UserError(f"{what} must return a tensor of logits, got a {type(outputs).__name__}")
    if outputs.shape != (2, classes):
        raise UserError(
            f"{what} gives outputs of shape {list(outputs.shape[1:])} instead of {classes} classes"
        )
    if section.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network.train()


def outline_network(section: ModelSection, schema: Schema) -> nn.Module:
    """The network as created by `create_network`, but on the meta device: without values or memory for them.

    Args:
        section, schema: as in `create_network`; weights are always contiguous.

    Raises:
        UserError: as in `create_network`, or if the network cannot be sharded.
    """
    network = outline(section, schema)
    check_can_be_sharded(network)
    return network.train()


def outline(section: ModelSection, schema: Schema) -> nn.Module:
    """A network of timm's on the meta device, without pretrained weights.

    Raises:
        UserError: for an unknown name, or invalid arguments.
    """
    with torch.device("meta"):
        return _build(section, schema, pretrained=False, checkpoint_path="")


def _build(section: ModelSection, schema: Schema, **instead: Any) -> nn.Module:
    known = timm.list_models()
    if section.name not in known and ":" not in section.name and section.name.split(".")[0] not in known:
        hint = did_you_mean(section.name, known, otherwise="timm.list_models() lists them")
        own = "a network of your own is given from Python: search(..., model=...)"
        raise UserError(f"model.name={section.name}: timm has no such network; {hint}; {own}")
    given = {"num_classes": len(schema.class_names), "in_chans": schema.channels, **section.args, **instead}
    try:
        network: nn.Module = timm.create_model(section.name, **given)
    except Exception as error:
        if ran_out_of_memory(error):
            raise UserError(f"model.name={section.name}: {_NO_MEMORY} ({first_line(error)})") from error
        raise UserError(f"model.name={section.name}, model.args={section.args}: {error}") from error
    names: dict[nn.Parameter, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        first = names.setdefault(parameter, name)
        if first != name:
            raise UserError(
                f"model.name={section.name}: {first} and {name} are one shared parameter of this network, which cannot "
                "be saved as safetensors"
            )
    return network


def save_network(
    network: nn.Module,
    folder: Path,
    section: ModelSection,
    schema: Schema,
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float,
    crop_mode: str,
) -> None:
    """Write `model.safetensors` and timm's `config.json`, each whole or not at all.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` reads them back; for networks that are not timm's, use
    `load_state_dict`.

    Args:
        network: on any device; its memory format becomes contiguous.
        folder: the run folder.
        section: the recipe's model section.
        schema: of the images and classes.
        mean, std: of each channel in 0..1, for normalizing inputs.
        crop_pct: fraction of a resized image's side that its centre crop keeps.
        crop_mode: `center` or `squash`.
    """
    classes = len(schema.class_names)
    input_size = (schema.channels, *schema.size)
    # timm's networks bring values of their own, also for the larger images that it tests with
    evaluated_with = {
        "input_size": input_size,
        "test_input_size": input_size,
        "num_classes": classes,
        "mean": tuple(mean),
        "std": tuple(std),
        "crop_pct": crop_pct,
        "test_crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "interpolation": "bicubic",
    }
    network = network.to(memory_format=torch.contiguous_format)
    with TemporaryDirectory(dir=folder) as made:
        if hasattr(network, "pretrained_cfg"):
            network.pretrained_cfg = {**cast(dict[str, Any], network.pretrained_cfg), **evaluated_with}  # type: ignore[assignment]
            save_for_hf(
                network,
                made,
                model_config={"label_names": list(schema.class_names)},
                model_args={"num_classes": classes, "in_chans": schema.channels, **section.args},
                safe_serialization=True,
            )
        else:
            save_model(network, str(Path(made) / WEIGHTS_FILE))
            config = {
                "architecture": type(network).__name__,
                "num_classes": classes,
                "label_names": list(schema.class_names),
                "pretrained_cfg": evaluated_with,
            }
            (Path(made) / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")
        for name in NETWORK_FILES:
            with replacing(folder / name) as partial:
                (Path(made) / name).replace(partial)
