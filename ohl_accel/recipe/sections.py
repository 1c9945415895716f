"""The sections of a recipe: every field with its type, range, default and meaning."""

import os
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _part(value: Any) -> Any:
    if value is None or _is_positive(value):
        return value
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise ValueError("must be a count (a whole number from 1) or a fraction (between 0 and 1)")


def _inner_steps(value: Any) -> Any:
    if value == "epoch" or _is_positive(value):
        return value
    raise ValueError("must be 'epoch' or a whole number from 1")


def _image_size(value: Any) -> Any:
    sides = [value, value] if isinstance(value, int) else value
    if value is None:
        return None
    if isinstance(sides, list | tuple) and len(sides) == 2 and all(map(_is_positive, sides)):
        return tuple(sides)
    raise ValueError("must be a side in pixels, or [height, width]")


def _precision(value: Any) -> Any:
    return "no" if value is False else value  # YAML reads a bare `no` as false


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _once(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _space(value: Any) -> Any:
    if value is None or isinstance(value, dict) or (isinstance(value, str) and value):
        return _home(value)
    raise ValueError("must be the name of a space, a YAML file, or what such a file holds")


def _home(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str) else value


Number = BeforeValidator(_no_bool)
Whole = Annotated[int, Number]
Real = Annotated[float, Number]
Place = Annotated[str, BeforeValidator(_home), Field(min_length=1)]
Channels = tuple[Real, ...]
Trackers = Annotated[
    tuple[Literal["wandb", "tensorboard", "trackio"], ...], BeforeValidator(_listed), AfterValidator(_once)
]
"""Dashboards that a run writes to; a single one needs no brackets."""
Part = Annotated[int | float | None, BeforeValidator(_part)]
"""Of a split: how many images, or which fraction of them."""


Noted: TypeAlias = tuple[type[BaseModel], str]
"""A field: the section that has it, and its name. No section occurs twice in a recipe."""


class Section(BaseModel):
    """Frozen; unknown keys are errors.

    If a dict is given as the context of a validation, the fields that are right are noted in it, so that rules between
    fields can look at them although others are wrong.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _note(cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        validated = validate(value)
        if isinstance(info.context, dict) and info.field_name is not None:
            info.context[cls, info.field_name] = validated
        return validated


class RunSection(Section):
    """Where the run lives and how its processes behave."""

    dir: Place
    """The run folder; it is made if missing, and refused if it holds anything (see resume, overwrite)."""
    project: str = Field(default="ohl-accel", pattern=r"^[\w.-]+$")
    """Of the trackers: what runs to be compared have in common."""
    name: str | None = Field(default=None, min_length=1)
    """What trackers call the run; None: the name of the run folder."""
    seed: Annotated[Whole, Field(ge=0)] = 0
    """Keys every random draw of the run."""
    resume: Literal["never", "auto"] = "never"
    """auto: resume from the last checkpoint in `dir`, or start where there is none."""
    overwrite: bool = False
    """Replace the files of an earlier run in `dir`."""
    checkpoint_every: Annotated[Whole, Field(ge=1)] = 1
    """Outer steps between two checkpoints (the last step is always saved)."""
    keep_checkpoints: Annotated[Whole, Field(ge=1)] = 2
    """How many of the newest checkpoints stay on disk."""
    mixed_precision: Annotated[Literal["no", "bf16"] | None, BeforeValidator(_precision)] = None
    """None: what Accelerate's config file or flag says."""
    cpu_threads: Annotated[Whole, Field(ge=1)] = 1
    """Threads of each CPU process. Results depend on it; more processes are the better way to more cores."""
    deterministic: bool = False
    """On CUDA: only deterministic kernels (slower). The CPU always is."""
    timeout: Annotated[Real, Field(gt=0)] = 1800.0
    """Seconds after which a process that waits for another one gives up."""
    display: Literal["auto", "plain", "quiet", "json"] = "auto"
    """auto: bars on a terminal, else plain: a line for each outer step; quiet: warnings and the end; json: JSON
    objects, one in a line."""


class DataSection(Section):
    """Which images, which labels, and what is held out."""

    path: Place
    """A Hub dataset id, a folder, a file, or `sklearn:digits`."""
    name: str | None = None
    """Configuration of a dataset that has several."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    streaming: bool = False
    """Read the training images where they are (parquet or tar shards, image files; local or on the Hub), as they
    are needed, instead of copying the dataset to this machine first."""
    shuffle_window: Annotated[Whole, Field(ge=1)] = 16384
    """Of a stream: images, over the whole group, among which those of a batch are drawn. They are held undecoded."""
    retries: Annotated[Whole, Field(ge=0)] = 5
    """Of a stream: how often a read that failed is tried again, after 0.5, 1, 2, 4, ... seconds."""
    train_split: str = "train"
    """The split that held-out and training images come from."""
    test_split: str | None = "test"
    """None: there is no test split, and the run ends without a test accuracy."""
    test_path: Place | None = None
    """Where the test split is, if not in `path`."""
    heldout: Part = None
    """Count or fraction of the training images, stratified by label, that score the trajectories."""
    heldout_split: str | None = None
    """Instead of `heldout`: a split of its own that scores the trajectories."""
    train_images: Part = None
    """Count or fraction of the other training images that are trained on, stratified by label; None: all."""
    image_column: str | None = None
    """None: the only image column."""
    label_column: str | None = None
    """None: the only label column, or the one named `label`."""
    image_size: Annotated[tuple[int, int] | None, BeforeValidator(_image_size)] = None
    """Side, or [height, width], to which images are resized; None: all are of one size already."""
    crop_mode: Literal["center", "squash"] = "center"
    """How a resized image gets its shape: fill it and cut what is over, or change the aspect ratio."""
    crop_pct: Annotated[Real, Field(gt=0, le=1)] = 1.0
    """Share of the resized image's side that `center` keeps: 0.875 is the usual 224 out of 256."""
    channels: Literal[1, 3] | None = None
    """1 grey, 3 RGB; None: 1 if the images are grey, else 3."""
    mean: Channels | None = None
    """Mean of each channel in 0..1; None: measured on the training images."""
    std: Channels | None = None
    """Standard deviation of each channel in 0..1; None: measured on the training images."""
    in_memory: Literal["auto"] | bool = "auto"
    """Decode once and keep the pixels; auto: where a split takes up to 1 GiB. Never the training images of a stream,
    or those with `augment.random_resized_crop`."""
    workers: Annotated[Whole, Field(ge=0)] = 2
    """Decoding processes for each process that trains, where images are not in memory."""
    eval_batch_size: Annotated[Whole, Field(ge=1)] = 500
    """Images that a network scores at a time, in validation and in the test."""
    max_corrupt: Annotated[Real, Field(ge=0, lt=1)] | None = None
    """Fraction of the images that may be undecodable: each is replaced by another one, the same on every trajectory,
    and logged. None: 0.01 of a stream; otherwise the first undecodable image ends the run."""

    @property
    def corrupt_fraction(self) -> float:
        """Of the images, how many may be undecodable."""
        return (0.01 if self.streaming else 0.0) if self.max_corrupt is None else self.max_corrupt


class ModelSection(Section):
    """The network: any of timm's, or of `ohl_accel.models`."""

    name: str = Field(min_length=1)
    """A name of `timm.list_models()`, or `resnet18_cifar` or `resnet8_cifar`."""
    args: dict[str, Any] = {}
    """Further arguments of `timm.create_model`; classes and channels are set from the data."""
    channels_last: bool = False
    """Keep weights and images in the channels-last memory format, which is faster for convolutions on GPUs."""
    compile: bool = False
    """`torch.compile` the network."""
    shard: bool = False
    """Cut weights, gradients and optimizer state over the processes of a group (FSDP2), for networks that do
    not fit into one; false: each of them holds all (DistributedDataParallel)."""


class OptimizerSection(Section):
    """The inner optimizer, by timm's name."""

    name: str = "sgd"
    """A name of `timm.optim.list_optimizers()`."""
    lr: Annotated[Real, Field(gt=0)]
    """The learning rate that the schedule starts from, after a warm-up."""
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    """Of SGD and of other optimizers that have one."""
    nesterov: bool = False
    """Nesterov's momentum; for `sgd` only."""
    weight_decay: Annotated[Real, Field(ge=0)] = 0.0
    """As the optimizer defines it: an L2 penalty for SGD, decoupled for AdamW."""
    decay_norm_and_bias: bool = True
    """Whether weight decay also shrinks biases and normalization weights (plain SGD, as in the paper)."""
    args: dict[str, Any] = {}
    """Further arguments of the optimizer."""


class ScheduleSection(Section):
    """The inner learning rate over the whole run, set before each inner step."""

    name: Literal["cosine", "multistep", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    warmup_epochs: Annotated[Real, Field(ge=0)] = 0.0
    """Linear warm-up from `warmup_lr`, before the schedule itself."""
    warmup_lr: Annotated[Real, Field(ge=0)] = 0.0
    """Where the warm-up begins."""
    min_lr: Annotated[Real, Field(ge=0)] = 0.0
    """Where the cosine ends."""
    milestones: tuple[Annotated[Real, Field(gt=0)], ...] = ()
    """Epochs, counted after the warm-up, at which multistep multiplies the rate by `decay_rate`."""
    decay_rate: Annotated[Real, Field(gt=0, le=1)] = 0.1
    """What multistep multiplies the rate by at each milestone."""


class InnerSection(Section):
    """The inner loop: SGD on the training images (Eq 2)."""

    batch_size: Annotated[Whole, Field(ge=1)]
    """B: images of one inner step of one trajectory, over all processes of its group."""
    optimizer: OptimizerSection
    """What takes the steps."""
    schedule: ScheduleSection = ScheduleSection()
    """How the learning rate changes."""


class OuterSection(Section):
    """The outer loop: trajectories and the policy's update (Algorithm 1)."""

    trajectories: Annotated[Whole, Field(ge=1)] = 8
    """N."""
    groups: Annotated[Whole, Field(ge=1)] | None = None
    """Groups of processes; None: as many as there are trajectories or processes, the smaller."""
    steps: Annotated[Whole, Field(ge=1)]
    """T_max."""
    inner_steps: Annotated[Literal["epoch"] | int, BeforeValidator(_inner_steps)] = "epoch"
    """I: inner steps per outer step, or `epoch`."""
    estimator: Place = "reinforce"
    """What turns a finished outer step into a step on the policy: `reinforce` (Eq 6 with Adam), or a class of your
    own, `package.module:Name` or `path/to/file.py:Name`, derived from `ohl_accel.policy.estimators.Estimator`."""
    estimator_args: dict[str, Any] = {}
    """Further arguments of the estimator."""
    lr: Annotated[Real, Field(ge=0)] = 0.05
    """eta_theta; 0 freezes the policy."""
    betas: tuple[Annotated[Real, Field(ge=0, lt=1)], Annotated[Real, Field(ge=0, lt=1)]] = (0.5, 0.999)
    """Of Adam on theta."""


class TrainSection(Section):
    """Training with a fixed policy (`ohl_accel.train`); the search does not look at it."""

    match: Literal["images", "compute"] = "images"
    """images: train on as many images as one trajectory of the search; compute: on as many as all N."""
    validate_every: Annotated[Whole, Field(ge=1)] = 1
    """Outer steps between two looks at the held-out images (the last step always looks)."""


class RandomResizedCropSection(Section):
    """torchvision's RandomResizedCrop to `data.image_size`."""

    scale: tuple[Annotated[Real, Field(gt=0, le=1)], Annotated[Real, Field(gt=0, le=1)]] = (0.08, 1.0)
    """Least and greatest share of the image's area."""
    ratio: tuple[Annotated[Real, Field(gt=0)], Annotated[Real, Field(gt=0)]] = (3 / 4, 4 / 3)
    """Least and greatest width over height."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter that resizes what was cut out; torchvision's default is bilinear."""


class AugmentSection(Section):
    """The policy, and what surrounds it: basic transforms before, Cutout after (section 4.1)."""

    policy: Place | None = None
    """A name of `ohl_accel.policy.baselines`, a policy.json, a run folder or a Hub id (`user/name@revision`).
    `train` applies it; the search starts from it (None: from the uniform policy)."""
    space: Annotated[str | dict[str, Any] | None, BeforeValidator(_space)] = None
    """Operations that the policy is one over: `paper`, `paper-identity`, or a YAML file of your own (see
    `ohl_accel.operations.space_file`); run folders hold the file's contents instead of its name. None: a learned
    policy's own; otherwise `paper`."""
    policy_args: dict[str, Any] = {}
    """Arguments of torchvision's policies and of mixup, such as `{magnitude: 5}`."""
    random_resized_crop: RandomResizedCropSection | None = None
    """Cut a part out of each training image while it is decoded; None: training images are cropped as others are."""
    flip: bool = True
    """Horizontal flip with probability 1/2."""
    pad_crop: Annotated[Whole, Field(ge=0)] = 0
    """Zero-pad by so many pixels and crop back at random; 0: off."""
    cutout: Annotated[Whole, Field(ge=0)] = 0
    """Side of the square that Cutout blanks, in pixels; 0: off."""


class HubSection(Section):
    """Publication on the Hugging Face Hub at the end of a run (`ohl_accel.hub`).

    There is no field for a token: log in by `hf auth login`, or set HF_TOKEN.
    """

    repo: str | None = None
    """`user/name`; it is made if missing. None: nothing is published."""
    private: bool = False
    """Make the repository private. A private one is never made public."""
    gated: Literal["auto", "manual"] | None = None
    """Who may download must ask: auto lets everybody in who does, manual asks you each time."""
    policy_only: bool = False
    """Publish the learned policy without the network."""
    tags: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Further tags of the model card."""
    license: str | None = None
    """Of the network and the policy, in the Hub's spelling, such as `apache-2.0`."""
    version: str | None = Field(default=None, min_length=1)
    """A git tag for the commit, such as `v1`: what `revision` may then name."""
    patience: Annotated[Real, Field(ge=0)] = 300.0
    """Seconds that the waits between attempts add up to before an upload is given up."""
