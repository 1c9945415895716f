"""Rules between several fields of a recipe.

A rule names the fields that it depends on. It is applied only if all of them are valid on their own, so that one
mistake does not hide another, and is not reported twice.
"""

from collections.abc import Callable, Iterator
from typing import Any

from ohl_accel.recipe.sections import HubSection, RandomResizedCropSection

Check = Callable[..., str | None]

SHARDED_OPTIMIZERS = (
    "sgd",
    "momentum",
    "sgdw",
    "adam",
    "adamw",
    "nadamw",
    "adopt",
    "adan",
    "lion",
    "rmsproptf",
)
"""Optimizers that update each number on its own, so that each process can update its shard."""

_RULES: list[tuple[tuple[str, ...], Check]] = []


def broken_rules(value_of: Callable[[str], Any]) -> Iterator[str]:
    """What is wrong between fields.

    Args:
        value_of: the value of a dotted field; raises LookupError for one that is not valid on its own.
    """
    for fields, check in _RULES:
        try:
            values = [value_of(field) for field in fields]
        except LookupError:
            continue
        problem = check(*values)
        if problem is not None:
            yield problem


def _rule(*fields: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        _RULES.append((fields, check))
        return check

    return add


@_rule("outer.groups", "outer.trajectories")
def _groups_divide_trajectories(groups: int | None, trajectories: int) -> str | None:
    if groups is None or trajectories % groups == 0:
        return None
    fit = [g for g in range(1, trajectories + 1) if trajectories % g == 0]
    return f"outer.groups={groups} does not divide outer.trajectories={trajectories}: use one of {fit}"


@_rule("run.on_loss", "outer.adopt")
def _trajectories_can_be_lost(on_loss: str, adopt: str) -> str | None:
    if on_loss == "stop" or adopt == "state":
        return None
    return (
        f"run.on_loss=shrink: needs outer.adopt=state, got {adopt}: a trajectory with an optimizer state of its own "
        "cannot be lost and come back"
    )


@_rule("run.on_loss", "run.checkpoint_every")
def _every_boundary_is_saved(on_loss: str, every: int) -> str | None:
    if on_loss == "stop" or every == 1:
        return None
    return f"run.on_loss=shrink: needs run.checkpoint_every=1, got {every}: others go on from the last outer step"


@_rule("data.heldout", "data.heldout_split")
def _one_source_of_heldout_images(heldout: float | None, heldout_split: str | None) -> str | None:
    if heldout is None or heldout_split is None:
        return None
    return "data.heldout, data.heldout_split: give only one of them (images that score the trajectories)"


@_rule("data.heldout_split", "data.train_split", "data.test_split")
def _heldout_split_is_another(heldout: str | None, train: str, test: str | None) -> str | None:
    if heldout is None or heldout not in (train, test):
        return None
    return f"data.heldout_split={heldout!r} is also the training or the test split"


@_rule("data.test_split", "data.train_split", "data.test_path")
def _test_split_is_another(test: str | None, train: str, test_path: str | None) -> str | None:
    if test is None or test != train or test_path is not None:
        return None
    return f"data.test_split={test!r} is also the training split; use null if there is no test split"


@_rule("data.test_path", "data.test_split")
def _test_path_has_a_split(test_path: str | None, test_split: str | None) -> str | None:
    if test_path is None or test_split is not None:
        return None
    return "data.test_path: has no effect while data.test_split is null"


@_rule("data.mean", "data.std")
def _mean_and_std_go_together(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> str | None:
    if (mean is None) == (std is None) and len(mean or ()) == len(std or ()):
        return None
    return "data.mean, data.std: give both, of equal length, or neither"


@_rule("data.std")
def _std_is_positive(std: tuple[float, ...] | None) -> str | None:
    if std is None or min(std, default=1.0) > 0:
        return None
    return f"data.std={list(std)}: must be above 0"


@_rule("augment.random_resized_crop", "data.image_size")
def _crop_has_a_size(crop: RandomResizedCropSection | None, size: tuple[int, int] | None) -> str | None:
    if crop is None or size is not None:
        return None
    return "augment.random_resized_crop: needs data.image_size, the size that crops are resized to"


@_rule("augment.random_resized_crop", "data.in_memory")
def _crop_decodes_anew(crop: RandomResizedCropSection | None, in_memory: bool | str) -> str | None:
    if crop is None or in_memory is not True:
        return None
    return "augment.random_resized_crop: decodes images anew each time, so data.in_memory cannot be true"


@_rule("data.crop_pct", "data.image_size", "data.crop_mode")
def _crop_pct_is_used(crop_pct: float, size: tuple[int, int] | None, mode: str) -> str | None:
    if crop_pct == 1.0 or (size is not None and mode == "center"):
        return None
    return f"data.crop_pct={crop_pct:g}: needs data.image_size, and data.crop_mode=center"


@_rule("augment.random_resized_crop.scale")
def _scale_is_ordered(scale: tuple[float, float] | None) -> str | None:
    return _disordered("augment.random_resized_crop.scale", scale)


@_rule("augment.random_resized_crop.ratio")
def _ratio_is_ordered(ratio: tuple[float, float] | None) -> str | None:
    return _disordered("augment.random_resized_crop.ratio", ratio)


def _disordered(field: str, bounds: tuple[float, float] | None) -> str | None:
    if bounds is None or bounds[0] <= bounds[1]:
        return None
    return f"{field}=[{bounds[0]:g}, {bounds[1]:g}]: the first must not exceed the second"


@_rule("augment.policy", "augment.mixup", "augment.cutmix")
def _mixed_once(policy: str | None, mixup: float, cutmix: float) -> str | None:
    if policy != "mixup" or not (mixup or cutmix):
        return None
    return (
        f"augment.policy=mixup: augment.mixup={mixup:g} and augment.cutmix={cutmix:g} mix with every policy; use "
        "augment.policy=none with them, or set both to 0"
    )


@_rule("model.shard", "model.compile")
def _sharded_or_compiled(shard: bool, compiled: bool) -> str | None:
    if not (shard and compiled):
        return None
    return "model.shard, model.compile: cannot be used together; give only one of them"


@_rule("inner.stacked", "model.compile")
def _stacked_or_compiled(stacked: bool, compiled: bool) -> str | None:
    if not (stacked and compiled):
        return None
    return "inner.stacked, model.compile: cannot be used together; give only one of them"


@_rule("model.shard", "inner.optimizer.name")
def _optimizer_can_be_sharded(shard: bool, name: str) -> str | None:
    if not shard or name in SHARDED_OPTIMIZERS:
        return None
    return (
        f"inner.optimizer.name={name}: may need whole tensors, but model.shard splits them; "
        f"use one of {', '.join(SHARDED_OPTIMIZERS)}"
    )


@_rule("inner.optimizer.nesterov", "inner.optimizer.name", "inner.optimizer.momentum")
def _nesterov_has_momentum(nesterov: bool, name: str, momentum: float) -> str | None:
    if not nesterov or (name == "sgd" and momentum > 0):
        return None
    return (
        "inner.optimizer.nesterov: needs inner.optimizer.name=sgd and a momentum above 0, got "
        f"inner.optimizer.name={name} and a momentum of {momentum:g}"
    )


@_rule("inner.schedule.name", "inner.schedule.milestones")
def _milestones_are_of_multistep(name: str, milestones: tuple[float, ...]) -> str | None:
    if (name == "multistep") == bool(milestones):
        return None
    return (
        f"inner.schedule.milestones={list(milestones)} does not go with inner.schedule.name={name}: only multistep "
        "has milestones, and needs them"
    )


@_rule("inner.schedule.warmup_epochs", "outer.steps", "outer.inner_steps")
def _warmup_ends(warmup_epochs: float, steps: int, inner_steps: int | str) -> str | None:
    if inner_steps != "epoch" or warmup_epochs < steps:
        return None
    return f"inner.schedule.warmup_epochs={warmup_epochs:g} is not below the {steps} epochs of the run (outer.steps)"


@_rule("outer.keep_average", "outer.average")
def _average_is_there(keep_average: bool, average: float) -> str | None:
    if not keep_average or average > 0:
        return None
    return "outer.keep_average: there is no average of the weights without outer.average"


def _needs_repo(field: str) -> Check:
    default = HubSection.model_fields[field].default

    def check(repo: str | None, value: object) -> str | None:
        if repo is not None or value == default:
            return None
        return f"hub.{field}: has no effect without hub.repo"

    return check


for _field in HubSection.model_fields:
    if _field != "repo":
        _rule("hub.repo", f"hub.{_field}")(_needs_repo(_field))
