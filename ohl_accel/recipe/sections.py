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
        return _expand_home(value)
    raise ValueError("must be the name of a space, a YAML file, or the contents of one")


def _expand_home(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str) else value


Number = BeforeValidator(_no_bool)
Whole = Annotated[int, Number]
Real = Annotated[float, Number]
PathOrName = Annotated[str, BeforeValidator(_expand_home), Field(min_length=1)]
Channels = tuple[Real, ...]
Trackers = Annotated[
    tuple[Literal["wandb", "tensorboard", "trackio"], ...], BeforeValidator(_listed), AfterValidator(_once)
]
"""Dashboards that a run writes to; a single one needs no brackets."""
Part = Annotated[int | float | None, BeforeValidator(_part)]
"""A part of a split: a number of images, or a fraction of them."""


Noted: TypeAlias = tuple[type[BaseModel], str]
"""A field: its section and its name. No section occurs twice in a recipe."""


class Section(BaseModel):
    """Frozen; unknown keys are errors.

    If a dict is given as the context of a validation, valid fields are recorded in it, so that rules between fields can
    use them even if others are wrong.
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

    dir: PathOrName
    """The run folder; created if missing, an error if not empty (see resume, overwrite)."""
    project: str = Field(default="ohl-accel", pattern=r"^[\w.-]+$")
    """Project name on the dashboards (`track`), shared by runs to be compared."""
    name: str | None = Field(default=None, min_length=1)
    """Name of the run on the dashboards; None: the name of the run folder."""
    group: str | None = Field(default=None, min_length=1)
    """Group of the run in W&B, such as the runs of one setting with several seeds; `compare` sets it."""
    tags: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Tags of the run in W&B, besides its data, network and estimator or policy."""
    seed: Annotated[Whole, Field(ge=0)] = 0
    """Seed of all randomness of the run."""
    resume: Literal["never", "auto"] = "never"
    """auto: resume from the last checkpoint in `dir`, or start anew if there is none."""
    overwrite: bool = False
    """Replace the files of an earlier run in `dir`."""
    dry: bool = False
    """Check recipe, data, network and layout, say what the run would cost, and end: nothing is trained or written."""
    checkpoint_every: Annotated[Whole, Field(ge=1)] = 1
    """Outer steps between two checkpoints (the last step is always saved)."""
    checkpoint_minutes: Annotated[Real, Field(gt=0)] | None = None
    """Minutes after which a checkpoint is written inside an outer step; None: only at a signal."""
    grace: Annotated[Real, Field(gt=0)] = 25.0
    """Seconds from a signal (SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2) until a process ends even if it could not save
    by then; torchrun and Kubernetes kill after 30."""
    keep_checkpoints: Annotated[Whole, Field(ge=1)] = 2
    """How many of the newest checkpoints stay on disk."""
    mixed_precision: Annotated[Literal["no", "bf16"] | None, BeforeValidator(_precision)] = None
    """None: what Accelerate's config file or flag says."""
    cpu_threads: Annotated[Whole, Field(ge=1)] = 1
    """Threads of each CPU process. Results depend on it; to use more cores, prefer more processes."""
    deterministic: bool = False
    """On CUDA: only deterministic kernels (slower). The CPU is always deterministic."""
    timeout: Annotated[Real, Field(gt=0)] = 1800.0
    """Seconds after which a process that waits for another one gives up."""
    on_loss: Literal["stop", "shrink"] = "stop"
    """When a search is started again with fewer processes than it had (docs/many_nodes.md): stop: they host all
    trajectories, with the same result; shrink: each group hosts as many as before, so fewer take part in the outer
    steps until the processes are back."""
    display: Literal["auto", "plain", "quiet", "json"] = "auto"
    """auto: bars on a terminal, else plain: a line for each outer step; quiet: warnings and the summary; json: JSON
    objects, one per line."""
    report: bool = True
    """Draw `report.html` at the end, which takes seconds; `ohl-accel report` draws it at any time."""


