"""Cost model of an outer step: bytes and messages from the layout of processes, seconds from three coefficients.

    seconds = alpha * sequential messages + beta * bytes over a node's link / its bandwidth
            + gamma * bytes copied in memory

The counts follow from `ohl_accel.distributed.groups` and from gloo's algorithms (a binomial tree for a broadcast, a
ring for a gather); alpha, beta and gamma are fitted to measured exchanges. "Machine" means a node, and a "column" is
a replica group: these names are keys of the measurements in benchmarks/results/scaling.json.

Shapes: X measured rows, 3 coefficients.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

BUCKET_BYTES = 25 * 2**20
NUM_OPERATIONS = 1296
_COPIES_OF_A_MESSAGE = 2
"""Into the kernel and out of it, in bytes copied per byte sent."""


@dataclass(frozen=True)
class Layout:
    """W processes in groups, on nodes of P processes each."""

    processes: int
    groups: int
    machine_size: int
    cores: float = math.inf
    """CPU cores shared by all processes; infinite if each process has its own."""

    @property
    def group_size(self) -> int:
        """G."""
        return self.processes // self.groups

    @property
    def machines(self) -> int:
        """M."""
        return self.processes // self.machine_size

    @property
    def per_core(self) -> float:
        """Processes that share a core, at least 1."""
        return max(1.0, self.processes / self.cores)


@dataclass(frozen=True)
class Work:
    """The work of an exchange."""

    messages: float
    """Number of sequential messages."""
    link_bytes: float
    """Bytes through the busiest link of a node, in the busier direction."""
    copied: float
    """Bytes copied in memory by all processes together."""
    copied_in_turn: float
    """Bytes of these that are copied sequentially."""

    def copied_by_a_core(self, layout: Layout) -> float:
        """Bytes copied by the busiest core."""
        return max(self.copied_in_turn, self.copied / min(layout.cores, layout.processes))


def adopt(layout: Layout, size: float, ring: bool = False) -> Work:
    """`Groups.adopt` for `size` bytes of state, which each node receives once.

    With gloo's tree the winner's node sends them log2(M) times; with a ring, like NCCL's, once.
    """
    if layout.machines == 1:
        return _columns(layout, size, scattered=layout.processes - layout.group_size)
    processes, per_node, machines = layout.processes, layout.machine_size, layout.machines
    inside = _depth(per_node) if layout.group_size < per_node else 0  # on the winner's node, before it sends
    steps = inside + (machines - 1 if ring else _depth(machines)) + per_node - 1
    whole, piece = _COPIES_OF_A_MESSAGE * size, _COPIES_OF_A_MESSAGE * size / per_node
    sent = (per_node - 1 if inside else 0) + (machines - 1) + (machines - 1) * (per_node - 1)
    return Work(
        messages=_buckets(size) * steps,
        link_bytes=size * (1 if ring else _depth(machines)),
        copied=(3 * processes - layout.group_size + machines) * size + sent * whole,
        copied_in_turn=(3 + 1 / per_node) * size + inside * whole + (_depth(machines) + per_node - 1) * piece,
    )


def columns_whole(layout: Layout, size: float) -> Work:
    """The first version of adoption: each replica group broadcasts the whole state, with a tree that ignores nodes."""
    return _columns(layout, size, scattered=layout.processes)


def broadcast(layout: Layout, size: float) -> Work:
    """One plain broadcast of the state to all processes."""
    alone = Layout(layout.processes, layout.processes, layout.machine_size, layout.cores)
    return _columns(alone, size, scattered=layout.processes)


def gather(layout: Layout, trajectories: int) -> Work:
    """Both gathers of an outer step: 4 numbers and the counts of all operations for each trajectory."""
    size = 8 * trajectories * (NUM_OPERATIONS + 4)
    steps = layout.groups - 1
    crosses = size * layout.group_size if layout.machines > 1 else 0
    copied = _COPIES_OF_A_MESSAGE * size * steps
    return Work(2 * steps, crosses, copied * layout.group_size, copied / layout.groups)


def _columns(layout: Layout, size: float, scattered: int) -> Work:
    """A broadcast of `size` bytes in each replica group, copied into tensors by `scattered` processes."""
    columns, members = layout.group_size, layout.groups
    depth = _depth(members)
    sent = _COPIES_OF_A_MESSAGE * columns * (members - 1)
    return Work(
        messages=_buckets(size) * depth,
        link_bytes=size * crossings(layout) if layout.machines > 1 else 0,
        copied=(layout.processes + scattered + sent) * size,
        copied_in_turn=(2 + _COPIES_OF_A_MESSAGE * depth) * size,
    )


def crossings(layout: Layout) -> float:
    """How often the busiest link carries the state if all replica groups broadcast it; mean over the senders."""
    members = [group * layout.group_size // layout.machine_size for group in range(layout.groups)]
    columns = min(layout.group_size, layout.machine_size)  # replica groups on one node
    counts = []
    for source in range(layout.groups):
        ins, outs = [0] * layout.machines, [0] * layout.machines
        for sender, receiver in tree(layout.groups, source):
            if members[sender] != members[receiver]:
                outs[members[sender]] += 1
                ins[members[receiver]] += 1
        counts.append(columns * max(*ins, *outs))
    return sum(counts) / len(counts)


def tree(members: int, source: int) -> list[tuple[int, int]]:
    """(sender, receiver) pairs of gloo's broadcast, in order: a binomial tree that begins with neighbours."""
    pairs = []
    for bit in range(_depth(members)):
        for sender in range(min(1 << bit, members)):
            if sender + (1 << bit) < members:
                pairs.append(((sender + source) % members, (sender + (1 << bit) + source) % members))
    return pairs


