"""Every exchange between processes, repeated until the cable between their hosts is cut (see test_nodes.py).

`python tests/exchanges.py HOST FOLDER`, on both of `TwoHosts` at the same time, forks a process for each entry of
`EXCHANGES`. Together with its counterpart on the other host it makes one launch of two processes, which does nothing
but this exchange, over and over. Only host 0 has a process for `JOINING`: it waits in vain for its counterpart.

FOLDER/NAME-HOST.going appears when the exchange has worked, FOLDER/NAME-HOST.out is what the process printed, and the
program prints `NAME EXIT-CODE` as its processes end.
"""

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.hosts import TwoHosts
from ohl_accel.cli import run_command
from ohl_accel.distributed.groups import Groups
from ohl_accel.distributed.launch import run_on_all_ranks
from ohl_accel.engine.process import start_accelerator
from ohl_accel.recipe import RunSection

TIMEOUT = timedelta(seconds=8)
"""`run.timeout`."""
FIRST_PORT = 29520
"""Of the first exchange; each has a port of its own."""
Exchange = Callable[[], object]


def groups_of_two(groups: int, sharded: bool = False) -> Groups:
    """Two trajectories on two processes: in one group that shares their batches, or in two groups of one process."""
    return Groups.build(
        trajectories=2,
        processes=2,
        rank=dist.get_rank(),
        device=torch.device("cpu"),
        timeout=TIMEOUT,
        groups=groups,
        sharded=sharded,
    )


def action_on_all_ranks() -> Exchange:
    return lambda: run_on_all_ranks(list)


def long_action_on_all_ranks() -> Exchange:
    """One rank takes longer than `run.timeout`, which only a heartbeat bridges."""
    return lambda: run_on_all_ranks(
        lambda: time.sleep(dist.get_rank() * (TIMEOUT.total_seconds() + 1)), long=True
    )


def gradients(sharded: bool) -> Exchange:
    """Forward and backward through a network that both processes train, or of which each holds a part."""
    network = groups_of_two(groups=1, sharded=sharded).wrap(
        nn.Sequential(nn.Sequential(nn.Linear(9, 9), nn.ReLU()), nn.Linear(9, 9))
    )
    return lambda: network(torch.ones(2, 9)).sum().backward()


def objects_in_a_group() -> Exchange:
    groups = groups_of_two(groups=1)
    return lambda: groups.gather_objects([1])


def between_groups(exchange: Callable[[Groups], object]) -> Exchange:
    return partial(exchange, groups_of_two(groups=2))


JOINING = "joining"
EXCHANGES: dict[str, Callable[[], Exchange]] = {
    "barrier": lambda: dist.barrier,
    "action": action_on_all_ranks,
    "long_action": long_action_on_all_ranks,
    "building_groups": lambda: lambda: groups_of_two(groups=2),
    "gradients": lambda: gradients(sharded=False),
    "sharded_gradients": lambda: gradients(sharded=True),
    "objects": objects_in_a_group,
    "broadcast": lambda: between_groups(lambda groups: groups.broadcast_object(1)),
    "sum": lambda: between_groups(lambda groups: groups.sum_in_world(torch.ones(2))),
    "rewards": lambda: between_groups(lambda groups: groups.gather(torch.ones(1))),
    "winner": lambda: between_groups(
        lambda groups: groups.adopt([0] * groups.trajectories, [[torch.ones(9)]])
    ),
    JOINING: lambda: dist.barrier,
}
"""Each prepares an exchange on both processes and returns it."""


def names_on(host: int) -> list[str]:
    """The exchanges that a host takes part in."""
    return [name for name in EXCHANGES if name != JOINING or host == 0]


def repeat(name: str, going: Path) -> None:
    """Join the launch, then exchange until that fails."""
    start_accelerator(RunSection(dir="unused", timeout=TIMEOUT.total_seconds()))
    exchange = EXCHANGES[name]()
    while True:
        exchange()
        going.touch()
        time.sleep(0.2)  # many of them share two cores


def be_rank(host: int, name: str, folder: Path) -> int:
    """What the forked process of an exchange does; returns its exit code."""
    output = os.open(folder / f"{name}-{host}.out", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    port = FIRST_PORT + list(EXCHANGES).index(name)
    os.environ |= {"RANK": str(host), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": TwoHosts.addresses[0], "MASTER_PORT": str(port)}
    return run_command(lambda: repeat(name, folder / f"{name}-{host}.going"))


def main(host: int, folder: Path) -> None:
    """Fork a process for each exchange, and report how each ends."""
    running = {}
    for name in names_on(host):
        process = os.fork()
        if process == 0:
            os._exit(be_rank(host, name, folder))
        running[process] = name
    while running:
        process, status = os.wait()
        print(running.pop(process), os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]))
