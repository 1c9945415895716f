"""Save and resume, after an outer step or inside one.

A checkpoint is the state of each trajectory (network, optimizer, average of the weights), or of one where all are
equal; the estimator's state (theta with Adam's moments), and a counter, so a run can be resumed on a different
number of processes. It is a folder `checkpoints/step-000012` with `state.safetensors`, `state.json`, their digests, and
where trajectories differ `trajectory-000000.safetensors` and so on; written aside, renamed, and then named in
`checkpoints/latest`; no pickle. Inside an outer step it is `step-000012-000345`, after 345 inner steps of the 13th,
with what each trajectory counted in them.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ohl_accel.distributed.groups import Groups
from ohl_accel.distributed.launch import run_on_all_ranks
from ohl_accel.engine.trajectory import Trajectory
from ohl_accel.errors import UserError
from ohl_accel.policy.estimators import Estimator
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.atomic import make_folder, replacing, write_text
from ohl_accel.run_folder.digests import digest_of
from ohl_accel.run_folder.files import DIGESTS_FILE

SCHEMA_VERSION = 2
"""Version 1, of 0.1.0, has no digests and is still read."""

_LATEST = "latest"
_GROUP = "group"
_PLAIN = bool | int | float | str | list | tuple | None  # type: ignore[type-arg]  # for isinstance
_STATE_JSON, _STATE_TENSORS = "state.json", "state.safetensors"
_TRAJECTORY, _TRAJECTORIES = "trajectory-{:06d}.safetensors", "trajectory-*.safetensors"
_WITHIN = "within."
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_NAME = re.compile(r"step-(\d{6,18})(?:-(\d{6,18}))?")

Position = tuple[int, int]
"""Outer steps done, and inner steps of the next one."""


@dataclass(frozen=True)
class Contents:
    """A checkpoint that is whole."""

    document: dict[str, Any]
    """Plain values."""
    shared: dict[str, Tensor]
    """The tensors of `state.safetensors`: the estimator's, and the state of all trajectories where they are equal."""
    apart: tuple[Path, ...] = ()
    """The file of each trajectory where they differ."""

    def parts(self) -> Iterator[dict[str, Tensor]]:
        """The tensors of each trajectory, or of all."""
        if not self.apart:
            yield self.shared
        for path in self.apart:
            yield load_file(path)


def collect(
    hosted: Sequence[Trajectory], groups: Groups, apart: bool, within: bool = False
) -> Iterator[dict[str, Tensor]]:
    """The whole state of each trajectory, on the CPU of the main process; empty on the others.

    Tensors are gathered by all processes, so every process must iterate over it.

    Args:
        hosted: the trajectories of this process.
        groups: of the run.
        apart: whether trajectories differ; otherwise the state of the first stands for all.
        within: whether an outer step is in progress.
    """
    for number in range(groups.trajectories if apart else 1):
        trajectory = hosted[number % len(hosted)]
        _, tensors = _split_optimizer(trajectory.optimizer)
        tensors |= {f"network.{name}": value for name, value in trajectory.network.state_dict().items()}
        if trajectory.average is not None:
            tensors |= {f"average.{name}": value for name, value in trajectory.average.state_dict().items()}
        if within:
            tensors |= {f"{_WITHIN}{name}": value for name, value in trajectory.progress().items()}
        yield groups.tensors_on_main(number, tensors)


def save(
    folder: Path,
    position: Position,
    states: Iterator[dict[str, Tensor]],
    apart: bool,
    optimizer: torch.optim.Optimizer,
    estimator: Estimator | None,
    recipe: Recipe,
    decoded: Mapping[str, Any],
    processes: int,
) -> None:
    """Write a checkpoint and delete those beyond `run.keep_checkpoints` (main process only).

    Args:
        folder: `checkpoints` of the run folder.
        position: where the run is.
        states: from `collect`; emptied as they are written, so that only one is in memory.
        apart: whether trajectories differ, as in `collect`.
        optimizer: of any trajectory: its plain values are the same in all.
        estimator: with the policy; None if nothing is learned.
        recipe: resolved.
        decoded: `Replacements.state`.
        processes: those that host all trajectories.
    """
    shared = {} if apart else next(states)
    if estimator is not None:
        shared = shared | {f"policy.{name}": value for name, value in _state_of(estimator).items()}
    scalars, _ = _split_optimizer(optimizer)
    document = {
        "schema_version": SCHEMA_VERSION,
        "outer_step": position[0],
        "inner_steps": position[1],
        "processes": processes,
        "recipe": recipe.model_dump(mode="json"),
        "optimizer": scalars,
        **decoded,
    }
    path = folder / _name_of(position)
    make_folder(folder)
    with replacing(path) as aside:
        aside.mkdir()
        if apart:
            for number, tensors in enumerate(states):
                save_file(tensors, aside / _TRAJECTORY.format(number))
                tensors.clear()
        save_file(shared, aside / _STATE_TENSORS)
        (aside / _STATE_JSON).write_text(json.dumps(document), encoding="utf-8")
        digests = {file.name: digest_of(file) for file in sorted(aside.iterdir())}
        (aside / DIGESTS_FILE).write_text(json.dumps(digests), encoding="utf-8")
    write_text(folder / _LATEST, path.name)
    for other in _superseded(folder, position, recipe):
        shutil.rmtree(other)