def _depth(members: int) -> int:
    return (members - 1).bit_length()


def _buckets(size: float) -> int:
    return max(1, math.ceil(size / BUCKET_BYTES))


@dataclass(frozen=True)
class Row:
    """A measured exchange."""

    layout: Layout
    work: Work
    bandwidth: float
    """Bandwidth of the link, bytes/s."""
    seconds: float


@dataclass(frozen=True)
class Coefficients:
    """alpha, beta and gamma."""

    message: float
    """Seconds per sequential message."""
    link: float
    """Time on the link as a multiple of bytes / bandwidth; 1 at wire speed."""
    copy: float
    """Seconds per byte copied in memory by one core."""

    def seconds(self, layout: Layout, work: Work, bandwidth: float) -> float:
        """Predicted seconds of an exchange."""
        return float(np.dot([self.message, self.link, self.copy], _features(layout, work, bandwidth)))


def fit(rows: Sequence[Row]) -> Coefficients:
    """Fit the coefficients to measured exchanges."""
    features = [_features(row.layout, row.work, row.bandwidth) for row in rows]
    return Coefficients(*costs_of(features, [row.seconds for row in rows]))


def costs_of(amounts: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Seconds per unit of each kind of work, by non-negative least squares of the relative errors.

    Args:
        amounts: [X, kinds], work done.
        seconds: [X], time taken.
    """
    seconds_X = np.array(seconds)
    costs, _ = nnls(np.array(amounts) / seconds_X[:, None], np.ones(len(seconds_X)))
    return [float(cost) for cost in costs]


def relative_errors(coefficients: Coefficients, rows: Sequence[Row]) -> list[float]:
    """Predicted over measured, minus 1, for each row."""
    return [coefficients.seconds(row.layout, row.work, row.bandwidth) / row.seconds - 1 for row in rows]


def _features(layout: Layout, work: Work, bandwidth: float) -> list[float]:
    return [
        work.messages * layout.per_core,  # with shared cores, a message waits until its receiver gets one
        work.link_bytes / bandwidth,
        work.copied_by_a_core(layout),
    ]


@dataclass(frozen=True)
class Hardware:
    """Speed of the hardware, in seconds and bytes/s."""

    inner_step: float
    """Minimum time of an inner step, seconds: latency and the all-reduce."""
    train_image: float
    """Seconds per training image: load, augment, forward and backward."""
    validate_image: float
    link: float
    """Bytes/s into a node."""
    inside: float
    """Bytes/s between the GPUs of a node."""
    memory: float
    """Bytes/s of a GPU's memory."""
    disk: float
    message: float
    """Seconds per sequential message."""
    update: float
    """Seconds of the step on theta."""


@dataclass(frozen=True)
class Task:
    """What is trained."""

    state_bytes: float
    trajectories: int
    batch_size: int
    heldout: int
    eval_batch_size: int
    checkpoint_every: int


def outer_loop(
    task: Task, layout: Layout, hardware: Hardware, link: float, exchange: Work | None = None
) -> Mapping[str, float]:
    """Seconds of each part of an outer step other than its inner steps.

    Args:
        task, layout, hardware: as above.
        link: beta.
        exchange: how the winner is adopted; None: as by `Groups.adopt`.
    """
    work = exchange or adopt(layout, task.state_bytes)
    gathered = gather(layout, task.trajectories)
    hosted = task.trajectories / layout.groups
    size, per_node = task.state_bytes, layout.machine_size
    chunks = math.ceil(math.ceil(task.heldout / task.eval_batch_size) / layout.group_size)
    return {
        "validate": hosted * chunks * task.eval_batch_size * hardware.validate_image,
        "gather": gathered.messages * hardware.message + link * gathered.link_bytes / hardware.link,
        "update": hardware.update,
        "adopt": work.messages * hardware.message
        + link * work.link_bytes / hardware.link
        + size * (per_node - 1) / per_node / hardware.inside
        + (2 + hosted) * size / hardware.memory,
        "check": hosted * size / hardware.memory + (layout.processes - 1) * hardware.message,
        "save": size / hardware.disk / task.checkpoint_every,
    }


def inner_step(task: Task, layout: Layout, hardware: Hardware) -> float:
    """Seconds of one inner step of all trajectories."""
    hosted = task.trajectories / layout.groups
    images = task.batch_size / layout.group_size
    return hosted * max(hardware.inner_step, images * hardware.train_image)


def inner_steps_for(fraction: float, outer: float, inner: float) -> int:
    """The fewest inner steps per outer step for which the outer loop takes at most `fraction` of the time."""
    return math.ceil(outer * (1 / fraction - 1) / inner)
