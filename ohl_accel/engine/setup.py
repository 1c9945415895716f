"""Set a run up: from a recipe and a launch to everything that takes part, checked before training."""

import copy
import json
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, InitProcessGroupKwargs
from torch import nn

from ohl_accel import __version__
from ohl_accel.data import Data, open_data
from ohl_accel.distributed.groups import Groups
from ohl_accel.distributed.launch import check_launch, choose_interface, ending_in_time, run_on_all_ranks
from ohl_accel.engine import checkpoint
from ohl_accel.engine.augment import Augmentation
from ohl_accel.engine.network import create_network, outline_network
from ohl_accel.engine.phases import Phases
from ohl_accel.engine.run import Run
from ohl_accel.engine.trajectory import Trajectory
from ohl_accel.errors import UserError
from ohl_accel.hub.access import check_access
from ohl_accel.hub.transfer import publish
from ohl_accel.observers.dashboards import Dashboards, check_installed
from ohl_accel.observers.display import Display
from ohl_accel.policy import Policy
from ohl_accel.policy.baselines import open_policy, resolve_augment
from ohl_accel.policy.estimators import OuterOptimizer
from ohl_accel.policy.protocol import AugmentationPolicy
from ohl_accel.recipe import ModelSection, Recipe, RunSection
from ohl_accel.run_folder import folder as run_folder
from ohl_accel.run_folder.folder import RunFolder
from ohl_accel.run_folder.metrics import keep_lines_before


def join_launch(path: str, overrides: Sequence[str]) -> tuple[Recipe, Accelerator]:
    """Read the recipe and join the launch that this process belongs to.

    Raises:
        UserError: for a recipe or a launch that cannot work.
    """
    try:
        recipe = Recipe.load(path, overrides)
    except UserError:
        start_accelerator(None)  # so that processes agree on what to say, and one says it
        run_on_all_ranks(lambda: Recipe.load(path, overrides))
        raise
    accelerator = start_accelerator(recipe.run)
    run_on_all_ranks(lambda: recipe)
    return recipe, accelerator


def execute(
    recipe: Recipe, accelerator: Accelerator, loop: Callable[[Run, Display], None], learn_policy: bool
) -> None:
    """Prepare a run, go through its loop from where it stands, and finish it.

    Args:
        recipe: of the run.
        accelerator: of the launch.
        loop: does every outer step that is still to come.
        learn_policy: whether the policy is learned (the search) or fixed (training).

    Raises:
        UserError: if it cannot work; before training begins wherever that can be known.
        RunFailedError: if it cannot go on.
    """
    with Display(accelerator.is_main_process, recipe.run.display) as display:
        run = prepare(recipe, accelerator, display, learn_policy)
        folder = run.folder
        if folder is not None:
            for name in (run_folder.METRICS_FILE, run_folder.REPLACED_FILE):
                keep_lines_before(folder / name, run.first_outer_step)
            run.dashboards = Dashboards(run.recipe, folder, run.first_outer_step, display)
        display.start(run.first_outer_step, run.recipe.outer.steps, run.inner_steps)
        try:
            loop(run, display)
            run.finish(display)
        except BaseException:
            if run.dashboards is not None:
                run.dashboards.end(failed=True)
            raise
        if folder is not None:
            if recipe.hub.repo is not None:
                publish(folder.path, recipe.hub, display)
            folder.release()


def start_accelerator(section: RunSection | None) -> Accelerator:
    """Join the launch: device, precision, process group. Without a run section, by defaults.

    Raises:
        UserError: for processes that do not see each other, or a precision that cannot be had.
    """
    timeout = timedelta(seconds=section.timeout if section else 1800)
    choose_interface()
    try:
        with ending_in_time(timeout):
            accelerator = Accelerator(
                cpu=not torch.cuda.is_available(),
                mixed_precision=section.mixed_precision if section else None,
                step_scheduler_with_optimizer=False,
                # a network uses each weight once: a cache would only keep a copy of all, in bf16, to its end
                kwargs_handlers=[
                    InitProcessGroupKwargs(timeout=timeout),
                    AutocastKwargs(cache_enabled=False),
                ],
            )
    except ValueError as error:
        raise UserError(f"Accelerate cannot start: {error}") from error
    check_launch(accelerator.num_processes)
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(
            f"mixed precision {accelerator.mixed_precision!r} is not supported (its loss scale would be shared by "
            "all trajectories): use bf16 or no, by run.mixed_precision or in Accelerate's config"
        )
    return accelerator


