"""Trajectory groups over processes: who trains what, how results are shared, how the winner is adopted.

W processes are cut into groups of G = W / groups; each group hosts R = N / groups trajectories. The
process with data rank r of every group forms, with its like in the other groups, a column: what groups
exchange travels along columns, all columns at once. Only `launch` and `sharding` import torch.distributed, too.
"""

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import gcd
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ohl_accel.distributed.launch import ending_in_time
from ohl_accel.distributed.sharding import own_part, part_like, shard
from ohl_accel.errors import UserError

_BUCKET_BYTES = 25 * 2**20
_CHECKSUM_ROW = 512
_CHECKSUM_BYTES = 4 * 2**20
T = TypeVar("T")


def choose_groups(trajectories: int, processes: int, asked: int | None) -> int:
    """The number of groups: as asked for, or as many as both numbers allow.

    Raises:
        UserError: if the numbers do not fit; names those that do.
    """
    if asked is not None:
        if trajectories % asked or processes % asked:
            common = _divisors(gcd(trajectories, processes))
            raise UserError(
                f"outer.groups={asked} must divide both the {trajectories} trajectories and the {processes} "
                f"processes: use one of {common}, or null"
            )
        return asked
    if trajectories % processes and processes % trajectories:
        fitting = _divisors(trajectories)  # two at least: one trajectory fits any number of processes
        common = _divisors(gcd(trajectories, processes))
        raise UserError(
            f"world size {processes} does not fit {trajectories} trajectories: use "
            f"{', '.join(map(str, fitting[:-1]))} or {fitting[-1]} processes, or a multiple of "
            f"{trajectories}; or set outer.groups to {' or '.join(map(str, common))}, so that several "
            "processes share the batches of each trajectory"
        )
    return min(trajectories, processes)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