class DataSection(Section):
    """Which images, which labels, and what is held out."""

    path: PathOrName
    """A Hub dataset id, a folder, a file, or `sklearn:digits`."""
    name: str | None = None
    """Configuration of the dataset, if it has several."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    streaming: bool = False
    """Read the training images where they are (parquet or tar shards, image files; local or on the Hub), as they
    are needed, instead of copying the dataset to this machine first."""
    shuffle_window: Annotated[Whole, Field(ge=1)] = 16384
    """Shuffle buffer of a stream: number of images, over the whole group, from which those of a batch are sampled. They
    are held undecoded."""
    retries: Annotated[Whole, Field(ge=0)] = 5
    """For streams: how often a failed read is retried, after 0.5, 1, 2, 4, ... seconds."""
    train_split: str = "train"
    """The split that held-out and training images come from."""
    test_split: str | None = "test"
    """None: there is no test split, and the run ends without a test accuracy."""
    test_path: PathOrName | None = None
    """Where the test split is, if not in `path`."""
    heldout: Part = None
    """Count or fraction of the training images, stratified by label, that score the trajectories."""
    heldout_split: str | None = None
    """Instead of `heldout`: a separate split that scores the trajectories."""
    train_images: Part = None
    """Count or fraction of the remaining training images to train on, stratified by label; None: all."""
    image_column: str | None = None
    """None: the only image column."""
    label_column: str | None = None
    """None: the only label column, or the one named `label`."""
    image_size: Annotated[tuple[int, int] | None, BeforeValidator(_image_size)] = None
    """Side in pixels, or [height, width], to which images are resized; None: all have the same size already."""
    crop_mode: Literal["center", "squash"] = "center"
    """How images of another shape are resized: `center` fills `image_size` and crops the excess, `squash` changes the
    aspect ratio."""
    crop_pct: Annotated[Real, Field(gt=0, le=1)] = 1.0
    """Fraction of the resized image's side that `center` keeps: 0.875 is the usual 224 out of 256."""
    channels: Literal[1, 3] | None = None
    """1: grey, 3: RGB; None: 1 if the images are grey, else 3."""
    mean: Channels | None = None
    """Mean of each channel in 0..1; None: measured on the training images."""
    std: Channels | None = None
    """Standard deviation of each channel in 0..1; None: measured on the training images."""
    in_memory: Literal["auto"] | bool = "auto"
    """Decode once and keep the pixels; auto: if a split takes up to 1 GiB. Training images are never kept if they are
    streamed or have `augment.random_resized_crop`."""
    workers: Annotated[Whole, Field(ge=0)] = 2
    """Decoding processes for each training process, for images that are not in memory."""
    eval_batch_size: Annotated[Whole, Field(ge=1)] = 500
    """Batch size of validation and test."""
    max_corrupt: Annotated[Real, Field(ge=0, lt=1)] | None = None
    """Fraction of the images that may be undecodable: each is replaced by another one, the same on every trajectory,
    and logged. None: 0.01 for a stream; otherwise the first undecodable image ends the run."""

    @property
    def corrupt_fraction(self) -> float:
        """Fraction of the images that may be undecodable, in 0..1."""
        return (0.01 if self.streaming else 0.0) if self.max_corrupt is None else self.max_corrupt


class ModelSection(Section):
    """The network: any of timm's, or of `ohl_accel.models`."""

    name: str = Field(min_length=1)
    """A name of `timm.list_models()`, or one of `ohl_accel.models`, such as `resnet18_cifar`."""
    args: dict[str, Any] = {}
    """Additional arguments of `timm.create_model`; classes and channels are set from the data."""
    channels_last: bool = False
    """Keep weights and images in the channels-last memory format, which is faster for convolutions on GPUs."""
    compile: bool = False
    """`torch.compile` the network."""
    shard: bool = False
    """Shard weights, gradients and optimizer state over the processes of a group (FSDP2), for networks that do
    not fit on one device; false: each process holds everything (DistributedDataParallel)."""


