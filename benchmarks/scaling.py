"""What an outer step costs on several processes, and what the exchanges in it cost on slow cables.

python -m benchmarks.scaling phases     seconds of each phase on 1, 2, 4, 8 processes
python -m benchmarks.scaling exchange   gather + update + adopt against one plain broadcast of the same bytes
python -m benchmarks.scaling cable      the same between two hosts, with limited bandwidth (root, iproute2)
python -m benchmarks.scaling memory     of each process over 200 outer steps

Each prints a Markdown table; docs/scaling.md has the cost model and benchmarks/results/scaling.md the values.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist

import ohl_accel.models  # noqa: F401  registers our networks with timm
from ohl_accel import groups as groups_module
from ohl_accel.elements import NUM_OPERATIONS
from ohl_accel.groups import Groups
from ohl_accel.launch import choose_interface, leave
from ohl_accel.policy import OuterOptimizer, Policy
from tests.hosts import TwoHosts

ROUNDS = 5
RECIPE = ["recipes/digits.yaml", "model.args.width=16", "outer.trajectories=8", "run.overwrite=true"]


def launch(
    processes: int, *arguments: str, hosts: TwoHosts | None = None, module: str = "benchmarks.scaling"
) -> str:
    """Run a benchmark's worker in so many processes, half of them on each host; what rank 0 prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        host = 0 if hosts is None else rank * 2 // processes
        environment = {
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank if hosts is None else rank % (processes // 2)),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes if hosts is None else processes // 2),
            "MASTER_ADDR": "127.0.0.1" if hosts is None else hosts.addresses[0],
            "MASTER_PORT": str(port),
        }
        command = [*(hosts.on(host) if hosts else []), sys.executable, "-m", module, *arguments]
        output = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        started.append(subprocess.Popen(command, env=environment, stdout=output, text=True))
    printed, _ = started[0].communicate()
    if any(process.wait() for process in started):
        raise SystemExit(f"{arguments} on {processes} processes failed")
    return printed


def exchange_worker(network: str, groups: int) -> None:
    """Time the exchanges of an outer step for a network's weights and momentum; rank 0 prints JSON."""
    torch.set_num_threads(1)
    choose_interface()
    dist.init_process_group("gloo", timeout=timedelta(seconds=600))
    rank, processes = dist.get_rank(), dist.get_world_size()
    layout = Groups.build(groups, processes, rank, groups, torch.device("cpu"), timedelta(seconds=600))
    model = timm.create_model(network, num_classes=10 if "cifar" in network else 1000)
    tensors = [value.clone() for value in model.state_dict().values()]
    tensors += [torch.zeros_like(parameter) for parameter in model.parameters()]
    outer = OuterOptimizer(Policy(torch.zeros(NUM_OPERATIONS, dtype=torch.float64)), 0.05, (0.5, 0.999))
    counts_K = torch.ones(1, NUM_OPERATIONS, dtype=torch.int64)

    def plain(turn: int) -> None:
        groups_module._broadcast(tensors, turn % processes, None)

    def columns_whole(turn: int) -> None:
        groups_module._broadcast(tensors, turn % groups, layout.column)

    def adopt(turn: int) -> None:
        layout.adopt(turn % groups, [tensors])

    def outer_step(turn: int) -> None:
        reward_N = layout.gather(torch.rand(1, 4, dtype=torch.float64))[:, 0]
        outer.step(layout.gather(counts_K), reward_N - reward_N.mean())
        adopt(turn)

    def outer_step_checked(turn: int) -> None:
        outer_step(turn)
        layout.assert_equal([tensors], "the states adopted")

    contenders: dict[str, Callable[[int], None]] = {
        "broadcast": plain,
        "columns_whole": columns_whole,
        "adopt": adopt,
        "outer_step": outer_step,
        "outer_step_checked": outer_step_checked,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(ROUNDS + 1):  # interleaved, so that the load of the machine meets all alike
        for name, contender in contenders.items():
            dist.barrier()
            start = time.perf_counter()
            contender(turn)
            dist.barrier()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    if rank == 0:
        size = sum(tensor.nbytes for tensor in tensors)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        print(json.dumps({"bytes": size, **medians}))
    dist.destroy_process_group()


def search_worker(result: str, overrides: Sequence[str]) -> None:
    """The search itself, with the time in the augmentation and the resident memory after each outer step."""
    from ohl_accel.augment import Augmentation
    from ohl_accel.prepare import execute, join_launch
    from ohl_accel.run import Run
    from ohl_accel.search import learn

    augmenting, resident = [0.0], []

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                augmenting[0] += time.perf_counter() - start

        return call

    validate = Run.validate

    def noting(self: Run, outer_step: int, look: bool = True) -> dict[str, torch.Tensor]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
        return validate(self, outer_step, look)

    for name in ("basic", "apply", "finish"):
        setattr(Augmentation, name, timed(getattr(Augmentation, name)))
    Run.validate = noting  # type: ignore[method-assign]
    recipe, accelerator = join_launch(overrides[0], overrides[1:])
    execute(recipe, accelerator, learn, learn_policy=True)
    if accelerator.is_main_process:
        Path(result).write_text(json.dumps({"augment": augmenting[0], "resident": resident}))
    leave()


def search(processes: int, folder: Path, *overrides: str) -> dict[str, Any]:
    """A small search: mean seconds of each phase of an outer step without the first, and the memory."""
    result, run = folder / f"result{processes}.json", folder / f"run{processes}"
    launch(processes, "search-worker", str(result), *RECIPE, f"run.dir={run}", *overrides)
    measured: dict[str, Any] = json.loads(result.read_text())
    lines = [json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = lines[-1].keys()
    measured["seconds"] = {
        name: statistics.fmean(line.get(name, 0.0) for line in lines[1:]) for name in names
    }
    measured["augment"] /= len(lines)
    return measured


def print_phases() -> None:
    """Phases of an outer step: N = 8, one epoch of the digits."""
    print(
        "| processes | load | augment | forward/backward | validate | gather + update | adopt + check | save | sum |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, 2, 4, 8):
            measured = search(processes, Path(folder), "outer.steps=6")
            seconds, augment = measured["seconds"], measured["augment"]
            values = [
                seconds["load"],
                augment,
                seconds["train"] - augment,
                *(seconds[name] for name in ("validate", "update", "adopt", "save")),
            ]
            row = [f"{value:.3f}" for value in [*values, sum(values)]]
            print(f"| {processes} | {' | '.join(row)} |", flush=True)


def print_exchange(
    network: str, hosts: TwoHosts | None, layouts: Sequence[tuple[int, int]], label: str
) -> None:
    """Rows of (processes, groups): seconds, and times over one plain broadcast."""
    for processes, groups in layouts:
        seconds = json.loads(launch(processes, "exchange-worker", network, str(groups), hosts=hosts))
        plain = seconds["broadcast"]
        names = ("columns_whole", "adopt", "outer_step", "outer_step_checked")
        ratios = [f"{seconds[name]:.3f} ({seconds[name] / plain:.2f})" for name in names]
        print(
            f"| {label} | {processes} | {groups} x {processes // groups} | {seconds['bytes'] / 1e6:.0f} | "
            f"{plain:.3f} | {' | '.join(ratios)} |",
            flush=True,
        )


def print_exchange_head() -> None:
    """Of the tables of exchanges."""
    print(
        "| cable | processes | groups | MB | broadcast, s | columns, whole state, s (ratio) | adopt | "
        "gather + update + adopt | with the check |"
    )
    print("|---|---|---|---|---|---|---|---|---|")


def print_memory() -> None:
    """Resident memory of the main process over 200 outer steps."""
    print("| processes | trajectories hosted | after 20 | after 100 | after 200 outer steps, MiB |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, 2):
            steps = ("outer.steps=200", "outer.inner_steps=2", "run.checkpoint_every=10")
            resident = search(processes, Path(folder), "outer.trajectories=2", *steps)["resident"]
            row = " | ".join(f"{resident[step - 1] / 2**20:.1f}" for step in (20, 100, 200))
            print(f"| {processes} | {2 // processes} | {row} |", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", choices=["phases", "exchange", "cable", "memory", "exchange-worker", "search-worker"]
    )
    parser.add_argument("rest", nargs="*")
    arguments = parser.parse_args()
    match arguments.what:
        case "phases":
            print_phases()
        case "exchange":
            print_exchange_head()
            print_exchange("resnet18_cifar", None, [(2, 2), (4, 4), (4, 2), (8, 8), (8, 2)], "loopback")
        case "cable":
            print_exchange_head()
            for rate in ("1gbit", "250mbit"):
                hosts = TwoHosts(rate=rate)
                try:
                    print_exchange("resnet18_cifar", hosts, [(2, 2), (4, 4), (4, 2), (8, 2)], rate)
                finally:
                    hosts.remove()
        case "memory":
            print_memory()
        case "exchange-worker":
            exchange_worker(arguments.rest[0], int(arguments.rest[1]))
        case "search-worker":
            search_worker(arguments.rest[0], arguments.rest[1:])


if __name__ == "__main__":
    main()
