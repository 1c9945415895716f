"""Set up a run: from a recipe and a launch to all parts of a run, checked before training."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ohl_accel import __version__
from ohl_accel.data import Data, Schema, open_data
from ohl_accel.distributed.groups import Groups
from ohl_accel.distributed.launch import run_on_all_ranks
from ohl_accel.engine import checkpoint
from ohl_accel.engine.augment import Augmentation
from ohl_accel.engine.learner import open_learner
from ohl_accel.engine.network import create_network, outline_network
from ohl_accel.engine.objective import Objective, open_objective
from ohl_accel.engine.pauses import Pauses
from ohl_accel.engine.phases import Phases
from ohl_accel.engine.presence import build_groups, presence_in_words
from ohl_accel.engine.process import configure_torch, why_bf16_is_slow
from ohl_accel.engine.replacements import Replacements
from ohl_accel.engine.run import Run
from ohl_accel.engine.same_run import check_images, check_recipe
from ohl_accel.engine.saving import Saver
from ohl_accel.engine.stacked import Stack, stack_up
from ohl_accel.engine.trajectory import Trajectory, create_optimizer, create_schedule
from ohl_accel.errors import UserError
from ohl_accel.observers.display import Display
from ohl_accel.observers.observer import Observer, RunInfo
from ohl_accel.policy import Policy
from ohl_accel.policy.baselines import mixes, open_policy, resolve_augment
from ohl_accel.policy.estimators import Estimator
from ohl_accel.policy.protocol import AugmentationPolicy, BatchDraw, NoPolicy
from ohl_accel.recipe import ModelSection, Recipe
from ohl_accel.run_folder.files import (
    CHECKPOINTS,
    HELDOUT_FILE,
    METRICS_FILE,
    REPLACED_FILE,
)
from ohl_accel.run_folder.folder import RunFolder
from ohl_accel.run_folder.metrics import lines_before


def set_up(
    recipe: Recipe,
    accelerator: Accelerator,
    display: Display,
    observers: Observer,
    *,
    learn: bool,
    dataset: Any = None,
    model: nn.Module | None = None,
) -> Run:
    """Check and build everything; files of an earlier run are not touched before all of it works.

    Args:
        recipe: of the run.
        accelerator: from `start_accelerator`.
        display: for the messages at the start.
        observers: of the run; none on any process but the main one.
        learn: whether the policy is learned (the search) or fixed (training).
        dataset: instead of `data.path`, as in `search`.
        model: instead of `model.name`, as in `search`.

    Raises:
        UserError: if the recipe, the data, the network, the layout or the run folder cannot work.
    """
    datasets.disable_progress_bars()
    configure_torch(recipe.run, accelerator.device)
    groups, full = build_groups(recipe, accelerator, learn)
    run_on_all_ranks(lambda: observers.check(recipe))
    folder = run_on_all_ranks(lambda: _open_folder(recipe, accelerator))
    try:
        run = _build(recipe, accelerator, display, observers, groups, full, folder, learn, dataset, model)
    except BaseException:  # in a notebook the same process may try again
        if folder is not None:
            folder.release()
        raise
    _introduce(run, accelerator, display)
    return run


def _build(
    recipe: Recipe,
    accelerator: Accelerator,
    display: Display,
    observers: Observer,
    groups: Groups,
    full: int,
    folder: RunFolder | None,
    learn: bool,
    dataset: Any,
    model: nn.Module | None,
) -> Run:
    """All parts of a run; its folder is locked, and its files are not touched before everything is checked."""
    data = run_on_all_ranks(lambda: open_data(recipe, dataset), one_first=True, long=True)
    objective = run_on_all_ranks(lambda: open_recipes_objective(recipe, data.schema, data.train.description))
    side = min(data.schema.size)
    policy = run_on_all_ranks(
        lambda: open_recipes_policy(recipe, side, learn, data.heldout is not None), one_first=True
    )
    recipe = data.resolve(recipe).with_values(
        run={"mixed_precision": accelerator.mixed_precision},
        augment=resolve_augment(recipe.augment, side).model_dump(),
    )
    estimator = None
    if learn and isinstance(policy, Policy):
        policy = Policy(policy.theta, _provenance(recipe, data), space=policy.space)
        estimator = run_on_all_ranks(
            lambda: open_learner(recipe, policy, folder, display.warn, groups.trajectories)
        )
    own_size = recipe.inner.batch_size // groups.group_size
    augmentation = run_on_all_ranks(
        lambda: Augmentation(
            recipe.augment,
            mean=data.mean,
            std=data.std,
            seed=recipe.run.seed,
            batch_size=recipe.inner.batch_size,
            own=slice(groups.data_rank * own_size, (groups.data_rank + 1) * own_size),
            device=accelerator.device,
            num_classes=len(data.schema.class_names),
        )
    )
    steps_per_epoch = len(data.train) // recipe.inner.batch_size
    inner_steps = steps_per_epoch if recipe.outer.inner_steps == "epoch" else recipe.outer.inner_steps

    def new_network() -> nn.Module:
        return create_network(recipe.model, data.schema, recipe.run.seed, model)

    first, pattern = run_on_all_ranks(
        lambda: _first_network(recipe, data, groups, new_network, model is None), one_first=True
    )
    total_steps = recipe.outer.steps * inner_steps

    def try_steps() -> None:
        optimizer = create_optimizer(recipe.inner.optimizer, pattern)
        create_schedule(recipe.inner.schedule, optimizer, steps_per_epoch, total_steps)

    run_on_all_ranks(try_steps)

    def on_device() -> nn.Module:
        return _on_device(copy.deepcopy(pattern), recipe.model, accelerator, groups)

    hosted = [
        Trajectory(
            number=number,
            network=on_device(),
            recipe=recipe,
            groups=groups,
            objective=objective,
            augmentation=augmentation,
            accelerator=accelerator,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            num_operations=policy.space.num_operations if isinstance(policy, Policy) else 0,
            keep_operations=estimator is not None and "operations" in estimator.records,
            average=on_device() if recipe.outer.average and (learn or recipe.outer.keep_average) else None,
        )
        for number in groups.hosted
    ]
    if groups.sharded:
        groups.broadcast_parameters([trajectory.network for trajectory in hosted], first)
        for trajectory in hosted:
            if trajectory.average is not None:
                trajectory.update_average(1)
    stack = stack_up(recipe, groups, hosted, accelerator, display.warn)
    if stack is not None:
        run_on_all_ranks(partial(_try_out, stack, data, augmentation, groups))
    saver = None if folder is None else Saver(folder, recipe, data.record, full, display.warn)
    (first_outer_step, first_inner_step), decoded = _resume_or_begin(
        recipe, folder, saver, data, hosted, estimator, policy, groups, display
    )
    replacements = Replacements(
        groups=groups,
        allowed=recipe.data.corrupt_fraction,
        log=folder / REPLACED_FILE if folder is not None else None,
        first_outer_step=first_outer_step,
        before=decoded.get("decoded"),
    )
    if first_inner_step:
        replacements.go_on(data.train, decoded)
    rewards_before = None
    if folder is not None:
        before = lines_before(folder / METRICS_FILE, first_outer_step)
        is_there = bool(before) and before[-1]["outer_step"] == first_outer_step - 1
        rewards_before = before[-1].get("reward") if is_there else None
    info = None
    if folder is not None:
        info = RunInfo(
            recipe=recipe,
            recipe_is_whole=dataset is None and model is None,
            objective=objective,
            folder=folder,
            first_outer_step=first_outer_step,
            inner_steps=inner_steps,
            policy=estimator.policy if estimator is not None else None,
            augmented_images=partial(_augmented_images, data, augmentation, policy, inner_steps),
            say=display.say,
            warn=display.warn,
        )
    return Run(
        recipe=recipe,
        groups=groups,
        full_processes=full,
        folder=folder,
        saver=saver,
        data=data,
        objective=objective,
        augmentation=augmentation,
        hosted=hosted,
        stack=stack,
        fixed_policy=policy,
        estimator=estimator,
        new_network=new_network,
        inner_steps=inner_steps,
        first_outer_step=first_outer_step,
        first_inner_step=first_inner_step,
        rewards_before=rewards_before,
        phases=Phases(groups.device),
        pauses=Pauses(groups, recipe.run.checkpoint_minutes),
        replacements=replacements,
        observers=observers,
        info=info,
    )


def open_recipes_objective(recipe: Recipe, schema: Schema, description: str) -> Objective:
    """The objective that a recipe names, if it fits the labels.

    Args:
        recipe: of the run.
        schema: of the data.
        description: of the data, in words.

    Raises:
        UserError: if it cannot be opened, or does not fit.
    """
    objective = open_objective(recipe.objective, len(schema.class_names), recipe.objective_args)
    if objective.multi_label != schema.multi_label:
        have, fit = (
            ("several labels", "multilabel") if schema.multi_label else ("one label", "classification")
        )
        raise UserError(
            f"objective={recipe.objective}: the images of {description} have {have} each; "
            f"use objective={fit}, or your own"
        )
    if objective.multi_label and mixes(recipe.augment):
        raise UserError(
            "augment.policy=mixup, augment.mixup, augment.cutmix: they need exactly one label per image, but this "
            "data has several"
        )
    return objective


def open_recipes_policy(recipe: Recipe, side: int, learn: bool, has_heldout: bool) -> AugmentationPolicy:
    """The policy that a run trains with, or that a search starts from.

    Args:
        recipe: of the run.
        side: the shorter side of the images, in pixels.
        learn: whether it is a search.
        has_heldout: whether there are images that score trajectories.

    Raises:
        UserError: if it cannot be opened, or a search cannot start from it.
    """
    policy = open_policy(recipe.augment, side)
    if not learn:
        return policy
    if not isinstance(policy, Policy):
        raise UserError(
            f"augment.policy={recipe.augment.policy}: the search starts from the uniform policy or a learned one; "
            "use `ohl_accel.train` to train with this one"
        )
    if not has_heldout:
        raise UserError(
            "data.heldout, data.heldout_split: the search needs one of them (images that score the trajectories)"
        )
    return policy


def _augmented_images(
    data: Data, augmentation: Augmentation, policy: AugmentationPolicy, inner_steps: int, outer_step: int
) -> Tensor:
    """As in `RunInfo`."""
    step = (outer_step + 1) * inner_steps - 1
    images, _ = data.train.__getitems__(range(augmentation.batch_size)[augmentation.own])
    batch = augmentation.batch(images, step)
    draw = BatchDraw(augmentation.seed, step, 0, augmentation.batch_size, augmentation.own)
    return policy.apply(batch.basic, draw)[0]


def _try_out(stack: Stack, data: Data, augmentation: Augmentation, groups: Groups) -> None:
    """Train all hosted trajectories at once on a blank batch, without effect.

    Raises:
        UserError: if that cannot work.
    """
    images = torch.zeros(len(range(augmentation.batch_size)[augmentation.own]), dtype=torch.uint8)
    images = images[:, None, None, None].expand(-1, data.schema.channels, *data.schema.size)
    labels = torch.zeros(len(images), dtype=torch.int64)
    if data.schema.multi_label:
        labels = torch.zeros(len(images), len(data.schema.class_names))
    inputs, targets, _ = augmentation.inputs(
        NoPolicy(), augmentation.batch(images, 0), labels, 0, trajectory=0
    )
    stack.try_out([(inputs, targets)] * len(groups.hosted))


def _first_network(
    recipe: Recipe, data: Data, groups: Groups, new_network: Callable[[], nn.Module], from_timm: bool
) -> tuple[nn.Module | None, nn.Module]:
    """(the whole network with its initial weights, what each trajectory copies).

    If trajectories are sharded, only the main process creates the whole network, in main memory; what is copied is
    its outline on the meta device.
    """
    if not groups.sharded:
        network = new_network()
        return network, network
    if not from_timm:
        raise UserError("model.shard: needs a timm network given by name, not one given as model")
    outline = outline_network(recipe.model, data.schema)
    return new_network() if groups.rank == 0 else None, outline


def _on_device(
    network: nn.Module, model: ModelSection, accelerator: Accelerator, groups: Groups
) -> nn.Module:
    """The network with Accelerate's precision, compiled if asked for, and on the device unless it is an outline."""
    prepared: nn.Module = accelerator.prepare_model(
        network, device_placement=not groups.sharded, evaluation_mode=True
    )
    if model.compile:
        prepared.compile()
    return prepared