@dataclass(frozen=True)
class Groups:
    """Where this process stands in the layout, and the exchanges of an outer step.

    `rank` in 0..W-1; `group` in 0..groups-1; `data_rank` in 0..G-1 inside the group.
    """

    trajectories: int
    processes: int
    rank: int
    groups: int
    device: torch.device
    sharded: bool = False
    """Whether each process of a group holds only its part of the weights and of the optimizer's state."""
    machine_size: int = 1
    """Processes of a machine, P; 1 where machines differ in it."""
    data_group: Any = None
    column: Any = None
    machine: Any = None
    """The processes of one machine, and `rail`: those of one place on all machines. Only where the whole state
    goes from machine to machine."""
    rail: Any = None

    @classmethod
    def build(
        cls,
        trajectories: int,
        processes: int,
        rank: int,
        asked: int | None,
        device: torch.device,
        timeout: timedelta,
        sharded: bool = False,
    ) -> "Groups":
        """Make the process groups; every process must call it.

        Args:
            trajectories, processes, rank, asked, device: as above; `asked` is `outer.groups`.
            timeout: of an exchange.
            sharded: cut networks over the processes of a group, where that has several.

        Raises:
            UserError: if the numbers do not fit.
        """
        groups = choose_groups(trajectories, processes, asked)
        if processes == 1:
            return cls(trajectories, processes, rank, groups, device)
        sharded = sharded and groups < processes
        by_group = torch.arange(processes).view(groups, -1)
        tables = {"data_group": by_group, "column": by_group.T}
        with ending_in_time(timeout):
            machine_size = _processes_per_machine(processes, device)
            if machine_size < processes and not sharded:
                by_machine = torch.arange(processes).view(-1, machine_size)
                tables |= {"machine": by_machine, "rail": by_machine.T}
            made = {
                name: dist.new_subgroups_by_enumeration(table.tolist(), timeout=timeout)[0]
                for name, table in tables.items()
            }
        return cls(trajectories, processes, rank, groups, device, sharded, machine_size, **made)

    @property
    def group_size(self) -> int:
        """G, processes of a group."""
        return self.processes // self.groups

    @property
    def group(self) -> int:
        """The group of this process."""
        return self.rank // self.group_size

    @property
    def data_rank(self) -> int:
        """The place of this process in its group; 0 is the leader."""
        return self.rank % self.group_size

    @property
    def hosted(self) -> range:
        """The R trajectories of this process's group."""
        per_group = self.trajectories // self.groups
        return range(self.group * per_group, (self.group + 1) * per_group)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network for training: with DistributedDataParallel inside the group, or cut over it, if G > 1.

        Buffers are not broadcast at each step; `lead` does it once, before validation.
        """
        if self.group_size == 1:
            return model
        if self.sharded:
            shard(model, self.data_group, self.device)
            return model
        parameters = inspect.signature(DistributedDataParallel).parameters
        new_name = "forward_sync_buffers" in parameters  # since torch 2.15; `broadcast_buffers` before
        options: dict[str, Any] = {"forward_sync_buffers" if new_name else "broadcast_buffers": False}
        return DistributedDataParallel(
            model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            process_group=self.data_group,
            gradient_as_bucket_view=True,
            **options,
        )

    def lead(self, tensors: Sequence[Tensor]) -> None:
        """Give the leader's tensors (buffers such as BatchNorm's) to the whole group, in place."""
        if self.group_size > 1:
            _broadcast(tensors, 0, self.data_group)

    def sum_in_group(self, tensor: Tensor) -> Tensor:
        """The sum of a small tensor over the processes of a group."""
        return self._sum(tensor, self.data_group) if self.group_size > 1 else tensor

    def sum_in_world(self, tensor: Tensor) -> Tensor:
        """The sum of a small tensor over all processes."""
        return self._sum(tensor, None) if self.processes > 1 else tensor

    def gather(self, tensor_R: Tensor) -> Tensor:
        """[R, ...] of each group to [N, ...] of all trajectories, in their order, on every process."""
        if self.groups == 1:
            return tensor_R
        local = tensor_R.to(self.device).contiguous()
        gathered = local.new_empty(self.trajectories, *local.shape[1:])
        dist.all_gather_into_tensor(gathered, local, group=self.column)
        return gathered.to(tensor_R.device)

    @torch.no_grad()
    def adopt(self, winner: int, hosted_tensors: Sequence[Sequence[Tensor]]) -> None:
        """Make every trajectory equal to the winner, in place (Algorithm 1, "Broadcast w_T").

        On one machine each column carries the whole state; of sharded networks what its processes hold.
        Otherwise the state goes from machine to machine, so that each receives it once: of P processes on a
        machine each carries 1 / P of it to those of its place, and a machine then puts the pieces together.

        Args:
            winner: a trajectory in 0..N-1.
            hosted_tensors: for each of the R hosted trajectories, its state in one common order.
        """
        per_group = self.trajectories // self.groups
        source_group, place = divmod(winner, per_group)
        source = hosted_tensors[place if source_group == self.group else 0]
        if self.groups > 1:
            for bucket in _buckets(source):
                self._adopt_bucket(source_group, bucket)
        for tensors in hosted_tensors:
            if tensors is not source:
                torch._foreach_copy_(list(tensors), list(source))

    def collect(self, values: Sequence[T], everywhere: bool = False) -> list[T]:
        """Plain values of all processes of the group, or of all there are, in their order, on each of them."""
        size = self.processes if everywhere else self.group_size
        if size == 1:
            return list(values)
        gathered: list[list[T]] = [[] for _ in range(size)]
        dist.all_gather_object(gathered, list(values), group=None if everywhere else self.data_group)
        return [value for part in gathered for value in part]

    @torch.no_grad()
    def hand_out(
        self, tensors: Mapping[str, Tensor], examples: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """The main process's tensors on the device of every process, one after the other: they may not fit at once.

        Args:
            tensors: by name; looked at on the main process only.
            examples: tensors of the same names: where one is sharded, each process gets its part alone.
        """
        described = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
        for name, shape, dtype in self.share_from_main(described):
            if self.rank == 0:
                whole = tensors[name].to(self.device).contiguous()
            else:
                whole = torch.empty(shape, dtype=dtype, device=self.device)
            if self.processes > 1:
                dist.broadcast(whole, 0)
            part = part_like(whole, examples.get(name, whole))
            del whole  # before there is room for the next one
            yield name, part

    @torch.no_grad()
    def fill(self, networks: Sequence[nn.Module], first: nn.Module | None) -> None:
        """Give sharded networks their first values, those of buffers that are not saved, too.

        Args:
            networks: of the hosted trajectories.
            first: the whole network, on the main process only.
        """
        hosted = [_tensors_of(network) for network in networks]
        for name, part in self.hand_out(_tensors_of(first) if first is not None else {}, hosted[0]):
            for tensors in hosted:
                own_part(tensors[name]).copy_(own_part(part))

    def share_from_main(self, value: T) -> T:
        """Give the main process's plain value (numbers, text, lists) to all."""
        if self.processes == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def assert_equal(self, hosted_tensors: Sequence[Sequence[Tensor]], what: str) -> None:
        """Assert, by checksum, that the hosted trajectories' tensors are the same on every process.

        Of sharded networks, that they are the same along every column.

        Raises:
            AssertionError: naming the processes that differ; a defect of this program or of the machine.
        """
        own_R = torch.stack([checksum(tensors) for tensors in hosted_tensors])
        all_WR = own_R
        if self.processes > 1:
            all_WR = own_R.new_empty(self.processes * len(own_R))
            dist.all_gather_into_tensor(all_WR, own_R)
        kinds = self.group_size if self.sharded else 1  # what is held differs along a group
        all_WR = all_WR.view(self.processes // kinds, kinds, -1)
        different = (all_WR != all_WR[:1, :, :1]).any(2).flatten().nonzero().flatten().tolist()
        assert not different, f"{what} differ on processes {different}"

    def _adopt_bucket(self, source: int, bucket: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        if self.rail is None:
            dist.broadcast(flat, group_src=source, group=self.column)
        else:
            flat = self._between_machines(flat, source)
        if self.group != source:
            _scatter(flat, bucket)

    def _between_machines(self, flat: Tensor, source: int) -> Tensor:
        """What the leader of the group `source` holds, on every process."""
        size = self.machine_size
        source_machine, leader = divmod(source * self.group_size, size)
        machine, place = divmod(self.rank, size)
        if machine == source_machine and (leader or self.group_size < size):  # some of its processes lack it
            dist.broadcast(flat, group_src=leader, group=self.machine)
        padded = F.pad(flat, (0, -len(flat) % size))
        own = padded.view(size, -1)[place].clone()
        dist.broadcast(own, group_src=source_machine, group=self.rail)
        if machine != source_machine:
            dist.all_gather_into_tensor(padded, own, group=self.machine)
        return padded[: len(flat)]

    def _sum(self, tensor: Tensor, group: Any) -> Tensor:
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total, group=group)
        return total.to(tensor.device)


def _processes_per_machine(processes: int, device: torch.device) -> int:
    """As the launcher says; 1 where it is not the same on all machines."""
    own = torch.tensor([int(os.environ.get("LOCAL_WORLD_SIZE") or processes)], device=device)
    all_W = own.new_empty(processes)
    dist.all_gather_into_tensor(all_W, own)
    size = int(own) if bool((all_W == own).all()) else 1
    return size if processes % size == 0 else 1


@torch.no_grad()
def checksum(tensors: Sequence[Tensor]) -> Tensor:
    """int64 [] on the device of the first tensor: changes with any single change of the tensors' bytes.

    Sums of rows of 4 KB, each times an odd number of its own, modulo 2^64: many times as fast as SHA-256 on
    a CPU, and nothing but the sum leaves the device. Blind only to changes that cancel out, such as two
    words exchanged within a row.
    """
    total = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    for bucket in _buckets(tensors, _CHECKSUM_BYTES):
        parts = [tensor.detach().reshape(-1) for tensor in bucket]
        flat = parts[0] if len(parts) == 1 and not parts[0].storage_offset() else torch.cat(parts)
        whole = flat.nbytes - flat.nbytes % (8 * _CHECKSUM_ROW)
        words, rest = flat.view(torch.uint8).split([whole, flat.nbytes - whole])
        rows = words.view(torch.int64).view(-1, _CHECKSUM_ROW).sum(1)
        total = 3 * total + (_weighted(rows) + _weighted(rest.long())).to(total.device)
    return total


def _weighted(numbers: Tensor) -> Tensor:
    """Sum of int64 numbers, each times an odd number of its own, modulo 2^64: int64 []."""
    return (numbers * (2 * torch.arange(len(numbers), device=numbers.device) + 1)).sum()


def _tensors_of(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


@torch.no_grad()
def _broadcast(tensors: Sequence[Tensor], source: int, group: Any) -> None:
    """Broadcast in place, in flat buckets of one dtype: `source` is the rank inside `group`."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.broadcast(flat, group_src=source, group=group)
        _scatter(flat, bucket)


def _scatter(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """The parts of a flat tensor into tensors, in place."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(
        list(tensors), [part.view(tensor.shape) for tensor, part in zip(tensors, parts, strict=True)]
    )


def _buckets(tensors: Sequence[Tensor], bound: int = _BUCKET_BYTES) -> list[list[Tensor]]:
    """Tensors in lists of one dtype and up to `bound` bytes (a larger one has a list of its own)."""
    buckets: list[list[Tensor]] = []
    open_bucket: dict[torch.dtype, tuple[list[Tensor], int]] = {}
    for tensor in tensors:
        bucket, size = open_bucket.get(tensor.dtype, ([], 0))
        if not bucket or size + tensor.nbytes > bound:
            bucket, size = [], 0
            buckets.append(bucket)
        bucket.append(tensor)
        open_bucket[tensor.dtype] = (bucket, size + tensor.nbytes)
    return buckets