def _superseded(folder: Path, position: Position, recipe: Recipe) -> list[Path]:
    """The checkpoints to delete once there is one of this position."""
    others = _checkpoints(folder)
    older = [other for other in others if _position_of(other.name) < position]
    surplus = max(0, len(older) + 1 - recipe.run.keep_checkpoints)
    if recipe.run.on_loss == "stop":
        return older[:surplus]
    # another number of trajectories goes on from the last outer step, not from inside the next one: that stays, and
    # what is newer than this position was left behind by another number
    older.sort(key=lambda other: _position_of(other.name)[1] == 0)
    newer = [other for other in others if _position_of(other.name) > position]
    return newer + older[: min(surplus, len(older) - 1) if position[1] else surplus]


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


def newest_whole(
    folder: Path, warn: Callable[[str], None], trajectories: int | None = None
) -> Contents | None:
    """The contents of the newest checkpoint that is whole; None if there is no checkpoint at all.

    Args:
        folder: `checkpoints` of the run folder.
        warn: takes which newer ones are damaged or missing, and what is lost by that.
        trajectories: passes over those that hold the states of another number of trajectories.

    Raises:
        UserError: if there are checkpoints, but none is whole, or one is of another version.
    """
    found = _checkpoints(folder)
    damaged: dict[str, str] = {}
    for path in reversed(found):
        try:
            contents = _load(path)
            if contents.apart and len(contents.apart) != (trajectories or len(contents.apart)):
                raise _DamagedError(f"it is of {len(contents.apart)} trajectories, not of {trajectories}")
        except _DamagedError as error:
            damaged[path.name] = str(error)
            continue
        _warn_of_loss(folder, path.name, damaged, warn)
        return contents
    if damaged:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in damaged.items())
        raise UserError(
            f"no checkpoint in {folder} is whole ({reasons}): copy one back, or start again with run.resume=never "
            "run.overwrite=true"
        )
    if named := _named_latest(folder):
        warn(
            f"{folder / _LATEST} names {named}, but there is no checkpoint: the run starts from the beginning"
        )
    return None


class _DamagedError(Exception):
    """A checkpoint is not what was written, or not what is needed."""


def _warn_of_loss(folder: Path, whole: str, damaged: Mapping[str, str], warn: Callable[[str], None]) -> None:
    """Say which checkpoints are newer than the one that is whole, but damaged or missing."""
    reasons = dict(damaged)
    named = _named_latest(folder)
    if named and named not in reasons and not (folder / named).is_dir():
        reasons[named] = "it is missing"
    newer = {name: reason for name, reason in reasons.items() if _position_of(name) > _position_of(whole)}
    if newer:
        lost = max(map(_position_of, newer))[0] - _position_of(whole)[0]
        again = f"{lost or 'no whole'} outer {'step is' if lost < 2 else 'steps are'} done again"
        what = "; ".join(f"{name}: {reason}" for name, reason in newer.items())
        warn(f"not every checkpoint in {folder} can be resumed ({what}): resuming from {whole}, {again}")


def processes_before(folder: Path) -> int | None:
    """How many processes host all trajectories, as the newest checkpoint says that says so; None if none does.

    Args:
        folder: `checkpoints` of the run folder.
    """
    for path in reversed(_checkpoints(folder)):
        with contextlib.suppress(_DamagedError, *_UNREADABLE):
            found = _document(path, {_STATE_JSON}).get("processes")
            if isinstance(found, int):
                return found
    return None


def position_on_disk(folder: Path) -> Position | None:
    """Where the newest checkpoint is, by its name; None if there is none.

    Args:
        folder: `checkpoints` of the run folder.
    """
    found = _checkpoints(folder)
    return _position_of(found[-1].name) if found else None


def in_words(position: Position) -> str:
    """Where a run is: "outer step 12", "outer step 12 and 345 inner steps"."""
    outer_steps, inner_steps = position
    return f"outer step {outer_steps}" + (f" and {inner_steps} inner steps" if inner_steps else "")


def _named_latest(folder: Path) -> str | None:
    """What `latest` names, if that is a checkpoint by its name."""
    try:
        name = (folder / _LATEST).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return name if _NAME.fullmatch(name) else None


def _position_of(name: str) -> Position:
    found = _NAME.fullmatch(name)
    assert found is not None
    return int(found[1]), int(found[2] or 0)


