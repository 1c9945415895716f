"""Trajectory groups over processes: how results are shared and how the winner is adopted (Algorithm 1).

The processes with data rank r in all groups form a replica group: groups communicate inside replica groups, all of
these at the same time.

Shapes: R hosted trajectories, N trajectories, W processes.
"""

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ohl_accel.distributed.collectives import broadcast, buckets, checksum, scatter, tensors_of
from ohl_accel.distributed.launch import ending_in_time
from ohl_accel.distributed.layout import Layout, choose_groups
from ohl_accel.distributed.sharding import own_part, part_like, shard, whole_on_cpu

T = TypeVar("T")

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""Its name from torch 2.14 on, which warns of the old one; or the old one."""


@dataclass(frozen=True, kw_only=True)
class Groups(Layout):
    """The position of this process, and the communication of an outer step."""

    device: torch.device
    sharded: bool = False
    """Whether each process of a group holds only its shard of the weights and of the optimizer's state."""
    processes_per_node: int = 1
    """P; 1 if nodes have different numbers of processes."""
    data_group: dist.ProcessGroup | None = None
    """The processes that share the batches of a trajectory; None if there is one process."""
    replica_group: dist.ProcessGroup | None = None
    """The processes with this data rank in all groups; None if there is one process."""
    node_group: dist.ProcessGroup | None = None
    """The processes of this node; only if the whole state is sent from node to node."""
    inter_node_group: dist.ProcessGroup | None = None
    """The processes with this local rank on all nodes; only if there is a `node_group`."""

    @classmethod
    def build(
        cls,
        *,
        trajectories: int,
        processes: int,
        rank: int,
        device: torch.device,
        timeout: timedelta,
        groups: int | None = None,
        sharded: bool = False,
    ) -> "Groups":
        """Create the process groups; every process must call it.

        Args:
            trajectories: N.
            processes: W.
            rank: of this process.
            device: of this process.
            timeout: of a collective.
            groups: `outer.groups`; None: as many as both numbers allow.
            sharded: shard networks over the processes of a group, if it has several.

        Raises:
            UserError: if the numbers do not fit.
        """
        number = choose_groups(trajectories, processes, groups)
        alone = cls(trajectories=trajectories, processes=processes, rank=rank, groups=number, device=device)
        if processes == 1:
            return alone

        def divide(ranks: Tensor) -> dist.ProcessGroup:
            """A process group for each row; returns the one of this process."""
            own, _ = dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=timeout)
            assert isinstance(own, dist.ProcessGroup)
            return own

        sharded = sharded and number < processes
        by_group = torch.arange(processes).view(number, -1)
        with ending_in_time(timeout):
            per_node = _processes_per_node(processes, device)
            by_node = torch.arange(processes).view(-1, per_node)
            whole_state_between_nodes = per_node < processes and not sharded
            return replace(
                alone,
                sharded=sharded,
                processes_per_node=per_node,
                data_group=divide(by_group),
                replica_group=divide(by_group.T),
                node_group=divide(by_node) if whole_state_between_nodes else None,
                inter_node_group=divide(by_node.T) if whole_state_between_nodes else None,
            )

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network for training: if G > 1, with DistributedDataParallel over the group, or sharded over it.

        Buffers are not broadcast at each step; `broadcast_buffers` does so once, before validation.
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

    def broadcast_buffers(self, tensors: Sequence[Tensor]) -> None:
        """Broadcast the leader's tensors (buffers such as BatchNorm's) to the whole group, in place."""
        if self.group_size > 1:
            broadcast(tensors, 0, self.data_group)

    def sum_in_group(self, tensor: Tensor) -> Tensor:
        """The sum of a small tensor over the processes of a group."""
        return self._sum(tensor, self.data_group) if self.group_size > 1 else tensor

    def sum_in_world(self, tensor: Tensor) -> Tensor:
        """The sum of a small tensor over all processes."""
        return self._sum(tensor, None) if self.processes > 1 else tensor

    def gather(self, tensor_R: Tensor) -> Tensor:
        """Gather [R, ...] of each group to [N, ...] of all trajectories, in their order, on every process."""
        if self.groups == 1:
            return tensor_R
        local = tensor_R.to(self.device).contiguous()
        gathered = local.new_empty(self.trajectories, *local.shape[1:])
        _all_gather(gathered, local, group=self.replica_group)
        return gathered.to(tensor_R.device)

    @torch.no_grad()
    def adopt(self, parents: Sequence[int], hosted_tensors: Sequence[Sequence[Tensor]]) -> None:
        """Make each trajectory equal to its parent, in place (Algorithm 1, "Broadcast w_T": the winner is everyone's).

        On one node each replica group broadcasts the whole state, or the shards of its processes. Otherwise the state
        is sent from node to node, so that each receives it once: each of the P processes of a node broadcasts 1 / P
        of it to those with its local rank on other nodes, and each node then gathers the pieces. All groups take part
        wherever one needs a parent of another group.

        Args:
            parents: for each of the N trajectories, one in 0..N-1; a parent is its own parent.
            hosted_tensors: for each of the R hosted trajectories, its state in one common order.
        """
        per_group = self.trajectories // self.groups
        for parent in sorted({parent for child, parent in enumerate(parents) if parent != child}):
            children = [child for child, other in enumerate(parents) if other == parent and child != parent]
            source_group, index = divmod(parent, per_group)
            takers = [hosted_tensors[child % per_group] for child in children if child in self.hosted]
            receiver = takers[0] if takers else hosted_tensors[0]
            source = hosted_tensors[index] if self.group == source_group else receiver
            if any(child // per_group != source_group for child in children):
                for bucket in buckets(source):
                    flat = self._exchange(source_group, bucket)
                    if takers and self.group != source_group:
                        scatter(flat, bucket)
            for tensors in takers:
                if tensors is not source:
                    torch._foreach_copy_(list(tensors), list(source))

    def tensors_on_main(self, trajectory: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A trajectory's whole tensors on the CPU of the main process, and nothing on the others.

        Every process must call it; sharded tensors are gathered one at a time.

        Args:
            trajectory: n.
            tensors: by name: its own in its group, those of any other trajectory in the others.
        """
        group = trajectory // (self.trajectories // self.groups)
        leader = group * self.group_size
        here = self.group == group and (self.sharded or self.rank == leader)
        whole = whole_on_cpu(tensors, keep=self.rank == leader) if here else {}
        if leader == 0:
            return whole
        if self.rank == leader:
            for tensor in whole.values():
                dist.send(tensor.to(self.device), dst=0)
        if self.rank:
            return {}
        received = {}
        for name, tensor in tensors.items():
            incoming = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
            dist.recv(incoming, src=leader)
            received[name] = incoming.cpu()
        return received

    def gather_objects(self, values: Sequence[T], everywhere: bool = False) -> list[T]:
        """Plain values of all processes of the group, or of all processes, in their order, on each of them."""
        size = self.processes if everywhere else self.group_size
        if size == 1:
            return list(values)
        gathered: list[list[T]] = [[] for _ in range(size)]
        dist.all_gather_object(gathered, list(values), group=None if everywhere else self.data_group)
        return [value for part in gathered for value in part]

    @torch.no_grad()
    def distribute_tensors(
        self, tensors: Mapping[str, Tensor], examples: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """The main process's tensors on the device of every process, one at a time: they may not all fit at once.

        Args:
            tensors: by name; used on the main process only.
            examples: tensors with the same names: if one is sharded, each process gets only its shard.
        """
        described = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
        for name, shape, dtype in self.broadcast_object(described):
            if self.rank == 0:
                whole = tensors[name].to(self.device).contiguous()
            else:
                whole = torch.empty(shape, dtype=dtype, device=self.device)
            if self.processes > 1:
                dist.broadcast(whole, 0)
            part = part_like(whole, examples.get(name, whole))
            del whole  # frees memory for the next one
            yield name, part

    @torch.no_grad()
    def broadcast_parameters(self, networks: Sequence[nn.Module], first: nn.Module | None) -> None:
        """Initialize sharded networks, including buffers that are not saved.

        Args:
            networks: of the hosted trajectories.
            first: the whole network, on the main process only.
        """
        hosted = [tensors_of(network) for network in networks]
        for name, part in self.distribute_tensors(tensors_of(first) if first is not None else {}, hosted[0]):
            for tensors in hosted:
                own_part(tensors[name]).copy_(own_part(part))

    def broadcast_object(self, value: T) -> T:
        """Broadcast the main process's plain value (numbers, text, lists) to all."""
        if self.processes == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def assert_equal(
        self, parents: Sequence[int], hosted_tensors: Sequence[Sequence[Tensor]], what: str
    ) -> None:
        """Assert, by checksum, that trajectories have the same tensors as their parents, on every process.

        For sharded networks, that they are the same inside every replica group.

        Args:
            parents, hosted_tensors: as in `adopt`.
            what: for the message.

        Raises:
            AssertionError: naming the processes that differ; a bug in this program or a hardware fault.
        """
        own_R = torch.stack([checksum(tensors) for tensors in hosted_tensors])
        all_WR = own_R
        if self.processes > 1:
            all_WR = own_R.new_empty(self.processes * len(own_R))
            _all_gather(all_WR, own_R)
        all_NG = all_WR.view(self.groups, self.group_size, -1).transpose(1, 2).flatten(0, 1)
        parent_NG = all_NG[list(parents)]
        # shards differ inside a group
        wrong_NG = all_NG != (parent_NG if self.sharded else parent_NG[:, :1])
        wrong_W = wrong_NG.view(self.groups, -1, self.group_size).any(1).flatten()
        different = wrong_W.nonzero().flatten().tolist()
        assert not different, f"{what} differ on processes {different}"

    def _exchange(self, source: int, bucket: Sequence[Tensor]) -> Tensor:
        """The flat tensors of the group `source`, on every process."""
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        if self.inter_node_group is None:
            dist.broadcast(flat, group_src=source, group=self.replica_group)
            return flat
        return self._between_nodes(flat, source)

    def _between_nodes(self, flat: Tensor, source: int) -> Tensor:
        """The flat tensor of the leader of the group `source`, on every process."""
        size = self.processes_per_node
        source_node, leader = divmod(source * self.group_size, size)
        node, local_rank = divmod(self.rank, size)
        if node == source_node and (leader or self.group_size < size):  # some of its processes do not have it
            dist.broadcast(flat, group_src=leader, group=self.node_group)
        padded = F.pad(flat, (0, -len(flat) % size))
        own = padded.view(size, -1)[local_rank].clone()
        dist.broadcast(own, group_src=source_node, group=self.inter_node_group)
        if node != source_node:
            _all_gather(padded, own, group=self.node_group)
        return padded[: len(flat)]

    def _sum(self, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total, group=group)
        return total.to(tensor.device)


def _processes_per_node(processes: int, device: torch.device) -> int:
    """As set by the launcher; 1 if it is not the same on all nodes."""
    own = torch.tensor([int(os.environ.get("LOCAL_WORLD_SIZE") or processes)], device=device)
    all_W = own.new_empty(processes)
    _all_gather(all_W, own)
    size = int(own) if bool((all_W == own).all()) else 1
    return size if processes % size == 0 else 1