def prepare(recipe: Recipe, accelerator: Accelerator, display: Display, learn_policy: bool) -> Run:
    """Check and build everything; nothing of an earlier run is touched before all of it works.

    Args:
        recipe: of the run.
        accelerator: from `start_accelerator`.
        display: for what is said at the start.
        learn_policy: whether the policy is learned (the search) or fixed (training).

    Raises:
        UserError: if the recipe, the data, the network, the layout or the run folder cannot work.
    """
    datasets.disable_progress_bars()
    configure_torch(recipe.run, accelerator.device)
    groups = Groups.build(
        trajectories=recipe.outer.trajectories,
        processes=accelerator.num_processes,
        rank=accelerator.process_index,
        device=accelerator.device,
        timeout=timedelta(seconds=recipe.run.timeout),
        groups=recipe.outer.groups,
        sharded=recipe.model.shard,
    )
    _check_batch_size(recipe, groups)
    run_on_all_ranks(lambda: check_installed(recipe.track))
    run_on_all_ranks(lambda: _check_hub(recipe, accelerator, display))
    folder = run_on_all_ranks(lambda: _open_folder(recipe, accelerator))
    data = run_on_all_ranks(lambda: open_data(recipe), one_first=True, long=True)
    side = min(data.schema.size)
    policy = run_on_all_ranks(lambda: _open_policy(recipe, data, side, learn_policy), one_first=True)
    recipe = data.resolve(recipe).with_values(
        run={"mixed_precision": accelerator.mixed_precision},
        augment=resolve_augment(recipe.augment, side).model_dump(),
    )
    steps_per_epoch = len(data.train) // recipe.inner.batch_size
    inner_steps = steps_per_epoch if recipe.outer.inner_steps == "epoch" else recipe.outer.inner_steps
    own_size = recipe.inner.batch_size // groups.group_size
    augmentation = run_on_all_ranks(
        lambda: Augmentation(
            recipe.augment,
            data.mean,
            data.std,
            recipe.run.seed,
            recipe.inner.batch_size,
            slice(groups.data_rank * own_size, (groups.data_rank + 1) * own_size),
            accelerator.device,
            len(data.schema.class_names),
        )
    )

    def trajectory_of(number: int, network: nn.Module) -> Trajectory:
        total_steps = recipe.outer.steps * inner_steps
        return Trajectory(number, network, recipe, steps_per_epoch, total_steps, augmentation, accelerator)

    hosted = _begin_trajectories(trajectory_of, recipe, data, accelerator, groups)
    outer_optimizer = None
    if learn_policy and isinstance(policy, Policy):
        policy = Policy(policy.theta, _provenance(recipe, data), space=policy.space)
        outer_optimizer = OuterOptimizer(policy, recipe.outer.lr, recipe.outer.betas)
    phases = Phases(groups.device)
    run = Run(
        recipe, groups, folder, data, augmentation, hosted, policy, outer_optimizer, inner_steps, 0, phases
    )
    _resume_or_begin(run)
    _introduce(run, accelerator, display)
    return run


def _open_policy(recipe: Recipe, data: Data, side: int, learn_policy: bool) -> AugmentationPolicy:
    policy = open_policy(recipe.augment, side)
    if not learn_policy:
        return policy
    if not isinstance(policy, Policy):
        raise UserError(
            f"augment.policy={recipe.augment.policy}: the search starts from the uniform policy or a learned one; "
            "`ohl_accel.train` trains with this one"
        )
    if data.heldout is None:
        raise UserError(
            "data.heldout, data.heldout_split: the search needs one of them (images that score the trajectories)"
        )
    return policy


def configure_torch(section: RunSection, device: torch.device) -> None:
    """Threads on the CPU, kernels on CUDA, as the recipe says."""
    if device.type == "cpu":
        torch.set_num_threads(section.cpu_threads)
    elif section.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    else:
        torch.backends.cudnn.benchmark = True


def _begin_trajectories(
    make: Callable[[int, nn.Module], Trajectory],
    recipe: Recipe,
    data: Data,
    accelerator: Accelerator,
    groups: Groups,
) -> list[Trajectory]:
    """The hosted trajectories, all with the same first weights, on this process's device.

    Where they are sharded, the main process alone makes the whole network, in main memory, and hands it out.

    Args:
        make: a trajectory out of its number and its network.
        recipe, data, accelerator, groups: of the run.
    """
    model, schema, seed = recipe.model, data.schema, recipe.run.seed

    def build() -> tuple[nn.Module | None, nn.Module]:
        if not groups.sharded:
            network = create_network(model, schema, seed)
            return network, network
        outline = outline_network(model, schema)
        return create_network(model, schema, seed) if groups.rank == 0 else None, outline

    first, pattern = run_on_all_ranks(build, one_first=True)
    hosted = run_on_all_ranks(
        lambda: [
            make(number, _placed(copy.deepcopy(pattern), model, accelerator, groups))
            for number in groups.hosted
        ]
    )
    for trajectory in hosted:
        trajectory.join(groups)
    if groups.sharded:
        groups.broadcast_parameters([trajectory.network for trajectory in hosted], first)
    return hosted