def _open_folder(recipe: Recipe, accelerator: Accelerator) -> RunFolder | None:
    if not accelerator.is_main_process:
        return None
    return RunFolder(recipe.run.dir, recipe.run.resume == "auto", recipe.run.overwrite)


def _resume_or_begin(
    recipe: Recipe,
    folder: RunFolder | None,
    saver: Saver | None,
    data: Data,
    hosted: list[Trajectory],
    estimator: Estimator | None,
    policy: AugmentationPolicy,
    groups: Groups,
    display: Display,
) -> tuple[checkpoint.Position, dict[str, Any]]:
    """Resume from the newest whole checkpoint, if requested and there is one; otherwise write the first files.

    Returns:
        Where the run goes on, and `Replacements.state`.
    """

    def read() -> checkpoint.Contents | None:
        if folder is None or recipe.run.resume == "never":
            return None
        contents = checkpoint.newest_whole(folder / CHECKPOINTS, display.warn, groups.trajectories)
        if contents is None:
            return None
        check_recipe(contents, recipe, estimator)
        check_images(folder / HELDOUT_FILE, data)
        return contents

    contents = run_on_all_ranks(read)
    position = (0, 0)
    document = contents.document if contents is not None else {}
    own: dict[str, Any] = {key: document[key] for key in ("decoded", "decoded_within") if key in document}
    decoded = groups.broadcast_object(own)
    if groups.broadcast_object(contents is not None):
        position = checkpoint.restore(contents, hosted, estimator, groups)
        states = None
    else:
        states = list(checkpoint.collect(hosted, groups, apart=False))

    def begin() -> None:
        if saver is not None:
            saver.begin(None if states is None else iter(states), hosted[0].optimizer, policy, estimator)

    run_on_all_ranks(begin)
    return position, decoded