def _name_of(position: Position) -> str:
    outer_steps, inner_steps = position
    return f"step-{outer_steps:06d}" + (f"-{inner_steps:06d}" if inner_steps else "")


def _load(path: Path) -> Contents:
    """Read a checkpoint, with everything checked that does not depend on the run.

    Raises:
        _DamagedError: saying what is wrong with it.
        UserError: if it is of a newer version.
    """
    try:
        has_digests = (path / DIGESTS_FILE).exists()
        document = _document(path)
        version = document["schema_version"]
        if version not in (1, SCHEMA_VERSION):
            raise UserError(
                f"checkpoint {path} has schema_version {version}; this version reads 1 and {SCHEMA_VERSION}"
            )
        if version == SCHEMA_VERSION and not has_digests:
            raise _DamagedError(f"{DIGESTS_FILE} is missing")
        position = document["outer_step"], document.get("inner_steps", 0)
        if position != _position_of(path.name):
            raise _DamagedError(f"it says that it is of {in_words(position)}")
        if not isinstance(document["recipe"], dict) or not isinstance(document["optimizer"], dict):
            raise _DamagedError(f"{_STATE_JSON} holds no recipe or no optimizer")
        return Contents(document, load_file(path / _STATE_TENSORS), tuple(sorted(path.glob(_TRAJECTORIES))))
    except (*_UNREADABLE, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise _DamagedError(f"{type(error).__name__}: {error}") from None


def _document(path: Path, only: Set[str] | None = None) -> dict[str, Any]:
    """`state.json`, once the files of a checkpoint, or `only` these, are as their digests say (version 1 has none).

    Raises:
        _DamagedError, and those of `_UNREADABLE`.
    """
    if (path / DIGESTS_FILE).exists():
        digests = json.loads((path / DIGESTS_FILE).read_text(encoding="utf-8"))
        for name in sorted(only or {_STATE_JSON, _STATE_TENSORS, *digests}):
            if digests[name] != digest_of(path / name):
                raise _DamagedError(f"{name} is not what was written")
    document: dict[str, Any] = json.loads((path / _STATE_JSON).read_text(encoding="utf-8"))
    return document


def restore(
    contents: Contents | None,
    hosted: list[Trajectory],
    estimator: Estimator | None,
    groups: Groups,
) -> Position:
    """Load a checkpoint into all trajectories of all processes.

    Args:
        contents: as read by the main process; None on the others.
        hosted, estimator: changed in place.
        groups: of the run.

    Returns:
        Where the run was.
    """
    document, shared = (contents.document, contents.shared) if contents is not None else ({}, {})
    number_of_parts = max(1, len(contents.apart)) if contents is not None else 0
    document, number_of_parts = groups.broadcast_object((document, number_of_parts))
    parts = contents.parts() if contents is not None else repeat({})
    inner_steps = int(document.get("inner_steps", 0))
    for number, tensors in enumerate(islice(parts, number_of_parts)):
        run_on_all_ranks(partial(_check_same_network, tensors, hosted[0].network))
        state = dict(groups.distribute_tensors(tensors, _examples(list(tensors), hosted[0], groups)))
        for trajectory in hosted:
            if number_of_parts == 1 or trajectory.number == number:
                _load_trajectory(trajectory, state, document["optimizer"])
                if inner_steps:
                    trajectory.set_progress(under(_WITHIN, state), inner_steps)
    if estimator is not None:
        state = dict(groups.distribute_tensors(under("policy.", shared), {}))
        estimator.load_state({name: value.cpu() for name, value in state.items()})
    return int(document["outer_step"]), inner_steps


def _examples(names: list[str], trajectory: Trajectory, groups: Groups) -> dict[str, Tensor]:
    """For each tensor of a checkpoint, one that is distributed like it; `names` are used on the main process only."""
    examples = {f"network.{name}": value for name, value in trajectory.network.state_dict().items()}
    if trajectory.average is not None:
        examples |= {f"average.{name}": value for name, value in trajectory.average.state_dict().items()}
    parameters = [value for group in trajectory.optimizer.param_groups for value in group["params"]]
    for name in groups.broadcast_object(names):
        if name.startswith("optimizer.") and not name.startswith(f"optimizer.{_GROUP}"):
            examples[name] = parameters[int(name.split(".")[1])]
    return examples


def _load_trajectory(trajectory: Trajectory, state: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    trajectory.network.load_state_dict(under("network.", state))
    if trajectory.average is not None:
        trajectory.average.load_state_dict(under("average.", state))
    trajectory.optimizer.load_state_dict(
        _joined_optimizer(trajectory.optimizer, scalars, under("optimizer.", state))
    )


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
    """Folders that are checkpoints by their names, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(
        (path for path in found if path.is_dir() and not path.is_symlink()),
        key=lambda path: _position_of(path.name),
    )