def _placed(network: nn.Module, model: ModelSection, accelerator: Accelerator, groups: Groups) -> nn.Module:
    """The network with Accelerate's precision, compiled if asked for, and on the device unless it is an outline."""
    prepared: nn.Module = accelerator.prepare_model(
        network, device_placement=not groups.sharded, evaluation_mode=True
    )
    if model.compile:
        prepared.compile()
    return prepared


def _check_batch_size(recipe: Recipe, groups: Groups) -> None:
    batch_size = recipe.inner.batch_size
    if batch_size % groups.group_size:
        nearest = batch_size - batch_size % groups.group_size
        raise UserError(
            f"inner.batch_size={batch_size} cannot be cut into equal parts for the {groups.group_size} processes of "
            f"a group: use {nearest or groups.group_size} or {nearest + groups.group_size}"
        )


def _check_hub(recipe: Recipe, accelerator: Accelerator, display: Display) -> None:
    if accelerator.is_main_process and recipe.hub.repo is not None:
        check_access(recipe.hub, display.warn)


def _open_folder(recipe: Recipe, accelerator: Accelerator) -> RunFolder | None:
    if not accelerator.is_main_process:
        return None
    return RunFolder(recipe.run.dir, recipe.run.resume == "auto", recipe.run.overwrite)


def _resume_or_begin(run: Run) -> None:
    """Go on from the last checkpoint, if that is asked for and there is one; else write the first files."""
    folder, recipe = run.folder, run.recipe

    def read() -> checkpoint.Contents | None:
        if folder is None or recipe.run.resume == "never":
            return None
        place = checkpoint.latest(folder / run_folder.CHECKPOINTS)
        if place is None:
            return None
        contents = checkpoint.read(place, recipe)
        _check_same_images(folder / run_folder.HELDOUT_FILE, run.data)
        return contents

    contents = run_on_all_ranks(read)
    if run.groups.broadcast_object(contents is not None):
        run.first_outer_step = checkpoint.restore(contents, run.hosted, run.outer_optimizer, run.groups)
    else:
        state = checkpoint.collect(run.hosted[0], run.groups)
        if folder is not None:
            folder.clear()
            checkpoint.save(folder / run_folder.CHECKPOINTS, 0, state, run.outer_optimizer, recipe)
            if isinstance(run.policy, Policy):
                run.policy.save(folder / run_folder.POLICY_FILE)
    if folder is not None:
        folder.write_text(run_folder.RECIPE_FILE, recipe.to_yaml())
        if run.data.record:
            folder.write_json(run_folder.HELDOUT_FILE, run.data.record)


def _check_same_images(file: Path, data: Data) -> None:
    """Refuse to go on with a stream whose images, labels or order are not those the run began with."""
    then = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for key, images in (("fingerprint", data.train), ("heldout_fingerprint", data.heldout)):
        if images is not None and then.get(key) != data.record.get(key):
            raise UserError(
                f"run.dir={file.parent} holds a run on other images: those of {images.description} have changed "
                "since it began; give the same files to go on with it, or choose another run.dir"
            )


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
    height, width = data.schema.size
    parameters = sum(parameter.numel() for parameter in run.hosted[0].network.parameters())
    heldout = "no" if data.heldout is None else len(data.heldout)
    display.say(
        f"{recipe.data.path}: {len(data.train)} training and {heldout} held-out images of "
        f"{data.schema.channels} x {height} x {width}, {len(data.schema.class_names)} classes"
    )
    processes = f"{groups.processes} {'process' if groups.processes == 1 else 'processes'}"
    layout = f"policy {recipe.augment.policy} on {processes}"
    if run.outer_optimizer is not None:
        layout = f"{groups.trajectories} trajectories in {groups.groups} x {groups.group_size} of {processes}"
    display.say(
        f"{recipe.model.name}: {parameters:,} parameters, precision {accelerator.mixed_precision}, {layout} "
        f"({groups.device.type})"
    )
    display.say(
        f"{recipe.outer.steps} outer steps of {run.inner_steps} inner steps of {recipe.inner.batch_size} images, "
        f"run folder {recipe.run.dir}"
        + (f"; going on after outer step {run.first_outer_step}" if run.first_outer_step else "")
    )
