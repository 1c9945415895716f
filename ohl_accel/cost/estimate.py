"""The cost of a run: iterations as Table 4 counts them, operations, memory, hours and price.

Shapes: N trajectories, R of them hosted by a process, G processes of a group.
"""

from dataclasses import dataclass
from functools import cached_property

from torch import nn

from ohl_accel.cost.facts import Facts
from ohl_accel.cost.network import BACKWARD, NetworkNumbers, optimizer_share
from ohl_accel.distributed.layout import Layout, choose_groups
from ohl_accel.engine.trajectory import check_batch_size
from ohl_accel.recipe import Recipe

TABLE_4_BATCH = 1024
"""The batch to which Table 4 converts all iterations."""
AUTOAUGMENT = {
    "uoft-cs/cifar10": (15_000, 4_000, 120),
    "ILSVRC/imagenet-1k": (15_000, 6_000, 200),
}
"""AutoAugment's searches (section 4.2): child models, images that each of them is trained on, epochs."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that can be rented, and what is assumed of it."""

    name: str
    teraflops: float
    """Dense peak in bf16, from its data sheet; half of it is taken for float32, which runs as TF32."""
    gigabytes: int
    dollars: tuple[float, float]
    """Price of an hour: cheap and expensive offers, assumed."""


GPUS = (
    Gpu("A100", 312, 80, (1.0, 4.0)),
    Gpu("H100", 989, 80, (2.0, 7.0)),
    Gpu("RTX 4090", 165, 24, (0.3, 0.8)),
)
UTILIZATION = (0.05, 0.30)
"""Share of the peak that training reaches, assumed: small networks on small images the lower end, large ones on large
images the upper."""


@dataclass(frozen=True)
class Cost:
    """What a run takes."""

    recipe: Recipe
    facts: Facts
    network: NetworkNumbers
    layout: Layout
    optimizer_share: float
    learn: bool
    """Whether it is a search, with N trajectories; otherwise training with a fixed policy."""

    @property
    def trajectories(self) -> int:
        """N, or 1."""
        return self.layout.trajectories

    @property
    def steps_per_epoch(self) -> int:
        """Inner steps of an epoch: the last images that do not fill a batch wait for the next one."""
        return self.facts.training_images // self.recipe.inner.batch_size

    @property
    def inner_steps(self) -> int:
        """I, of an outer step."""
        asked = self.recipe.outer.inner_steps
        return self.steps_per_epoch if isinstance(asked, str) else asked

    @property
    def images(self) -> int:
        """Images that networks are trained on, in all trajectories."""
        recipe = self.recipe
        return self.trajectories * recipe.outer.steps * self.inner_steps * recipe.inner.batch_size

    @property
    def scored_images(self) -> int:
        """Held-out images that are scored, in all trajectories."""
        every = 1 if self.learn else self.recipe.train.validate_every
        return self.trajectories * -(-self.recipe.outer.steps // every) * self.facts.heldout_images

    @property
    def epochs(self) -> float:
        """Epochs of each trajectory."""
        return self.recipe.outer.steps * self.inner_steps / self.steps_per_epoch

    @property
    def iterations(self) -> float:
        """Iterations at batch 1,024 as Table 4 counts them: epochs x images, with the held-out ones, x N / 1,024."""
        return self.epochs * self.facts.counted_images * self.trajectories / TABLE_4_BATCH

    @property
    def autoaugment_iterations(self) -> float | None:
        """The same for AutoAugment's search on this dataset (Table 4); None for others, and for a part of it."""
        search = AUTOAUGMENT.get(self.recipe.data.path)
        if search is None or self.recipe.data.train_images is not None:
            return None
        children, images, epochs = search
        return children * images * epochs / TABLE_4_BATCH

    @property
    def flops(self) -> float:
        """Floating-point operations of the whole run, but for augmentation and the test."""
        forward = (1 + BACKWARD) * self.images + self.scored_images
        return forward * self.network.forward_flops

    @cached_property
    def memory(self) -> dict[str, float]:
        """Bytes of a process by purpose; the largest process, without what PyTorch itself takes."""
        hosted, size = len(self.layout.hosted), self.layout.group_size
        weights, parameters = self.network.state_bytes, 4 * self.network.parameters
        part = 1 / size if self.recipe.model.shard else 1.0
        copies = 2 if self.learn and self.recipe.outer.average else 1
        half = 0.5 if self.recipe.run.mixed_precision == "bf16" else 1.0
        stacked = self.recipe.inner.stacked and size == 1
        ddp = size > 1 and not self.recipe.model.shard  # keeps the buckets of each network
        batch = self.recipe.inner.batch_size / size / self.recipe.inner.micro_batches
        return {
            "weights": hosted * copies * weights * part,
            "optimizer": hosted * self.optimizer_share * parameters * part,
            "gradients": (hosted if ddp or stacked else 1) * parameters * part,
            "activations": (hosted if stacked else 1) * batch * self.network.activation_bytes * half,
        }

    def gpu_hours(self, gpu: Gpu) -> tuple[float, float]:
        """Hours of one GPU, at the upper and at the lower end of `UTILIZATION`."""
        peak = gpu.teraflops * 1e12 * (1 if self.recipe.run.mixed_precision == "bf16" else 0.5)
        low, high = (self.flops / (peak * share) / 3600 for share in reversed(UTILIZATION))
        return low, high

    @property
    def headline(self) -> str:
        """The cost in a line, for the head of a recipe."""
        gpu = GPUS[0]
        low, high = self.gpu_hours(gpu)
        return (
            f"{self.iterations:.3g} iterations at batch 1,024, {self.flops:.2g} FLOP: "
            f"{between(low, high)} hours of one {gpu.name}"
        )


def between(low: float, high: float) -> str:
    """A range in two significant digits, without exponents, such as `1.1 to 6.6`."""
    if high < 0.01:
        return "less than 0.01"
    return " to ".join(f"{float(f'{value:.2g}'):,.10g}" for value in (max(low, 0.001), high))


def estimate(
    recipe: Recipe, facts: Facts, processes: int = 1, *, learn: bool = True, model: nn.Module | None = None
) -> Cost:
    """The cost of a run on a number of processes.

    Args:
        recipe: of the search, or of training with a fixed policy (`engine.train.for_one_network`).
        facts: of its data.
        processes: W.
        learn: whether it is a search.
        model: the user's own network, instead of the recipe's.

    Raises:
        UserError: if the network, the optimizer or the layout cannot work.
    """
    outer = recipe.outer
    groups = choose_groups(outer.trajectories, processes, outer.groups)
    layout = Layout(outer.trajectories, processes, 0, groups)
    check_batch_size(recipe.inner, layout.group_size)
    return Cost(
        recipe=recipe,
        facts=facts,
        network=NetworkNumbers.of(recipe.model, facts.schema, model),
        layout=layout,
        optimizer_share=optimizer_share(recipe.inner.optimizer),
        learn=learn,
    )
