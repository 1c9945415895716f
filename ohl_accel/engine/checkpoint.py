"""Save and resume after an outer step, when all trajectories are equal.

A checkpoint is one network, one optimizer, the estimator's state (theta with Adam's moments), and a counter, so a
run can be resumed on a different number of processes. It is a folder `checkpoints/step-000012` with `state.safetensors`
and `state.json`, written aside, renamed, and then named in `checkpoints/latest`; no pickle.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ohl_accel.distributed.groups import Groups
from ohl_accel.distributed.launch import run_on_all_ranks
from ohl_accel.distributed.sharding import whole_on_cpu
from ohl_accel.engine.trajectory import Trajectory
from ohl_accel.errors import UserError
from ohl_accel.policy.estimators import Estimator
from ohl_accel.recipe import HubSection, Recipe
from ohl_accel.run_folder.atomic import replacing, write_text

SCHEMA_VERSION = 1
Contents = tuple[dict[str, Any], dict[str, Tensor]]
"""What a checkpoint holds: plain values and tensors."""

_LATEST = "latest"
_GROUP = "group"
_PLAIN = bool | int | float | str | list | tuple | None  # type: ignore[type-arg]  # for isinstance
_STATE_JSON, _STATE_TENSORS = "state.json", "state.safetensors"
_FREE_FIELDS = frozenset(
    {
        *(f"run.{name}" for name in ("dir", "resume", "overwrite", "checkpoint_every", "keep_checkpoints")),
        *(f"run.{name}" for name in ("timeout", "project", "name", "display")),
        *(f"hub.{name}" for name in HubSection.model_fields),
        "track",
        "outer.groups",
        "model.shard",
        "data.workers",
        "data.in_memory",
        "data.retries",
    }
)
"""Fields that may change when a run is resumed: the result does not depend on them."""


def collect(trajectory: Trajectory, groups: Groups) -> Contents:
    """A trajectory's whole state on the CPU of the main process: (plain values of the optimizer, tensors).

    Sharded tensors are gathered by all processes of the group, one after the other, so every process
    must call it; all but the main one get no tensors.
    """
    scalars, tensors = _split_optimizer(trajectory.optimizer)
    tensors |= {f"network.{name}": value for name, value in trajectory.network.state_dict().items()}
    return scalars, _whole_on_main(tensors, groups)


def collect_network(trajectory: Trajectory, groups: Groups) -> dict[str, Tensor]:
    """Like `collect`, but only weights and buffers, by their names in the network."""
    return _whole_on_main(trajectory.network.state_dict(), groups)


def save(folder: Path, outer_step: int, state: Contents, estimator: Estimator | None, recipe: Recipe) -> None:
    """Write a checkpoint and delete those beyond `run.keep_checkpoints` (main process only).

    Args:
        folder: `checkpoints` of the run folder.
        outer_step: outer steps done.
        state: from `collect`, of any trajectory; all are equal.
        estimator: with the policy; None if nothing is learned.
        recipe: resolved.
    """
    scalars, tensors = state
    if estimator is not None:
        tensors = tensors | {f"policy.{name}": value for name, value in _state_of(estimator).items()}
    document = {
        "schema_version": SCHEMA_VERSION,
        "outer_step": outer_step,
        "recipe": recipe.model_dump(mode="json"),
        "optimizer": scalars,
    }
    path = folder / f"step-{outer_step:06d}"
    folder.mkdir(exist_ok=True)
    with replacing(path) as aside:
        aside.mkdir()
        save_file(tensors, aside / _STATE_TENSORS)
        (aside / _STATE_JSON).write_text(json.dumps(document), encoding="utf-8")
    write_text(folder / _LATEST, path.name)
    older = [other for other in _checkpoints(folder) if other.name < path.name]
    for old in older[: max(0, len(older) + 1 - recipe.run.keep_checkpoints)]:
        shutil.rmtree(old)


def _state_of(estimator: Estimator) -> dict[str, Tensor]:
    """Copies of the estimator's tensors, which may share memory.

    Raises:
        UserError: if its state holds anything else.
    """
    state = estimator.state()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"outer.estimator: {type(estimator).__name__}.state() has a {type(value).__name__} ({name}); "
                "a checkpoint holds tensors"
            )
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    try:
        return folder / (folder / _LATEST).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def read(path: Path, recipe: Recipe) -> Contents:
    """The contents of a checkpoint.

    Raises:
        UserError: if it is damaged, of a different version, or of a run with a different recipe.
    """
    try:
        document = json.loads((path / _STATE_JSON).read_text(encoding="utf-8"))
        tensors = load_file(path / _STATE_TENSORS)
        version = document["schema_version"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        others = [other.name for other in _checkpoints(path.parent) if other != path]
        hint = (
            f"; to resume from {others[-1]}, write that name into {path.parent / _LATEST}" if others else ""
        )
        raise UserError(f"checkpoint {path} is damaged: {error}{hint}") from None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"checkpoint {path} has schema_version {version}; this version reads {SCHEMA_VERSION}"
        )
    # through the recipe of this version: fields that did not exist then get their defaults
    then = _flat(type(recipe).check(document["recipe"], f"checkpoint {path}").model_dump(mode="json"))
    now = _flat(recipe.model_dump(mode="json"))
    changed = [
        f"{key} was {then.get(key)!r}, now {now.get(key)!r}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key) and key not in _FREE_FIELDS
    ]
    if changed:
        raise UserError(
            f"run.dir={path.parent.parent} has a run with a different recipe ({'; '.join(changed)}): give the same "
            "values to resume it, or choose another run.dir"
        )
    return document, tensors


def restore(
    contents: Contents | None,
    hosted: list[Trajectory],
    estimator: Estimator | None,
    groups: Groups,
) -> int:
    """Load a checkpoint into all trajectories of all processes.

    Args:
        contents: as read by the main process; None on the others.
        hosted, estimator: changed in place.
        groups: of the run.

    Returns:
        Outer steps done.
    """
    document, tensors = contents or ({}, {})
    run_on_all_ranks(lambda: _check_same_network(tensors, hosted[0].network))
    document, names = groups.broadcast_object((document, list(tensors)))
    examples = {f"network.{name}": value for name, value in hosted[0].network.state_dict().items()}
    parameters = [value for group in hosted[0].optimizer.param_groups for value in group["params"]]
    for name in names:
        if name.startswith("optimizer.") and not name.startswith(f"optimizer.{_GROUP}"):
            examples[name] = parameters[int(name.split(".")[1])]
    state = dict(groups.distribute_tensors(tensors, examples))
    for trajectory in hosted:
        trajectory.network.load_state_dict(under("network.", state))
        trajectory.optimizer.load_state_dict(
            _joined_optimizer(trajectory.optimizer, document["optimizer"], under("optimizer.", state))
        )
    if estimator is not None:
        estimator.load_state({name: value.cpu() for name, value in under("policy.", state).items()})
    return int(document["outer_step"])


def _check_same_network(tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    """Refuse the weights of another network (a `model` given in Python is not part of the recipe).

    Raises:
        UserError: naming the first tensor that differs.
    """
    if not tensors:  # the main process alone has read them
        return
    saved = {name: tuple(value.shape) for name, value in under("network.", tensors).items()}
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    different = sorted(name for name in {*saved, *own} if saved.get(name) != own.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"run.dir holds a run of another network: {name} was {saved.get(name, 'missing')}, now "
            f"{own.get(name, 'missing')}; give the same model to resume it, or choose another run.dir"
        )


def _whole_on_main(tensors: Mapping[str, Tensor], groups: Groups) -> dict[str, Tensor]:
    if groups.rank >= (groups.group_size if groups.sharded else 1):
        return {}
    return whole_on_cpu(tensors, keep=groups.rank == 0)


def _split_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An optimizer's state as plain values for JSON and named tensors; settings of other types are omitted."""
    state = optimizer.state_dict()
    states = {str(index): entries for index, entries in state["state"].items()}
    groups = {f"{_GROUP}{number}": group for number, group in enumerate(state["param_groups"])}
    plain: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    for name, entries in (states | groups).items():
        plain[name] = {key: value for key, value in entries.items() if isinstance(value, _PLAIN)}
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
    return {
        "state": {name: plain[name] for name in states},
        "param_groups": [plain[group] for group in groups],
    }, tensors


def _joined_optimizer(
    optimizer: torch.optim.Optimizer, scalars: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The inverse of `_split_optimizer`; settings omitted there are taken from the optimizer."""
    states = {index: dict(entries) for index, entries in scalars["state"].items()}
    own = optimizer.state_dict()["param_groups"]
    for number, (group, saved) in enumerate(zip(own, scalars["param_groups"], strict=True)):
        states[f"{_GROUP}{number}"] = {**group, **saved}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        # step counters belong on the CPU; load_state_dict moves those that do not
        states[index][key] = value.clone() if value.ndim else value.to("cpu", copy=True)
    groups = [states.pop(f"{_GROUP}{number}") for number in range(len(own))]
    return {"state": {int(index): entries for index, entries in states.items()}, "param_groups": groups}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