class OptimizerSection(Section):
    """The inner optimizer, by timm's name."""

    name: str = "sgd"
    """A name of `timm.optim.list_optimizers()`."""
    lr: Annotated[Real, Field(gt=0)]
    """The initial learning rate of the schedule, after the warm-up."""
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD and of other optimizers that have one."""
    nesterov: bool = False
    """Nesterov's momentum; for `sgd` only."""
    weight_decay: Annotated[Real, Field(ge=0)] = 0.0
    """As the optimizer defines it: an L2 penalty for SGD, decoupled for AdamW."""
    decay_norm_and_bias: bool = True
    """Whether weight decay also applies to biases and normalization weights (plain SGD, as in the paper)."""
    args: dict[str, Any] = {}
    """Additional arguments of the optimizer."""


class ScheduleSection(Section):
    """The inner learning rate over the whole run, set before each inner step."""

    name: Literal["cosine", "multistep", "constant"] = "cosine"
    """How the learning rate decays after the warm-up."""
    warmup_epochs: Annotated[Real, Field(ge=0)] = 0.0
    """Epochs of linear warm-up from `warmup_lr`, before the schedule itself."""
    warmup_lr: Annotated[Real, Field(ge=0)] = 0.0
    """Learning rate at the start of the warm-up."""
    min_lr: Annotated[Real, Field(ge=0)] = 0.0
    """Learning rate at the end of the cosine."""
    milestones: tuple[Annotated[Real, Field(gt=0)], ...] = ()
    """Epochs, counted after the warm-up, at which multistep multiplies the rate by `decay_rate`."""
    decay_rate: Annotated[Real, Field(gt=0, le=1)] = 0.1
    """What multistep multiplies the rate by at each milestone."""


class InnerSection(Section):
    """The inner loop: SGD on the training images (Eq 2)."""

    batch_size: Annotated[Whole, Field(ge=1)]
    """B: images per inner step of one trajectory, over all processes of its group."""
    optimizer: OptimizerSection
    """The optimizer of the network."""
    schedule: ScheduleSection = ScheduleSection()
    """How the learning rate changes."""
    micro_batches: Annotated[Whole, Field(ge=1)] = 1
    """Parts in which each process trains on its images of a batch, one after another, to need less memory (gradient
    accumulation). Batch normalization sees one part at a time."""
    stacked: bool = False
    """Train all trajectories of a process at once, by `torch.vmap`, for small networks that leave a GPU idle: the same
    results to rounding, R times the memory for activations. It has no effect where a process hosts one trajectory or
    shares its batches; a network that cannot be mapped is refused."""
    clip_grad: Annotated[Real, Field(gt=0)] | None = None
    """Largest norm of the gradient of all weights together; None: gradients are not clipped."""
    auxiliary_weight: Annotated[Real, Field(ge=0)] = 0.4
    """Weight of the loss of auxiliary heads, for networks that return (logits, auxiliary logits) in training."""


class OuterSection(Section):
    """The outer loop: trajectories and the policy's update (Algorithm 1)."""

    trajectories: Annotated[Whole, Field(ge=1)] = 8
    """N: how many copies of the network train side by side."""
    groups: Annotated[Whole, Field(ge=1)] | None = None
    """Groups of processes; None: the number of trajectories or of processes, whichever is smaller."""
    steps: Annotated[Whole, Field(ge=1)]
    """T_max: number of outer steps."""
    inner_steps: Annotated[Literal["epoch"] | int, BeforeValidator(_inner_steps)] = "epoch"
    """I: inner steps per outer step, or `epoch`."""
    estimator: PathOrName = "reinforce"
    """What turns a finished outer step into a step on the policy: `reinforce` (Eq 6 with Adam), another one of
    `ohl_accel.policy.estimators.ESTIMATORS`, or a class of your own, `package.module:Name` or `path/to/file.py:Name`,
    derived from `ohl_accel.policy.estimators.Estimator`."""
    estimator_args: dict[str, Any] = {}
    """Additional arguments of the estimator."""
    average: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    """Decay per inner step of the exponential average of a trajectory's weights that is scored in their place, with
    much less noise; 0: the weights themselves are scored, as in the paper."""
    keep_average: bool = False
    """Whether the finished network has the averaged weights (EMA), in training with a fixed policy too."""
    adopt: Literal["state", "weights"] = "state"
    """What other trajectories take over from the winner: weights, buffers and optimizer state, or no optimizer state,
    so that each continues with its own."""
    lr: Annotated[Real, Field(ge=0)] = 0.05
    """eta_theta: learning rate of the policy; 0 freezes it."""
    betas: tuple[Annotated[Real, Field(ge=0, lt=1)], Annotated[Real, Field(ge=0, lt=1)]] = (0.5, 0.999)
    """Betas of Adam on theta."""


