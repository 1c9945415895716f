"""Trajectory groups over processes: who trains what, how results are shared, how the winner is adopted.

W processes are cut into groups of G = W / groups; each group hosts R = N / groups trajectories. The
process with data rank r of every group forms, with its like in the other groups, a column: what groups
exchange travels along columns, all columns at once. Only `sharding` imports torch.distributed, too.
"""

import inspect
import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import gcd
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ohl_accel.errors import UserError
from ohl_accel.sharding import shard

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


def check_launch(processes: int) -> None:
    """Refuse single processes that a launcher started side by side and that do not see each other.

    Raises:
        UserError: if the launcher's environment speaks of another number of processes.
    """
    if processes > 1 and os.environ.get("WORLD_SIZE") == str(processes):
        return  # Slurm, too, may have started something: a launcher on each machine
    for variable in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        started = int(os.environ.get(variable) or 1)
        if started != processes and (started > 1 or variable == "WORLD_SIZE"):
            raise UserError(
                f"the launcher started {started} processes ({variable}), but they do not see each other: each "
                "would run alone. Start them with `accelerate launch --config_file accelerate_configs/...`, "
                "or one process with `python -m`"
            )


def choose_interface() -> None:
    """On several machines, let gloo use the network interface by which the main machine is reached.

    By itself gloo takes the address of the host's name, which many systems set to 127.0.0.1: other
    machines would then look for this one on themselves. GLOO_SOCKET_IFNAME, if set, is left as it is.
    """
    main = os.environ.get("MASTER_ADDR")
    if main is None or os.environ.get("WORLD_SIZE") == os.environ.get("LOCAL_WORLD_SIZE"):
        return
    try:
        family, _, _, _, address = socket.getaddrinfo(main, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return  # the rendezvous will say what is wrong with the address
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == own for entry in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def explain_lost(error: RuntimeError) -> str | None:
    """What to tell the user of an exchange with other processes that failed; None for any other error."""
    if not (isinstance(error, dist.DistError) or "gloo/" in str(error)):
        return None
    reason = re.sub(r"^\[\S*?/gloo/\S+\] |\. This is typically.*", "", str(error).splitlines()[0])
    return (
        f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')} on {socket.gethostname()} lost the "
        f"others: {reason}. A process or machine has ended, the network is cut, or one was busy for longer than "
        "run.timeout; the same command on all machines with run.resume=auto goes on from the last checkpoint"
    )


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
        ranks = torch.arange(processes).view(groups, -1)
        data_group, _ = dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=timeout)
        column, _ = dist.new_subgroups_by_enumeration(ranks.T.tolist(), timeout=timeout)
        sharded = sharded and groups < processes
        machine_size, machine, rail = _processes_per_machine(processes, device), None, None
        if machine_size < processes and not sharded:
            places = torch.arange(processes).view(-1, machine_size)
            machine, _ = dist.new_subgroups_by_enumeration(places.tolist(), timeout=timeout)
            rail, _ = dist.new_subgroups_by_enumeration(places.T.tolist(), timeout=timeout)
        return cls(
            trajectories,
            processes,
            rank,
            groups,
            device,
            sharded,
            machine_size,
            data_group,
            column,
            machine,
            rail,
        )

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

    def collect_in_group(self, values: Sequence[T]) -> list[T]:
        """Plain values of all processes of the group, in their order, on each of them."""
        if self.group_size == 1:
            return list(values)
        gathered: list[list[T]] = [[] for _ in range(self.group_size)]
        dist.all_gather_object(gathered, list(values), group=self.data_group)
        return [value for part in gathered for value in part]

    def broadcast_from_main(self, tensors: Sequence[Tensor]) -> None:
        """Give the main process's tensors to all, in place."""
        if self.processes > 1:
            _broadcast(tensors, 0, None)

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


def agree(action: Callable[[], T], one_first: bool = False) -> T:
    """Run on every process an action that may fail on some; then it fails on all, with the first message.

    Args:
        action: what to run; it must not communicate.
        one_first: one process of each machine runs it before the others (to fill a cache once).

    Raises:
        UserError: if the action raised it on any process.
    """
    if not dist.is_initialized():
        return action()
    result, problem = None, None
    own_turn = 1 if one_first and int(os.environ.get("LOCAL_RANK") or 0) else 0
    for turn in range(2 if one_first else 1):
        if turn == own_turn:
            try:
                result = action()
            except UserError as error:
                problem = str(error)
        problems: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
        failed = [rank for rank, text in enumerate(problems) if text is not None]
        if failed:
            where = "" if len(failed) == len(problems) or one_first else f" (on process {failed[0]})"
            raise UserError(f"{problems[failed[0]]}{where}")
    return result  # type: ignore[return-value]


def leave() -> None:
    """Say good-bye to the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


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