def _provenance(recipe: Recipe, data: Data) -> dict[str, object]:
    return {
        "data": recipe.data.path,
        "training_images": len(data.train),
        "heldout_images": len(data.heldout or ()),
        "network": recipe.model.name,
        "trajectories": recipe.outer.trajectories,
        "outer_steps": recipe.outer.steps,
        "outer_steps_done": 0,
        "seed": recipe.run.seed,
        "ohl_accel": __version__,
        "torch": torch.__version__,
    }


def _introduce(run: Run, accelerator: Accelerator, display: Display) -> None:
    recipe, groups, data = run.recipe, run.groups, run.data
    absent = presence_in_words(run)
    if absent is not None:
        display.warn(absent)
    slow = why_bf16_is_slow(accelerator.mixed_precision, accelerator.device)
    if slow is not None:
        display.warn(slow)
    height, width = data.schema.size
    parameters = sum(parameter.numel() for parameter in run.hosted[0].network.parameters())
    heldout = "no" if data.heldout is None else len(data.heldout)
    display.say(
        f"{recipe.data.path}: {len(data.train)} training and {heldout} held-out images of "
        f"{data.schema.channels} x {height} x {width}, {len(data.schema.class_names)} classes"
    )
    if data.skipped_files:
        display.say(f"other files in the training split, which were skipped: {data.skipped_files}")
    if data.copies:
        display.say(f"{data.copies} copies of held-out images do not train")
    processes = f"{groups.processes} {'process' if groups.processes == 1 else 'processes'}"
    layout = f"policy {recipe.augment.policy} on {processes}"
    if run.estimator is not None:
        layout = f"{groups.trajectories} trajectories in {groups.groups} x {groups.group_size} of {processes}"
    display.say(
        f"{recipe.model.name}: {parameters:,} parameters, precision {accelerator.mixed_precision}, {layout} "
        f"({groups.device.type})"
    )
    position = run.first_outer_step, run.first_inner_step
    display.say(
        f"{recipe.outer.steps} outer steps of {run.inner_steps} inner steps of {recipe.inner.batch_size} images, "
        f"run folder {recipe.run.dir}"
        + (f"; resuming after {checkpoint.in_words(position)}" if any(position) else "")
    )