class TrainSection(Section):
    """Training with a fixed policy (`ohl_accel.train`); the search ignores it."""

    match: Literal["images", "compute"] = "images"
    """images: train on as many images as one trajectory of the search; compute: on as many as all N."""
    validate_every: Annotated[Whole, Field(ge=1)] = 1
    """Outer steps between two validations on the held-out images (the last step always validates)."""


class RandomResizedCropSection(Section):
    """torchvision's RandomResizedCrop to `data.image_size`."""

    scale: tuple[Annotated[Real, Field(gt=0, le=1)], Annotated[Real, Field(gt=0, le=1)]] = (0.08, 1.0)
    """Minimum and maximum fraction of the image's area."""
    ratio: tuple[Annotated[Real, Field(gt=0)], Annotated[Real, Field(gt=0)]] = (3 / 4, 4 / 3)
    """Minimum and maximum aspect ratio, width over height."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter that resizes the crop; torchvision's default is bilinear."""


class AugmentSection(Section):
    """The policy, the basic transforms before it, and Cutout after it (section 4.1)."""

    policy: PathOrName | None = None
    """A name of `ohl_accel.policy.baselines`, a policy.json, a run folder, a Hub id (`user/name@revision`) or
    `zoo:NAME`. `train` applies it; the search starts from it (None: from the uniform policy)."""
    space: Annotated[str | dict[str, Any] | None, BeforeValidator(_space)] = None
    """The search space of the policy: `paper`, `paper-identity`, or your own YAML file (see
    `ohl_accel.operations.space_file`); run folders hold the file's contents instead of its name. None: the space of
    the policy, if that is a learned one; otherwise `paper`."""
    policy_args: dict[str, Any] = {}
    """Arguments of torchvision's policies and of mixup, such as `{magnitude: 5}`."""
    random_resized_crop: RandomResizedCropSection | None = None
    """Random crop of each training image when it is decoded; None: training images are cropped like all others."""
    flip: bool = True
    """Horizontal flip with probability 1/2."""
    pad_crop: Annotated[Whole, Field(ge=0)] = 0
    """Pixels of zero padding on each side, before a random crop back to the size; 0: off."""
    cutout: Annotated[Whole, Field(ge=0)] = 0
    """Side of the square that Cutout blanks, in pixels; 0: off."""
    random_erasing: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """Probability that a rectangle of a normalized image is set to 0, after the policy (timm's `reprob`); 0: off."""
    mixup: Annotated[Real, Field(ge=0)] = 0.0
    """alpha of mixup, which comes last, whatever the policy: images and labels of a batch are mixed; 0: off."""
    cutmix: Annotated[Real, Field(ge=0)] = 0.0
    """alpha of CutMix, likewise; 0: off. With both, each batch gets one of them, as likely as the other."""


class HubSection(Section):
    """Publication on the Hugging Face Hub at the end of a run (`ohl_accel.hub`).

    There is no field for a token: log in with `hf auth login`, or set HF_TOKEN.
    """

    repo: str | None = None
    """`user/name`; created if missing. None: nothing is published."""
    private: bool = False
    """Make the repository private. A private one is never made public."""
    gated: Literal["auto", "manual"] | None = None
    """Users must request access before they can download: auto grants every request, manual leaves each to you."""
    policy_only: bool = False
    """Publish the learned policy without the network."""
    tags: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Additional tags of the model card."""
    license: str | None = None
    """License of the network and the policy, in the Hub's spelling, such as `apache-2.0`."""
    version: str | None = Field(default=None, min_length=1)
    """A git tag for the commit, such as `v1`, which can then be used as a `revision`."""
    patience: Annotated[Real, Field(ge=0)] = 300.0
    """Total time in seconds to wait between attempts before an upload is given up."""
