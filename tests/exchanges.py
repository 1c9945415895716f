"""One end of a cable: every kind of exchange over and over, each in a process of its own, until it is cut.

python tests/exchanges.py HOST FOLDER, on both hosts. FOLDER/KIND-HOST.going tells that an exchange has worked
and FOLDER/KIND-HOST.out what the process said; the program prints `KIND EXIT-CODE` as they end.
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
from hosts import TwoHosts
from torch import nn

from ohl_accel.cli import run_command
from ohl_accel.distributed.groups import Groups
from ohl_accel.distributed.launch import run_on_all_ranks
from ohl_accel.engine.setup import start_accelerator
from ohl_accel.recipe import RunSection

TIMEOUT = timedelta(seconds=5)
"""`run.timeout`."""


def training(groups: Groups) -> Callable[[], object]:
    """Forward and backward through a network that is shared by, or cut over, both processes."""
    network = groups.wrap(nn.Sequential(nn.Sequential(nn.Linear(9, 9), nn.ReLU()), nn.Linear(9, 9)))
    return lambda: network(torch.ones(2, 9)).sum().backward()


def built(one_group: bool, sharded: bool = False) -> Groups:
    return Groups.build(
        trajectories=2,
        processes=2,
        rank=dist.get_rank(),
        device=torch.device("cpu"),
        timeout=TIMEOUT,
        groups=1 if one_group else 2,
        sharded=sharded,
    )


def prepare_long() -> None:
    """On one process, for longer than `run.timeout`."""
    time.sleep(dist.get_rank() * (TIMEOUT.total_seconds() + 1))


def in_group(exchange: Callable[[Groups], object]) -> Callable[[], Callable[[], object]]:
    """An exchange between the two processes of one group."""
    return lambda: partial(exchange, built(one_group=True))


def in_column(exchange: Callable[[Groups], object]) -> Callable[[], Callable[[], object]]:
    """An exchange between two groups of one process."""
    return lambda: partial(exchange, built(one_group=False))


KINDS: dict[str, Callable[[], Callable[[], object]]] = {
    "barrier": lambda: dist.barrier,
    "all_ranks": lambda: partial(run_on_all_ranks, list),
    "preparing": lambda: partial(run_on_all_ranks, prepare_long, long=True),
    "building": lambda: partial(built, one_group=False),
    "gradients": lambda: training(built(one_group=True)),
    "shards": lambda: training(built(one_group=True, sharded=True)),
    "values": in_group(lambda groups: groups.gather_objects([1])),
    "from_main": in_column(lambda groups: groups.broadcast_object(1)),
    "sum": in_column(lambda groups: groups.sum_in_world(torch.ones(2))),
    "rewards": in_column(lambda groups: groups.gather(torch.ones(1))),
    "winner": in_column(lambda groups: groups.adopt(0, [[torch.ones(9)]])),
    "joining": lambda: dist.barrier,
}
"""Each makes ready on both processes, and returns the exchange."""


def exchange(kind: str, going: Path) -> None:
    """Join, and exchange until that fails."""
    start_accelerator(RunSection(dir="unused", timeout=TIMEOUT.total_seconds()))
    action = KINDS[kind]()
    while True:
        action()
        going.touch()
        time.sleep(0.02)


def main(host: str, folder: Path) -> None:
    """A process for each kind; of `joining` only on host 0."""
    kinds, running = list(KINDS)[: len(KINDS) - int(host)], {}
    for number, kind in enumerate(kinds):
        process = os.fork()
        if process == 0:
            out = os.open(folder / f"{kind}-{host}.out", os.O_CREAT | os.O_WRONLY)
            os.dup2(out, sys.stdout.fileno())
            os.dup2(out, sys.stderr.fileno())
            os.environ |= {"RANK": host, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
            os.environ |= {"MASTER_ADDR": TwoHosts.addresses[0], "MASTER_PORT": str(29520 + number)}
            os._exit(run_command(lambda: exchange(kind, folder / f"{kind}-{host}.going")))  # noqa: B023
        running[process] = kind
    while running:
        process, status = os.wait()
        print(running.pop(process), os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
