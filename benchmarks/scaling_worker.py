"""A process started by `benchmarks.scaling`; each writes its measurements to a file.

python -m benchmarks.scaling_worker exchange FOLDER GROUPS ROUNDS   shapes of the state are in FOLDER/state.json
python -m benchmarks.scaling_worker search FOLDER RECIPE [section.key=value ...]
"""

import ctypes
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.hosts import TwoHosts
from ohl_accel.distributed import collectives
from ohl_accel.distributed.groups import Groups
from ohl_accel.distributed.launch import choose_interface, leave
from ohl_accel.engine.phases import Phases
from ohl_accel.operations.space import PAPER
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators import FinishedStep, Reinforce

REPOSITORY = Path(__file__).resolve().parent.parent


def exchange(folder: Path, groups: int, rounds: int) -> None:
    """Time the exchanges of an outer step in turn, and count the bytes on this host's cable; rank 0 writes."""
    torch.set_num_threads(1)
    choose_interface()
    timeout = timedelta(seconds=600)
    dist.init_process_group("gloo", timeout=timeout)
    rank, processes = dist.get_rank(), dist.get_world_size()
    layout = Groups.build(
        trajectories=groups,
        processes=processes,
        rank=rank,
        device=torch.device("cpu"),
        timeout=timeout,
        groups=groups,
    )
    shapes = json.loads((folder / "state.json").read_text())
    tensors = [torch.full(shape, float(rank)) for shape in shapes]
    counts_K = torch.ones(1, PAPER.num_operations, dtype=torch.int64)

    estimator = Reinforce(Policy(), lr=0.05, betas=(0.5, 0.999), trajectories=groups, outer_steps=1, seed=0)

    def gather(turn: int) -> None:
        layout.gather(torch.rand(1, 4, dtype=torch.float64))
        layout.gather(counts_K)

    def synchronize(turn: int) -> None:
        reward_N = layout.gather(torch.rand(1, 4, dtype=torch.float64))[:, 0]
        estimator.step(
            FinishedStep(
                outer_step=turn,
                reward_N=reward_N,
                finite_N=torch.ones(groups, dtype=torch.bool),
                recorded={"counts": layout.gather(counts_K)},
            )
        )
        layout.adopt([turn % groups] * groups, [tensors])

    def synchronize_and_check(turn: int) -> None:
        synchronize(turn)
        layout.assert_equal([0] * groups, [tensors], "the states adopted")

    contenders: dict[str, Callable[[int], None]] = {
        "broadcast": lambda turn: collectives.broadcast(tensors, turn % processes, None),
        "columns_whole": lambda turn: collectives.broadcast(tensors, turn % groups, layout.replica_group),
        "adopt": lambda turn: layout.adopt([turn % groups] * groups, [tensors]),
        "gather": gather,
        "check": lambda turn: layout.assert_equal([0] * groups, [tensors], "the states adopted"),
        "synchronize": synchronize,
        "synchronize_and_check": synchronize_and_check,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    crossed: dict[str, list[int]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):  # interleaved, so that other load affects all of them equally
        for name, contender in contenders.items():
            if name == "adopt":
                for tensor in tensors:
                    tensor.fill_(layout.group)
            before = _cable_bytes()
            dist.barrier()
            start = time.perf_counter()
            contender(turn)
            dist.barrier()
            if turn:
                seconds[name].append(time.perf_counter() - start)
                crossed[name].append(max(b - a for a, b in zip(before, _cable_bytes(), strict=True)))
            if name == "adopt":
                assert all(bool((tensor == turn % groups).all()) for tensor in tensors)
    if rank == 0:
        size = sum(tensor.nbytes for tensor in tensors)
        measured = {"bytes": size, "seconds": seconds, "cable_bytes": crossed}
        (folder / "exchange.json").write_text(json.dumps(measured))
    dist.destroy_process_group()


def launch(
    processes: int,
    *arguments: str,
    hosts: TwoHosts | None = None,
    forks: bool = False,
    module: str = "benchmarks.scaling_worker",
) -> None:
    """Run a benchmark's worker in several processes, half of them on each host.

    Args:
        processes: number of processes, over both hosts.
        arguments: of the command.
        hosts: None: all on this machine.
        forks: start one process on each host, which forks the others.
        module: of the worker.

    Raises:
        SystemExit: if one fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    on_each = processes if hosts is None else processes // 2
    started = []
    for rank in range(0, processes, on_each if forks else 1):
        environment = {
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % on_each),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(on_each),
            "MASTER_ADDR": "127.0.0.1" if hosts is None else hosts.addresses[0],
            "MASTER_PORT": str(port),
        }
        prefix = hosts.on(rank // on_each) if hosts else []
        command = [*prefix, sys.executable, "-m", module, *arguments]
        started.append(subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.DEVNULL))
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit(f"{arguments} on {processes} processes failed")


def on_this_host(action: Callable[[], None]) -> None:
    """Run an action in all processes of this host, forked from this one, so that torch is loaded only once.

    Raises:
        SystemExit: if one fails.
    """
    first = int(os.environ["RANK"])

    def process(local_rank: int) -> None:
        os.environ.update(RANK=str(first + local_rank), LOCAL_RANK=str(local_rank))
        action()

    context = multiprocessing.get_context("fork")
    local_ranks = range(int(os.environ["LOCAL_WORLD_SIZE"]))
    started = [context.Process(target=process, args=(local_rank,)) for local_rank in local_ranks]
    for child in started:
        child.start()
    for child in started:
        child.join()
    if any(child.exitcode for child in started):
        raise SystemExit(1)


def _cable_bytes() -> tuple[int, int]:
    """Bytes sent and received so far over the interface to the other host; 0 on one machine."""
    folder = Path("/sys/class/net") / os.environ.get("GLOO_SOCKET_IFNAME", "lo") / "statistics"
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        return 0, 0
    return int((folder / "tx_bytes").read_text()), int((folder / "rx_bytes").read_text())


class Recorder(Phases):
    """The run's clock, which records each outer step separately: wall-clock time, CPU time and memory."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.steps: list[dict[str, list[float]]] = []
        self.memory: list[dict[str, int]] = []

    @contextmanager
    def __call__(self, name: str, within: str | None = None) -> Iterator[None]:
        """As in `Phases`; `train` begins an outer step, and memory is recorded when it ends."""
        if name == "train":
            self.steps.append({})
        before = time.process_time()
        with super().__call__(name, within):
            yield
        processor = time.process_time() - before
        self._note(name, 0.0, processor)
        if within is not None:
            self._note(within, 0.0, -processor)
        if name == "train":
            self.memory.append(memory())

    def _add(self, name: str, seconds: float, within: str | None) -> None:
        self._note(name, seconds, 0.0)
        super()._add(name, seconds, within)

    def _note(self, name: str, wall: float, processor: float) -> None:
        before = self.steps[-1].get(name, [0.0, 0.0])
        self.steps[-1][name] = [before[0] + wall, before[1] + processor]


def search(folder: Path, recipe_path: str, overrides: Sequence[str]) -> None:
    """The search itself, with the recorder as its clock; every process writes its measurements."""
    from ohl_accel.engine.run import Run
    from ohl_accel.engine.search import outer_loop
    from ohl_accel.engine.session import execute

    def loop(run: Run) -> list[float] | None:
        recorder = Recorder(run.groups.device)
        rewards = outer_loop(replace(run, phases=recorder))
        ctypes.CDLL(None).malloc_trim(0)  # return free memory to the system
        live = memory()["resident"]
        tensors = run.hosted[0].state_tensors()
        measured = {
            "steps": recorder.steps,
            "memory": recorder.memory,
            "live": live,
            "hosted": len(run.hosted),
            "state_bytes": sum(tensor.nbytes for tensor in tensors),
            "gradient_bytes": sum(parameter.nbytes for parameter in run.hosted[0].network.parameters()),
        }
        (folder / f"rank{run.groups.rank}.json").write_text(json.dumps(measured))
        return rewards

    execute(recipe_path, overrides, loop, learn=True)
    leave()


def memory() -> dict[str, int]:
    """Memory of this process in bytes: `resident` now, and the `peak` so far."""
    status = Path("/proc/self/status").read_text()
    names = {"resident": "VmRSS", "peak": "VmHWM"}
    found = {name: re.search(rf"{label}:\s+(\d+) kB", status) for name, label in names.items()}
    return {name: 1024 * int(match[1]) for name, match in found.items() if match}


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    if what == "exchange":
        on_this_host(lambda: exchange(Path(folder), int(rest[0]), int(rest[1])))
    else:
        search(Path(folder), rest[0], rest[1:])
