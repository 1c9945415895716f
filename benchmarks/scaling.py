"""Cost of an outer step on several processes, fitted and projected to many GPUs (Linux).

python -m benchmarks.scaling phases     seconds of each phase on 1, 2, 4, 8 processes, and on two hosts
python -m benchmarks.scaling exchange   the exchanges of an outer step against one plain broadcast
python -m benchmarks.scaling cable      the same between two hosts, with limited bandwidth
python -m benchmarks.scaling memory     memory of each process, over 200 outer steps
python -m benchmarks.scaling project    the cost model and docs/scaling.md, from these measurements

Each takes a few minutes on two idle cores and writes its part of benchmarks/results/scaling.json, from which
benchmarks/results/scaling.md is generated. Two hosts are network namespaces with a cable: root and iproute2.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import create_model

import ohl_accel.models  # noqa: F401  registers our networks with timm
from benchmarks.hosts import TwoHosts
from benchmarks.scaling_pages import BATCH_SIZE, RATES, TRAJECTORIES, results_page
from benchmarks.scaling_projection import document
from benchmarks.scaling_worker import launch
from ohl_accel.comparison.summary import processor

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
MEMORY_BATCH = 20
SEARCH = ["recipes/digits.yaml", "run.display=quiet", "run.mixed_precision=no"]


def measure_phases(quick: bool) -> list[dict[str, Any]]:
    """Rows: 8 trajectories of a network with 10 MB of state, 2 inner steps for each outer step."""
    plans: list[tuple[str | None, int, int]] = [(None, processes, processes) for processes in (1, 2, 4, 8)]
    plans += [(rate, processes, 2) for rate in RATES for processes in (2, 4)]
    rows = []
    for rate, processes, groups in plans[1:2] if quick else plans:
        hosts = TwoHosts(rate) if rate else None
        try:
            overrides = [f"outer.groups={groups}", f"outer.steps={3 if quick else 8}", "outer.inner_steps=2"]
            ranks = search(
                processes,
                hosts,
                f"outer.trajectories={TRAJECTORIES}",
                f"inner.batch_size={BATCH_SIZE}",
                *overrides,
            )
        finally:
            if hosts is not None:
                hosts.remove()
        row = {"rate": rate, "processes": processes, "groups": groups, "state_bytes": ranks[0]["state_bytes"]}
        rows.append({**row, "inner_steps": 2, **_phases_of([rank["steps"] for rank in ranks])})
        print(rows[-1], flush=True)
    return rows


def _phases_of(steps_of_ranks: Sequence[Sequence[dict[str, list[float]]]]) -> dict[str, dict[str, float]]:
    """Medians over outer steps without the first two: `seconds` of the main process, `processor` of all."""
    main = steps_of_ranks[0][2:] or steps_of_ranks[0][1:]
    names = [name for name in main[-1] if name != "track"]
    first = len(steps_of_ranks[0]) - len(main)
    return {
        "seconds": {name: statistics.median(step[name][0] for step in main) for name in names},
        "processor": {
            name: statistics.median(
                sum(steps[number].get(name, [0, 0])[1] for steps in steps_of_ranks)
                for number in range(first, len(steps_of_ranks[0]))
            )
            for name in names
        },
    }


def search(processes: int, hosts: TwoHosts | None, *overrides: str, width: int = 64) -> list[dict[str, Any]]:
    """The measurements of each process in a small search."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*SEARCH, f"run.dir={folder}/run", f"model.args.width={width}", *overrides]
        launch(processes, "search", folder, *arguments, hosts=hosts)
        return [json.loads((Path(folder) / f"rank{rank}.json").read_text()) for rank in range(processes)]


def measure_exchange(quick: bool) -> list[dict[str, Any]]:
    """Rows on one machine: the state of the paper's ResNet-18 for CIFAR."""
    plans = [(2, 2), (4, 4), (4, 2), (8, 8), (8, 2)]
    network = "resnet8_cifar" if quick else "resnet18_cifar"
    return [_exchange(None, None, *plan, network, 11) for plan in (plans[:1] if quick else plans)]


def measure_cable(quick: bool) -> list[dict[str, Any]]:
    """Rows between two hosts: a state of 39 MB over 1 Gbit/s and 250 Mbit/s."""
    rows = []
    for rate in ("1gbit",) if quick else RATES:
        hosts = TwoHosts(rate)
        try:
            for plan in [(4, 4)] if quick else [(2, 2), (4, 2), (8, 2), (4, 4), (8, 8)]:
                width = 32 if quick else 128
                rows.append(_exchange(hosts, rate, *plan, "resnet8_cifar", 1 if quick else 3, width=width))
        finally:
            hosts.remove()
    return rows


def _exchange(
    hosts: TwoHosts | None,
    rate: str | None,
    processes: int,
    groups: int,
    network: str,
    rounds: int,
    **options: Any,
) -> dict[str, Any]:
    with torch.device("meta"):
        model = create_model(network, num_classes=10, **options)
    shapes = [list(value.shape) for value in model.state_dict().values()]
    shapes += [list(parameter.shape) for parameter in model.parameters()]  # their momentum
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "state.json").write_text(json.dumps(shapes))
        launch(processes, "exchange", folder, str(groups), str(rounds), hosts=hosts, forks=True)
        measured = json.loads((Path(folder) / "exchange.json").read_text())
    row = {
        "rate": rate,
        "processes": processes,
        "groups": groups,
        "network": network,
        "state_bytes": measured["bytes"],
        "seconds": {name: statistics.median(values) for name, values in measured["seconds"].items()},
        "cable_bytes": {name: statistics.fmean(values) for name, values in measured["cable_bytes"].items()},
        "cable_bytes_most": max(measured["cable_bytes"]["adopt"]),
    }
    print(row, flush=True)
    return row


def measure_memory(quick: bool) -> list[dict[str, Any]]:
    """Rows over 200 outer steps, and for more hosted trajectories over 40.

    The baseline of each number of processes is the same search with a network of 21 kB: interpreter,
    libraries, data and buffers.
    """
    plans = [(1, 2, 200), (2, 2, 200), (4, 4, 200), (1, 4, 40), (2, 4, 40), (2, 8, 40)]
    width, rows, baselines = (16 if quick else 128), [], {}
    for processes, trajectories, steps in [(1, 2, 4)] if quick else plans:
        if processes not in baselines:
            baselines[processes] = _remembered(processes, processes * 2, 10, width=4)
        measured = _remembered(processes, trajectories, steps, width)
        row = {"processes": processes, **measured}
        row["baseline"] = baselines[processes]["resident"][-1]
        row["activation_bytes"] = activation_bytes(width, MEMORY_BATCH)
        rows.append(row)
        print({**row, "resident": [size >> 20 for size in row["resident"][::10]]}, flush=True)
    return rows


def _remembered(processes: int, trajectories: int, steps: int, width: int) -> dict[str, Any]:
    """Memory of the main process in a search: `resident` after each outer step's training, and the `peak`."""
    overrides = [f"outer.trajectories={trajectories}", f"outer.steps={steps}", "outer.inner_steps=1"]
    overrides += [f"inner.batch_size={MEMORY_BATCH}", "data.heldout=20", "run.checkpoint_every=50"]
    main, *_ = search(processes, None, *overrides, width=width)
    return {
        **{name: main[name] for name in ("hosted", "state_bytes", "gradient_bytes", "live")},
        "resident": [step["resident"] for step in main["memory"]],
        "peak": main["memory"][-1]["peak"],
    }


def activation_bytes(width: int, batch_size: int) -> int:
    """Bytes that autograd keeps of a mini-batch for the backward pass, without the weights."""
    network = create_model("resnet8_cifar", num_classes=10, in_chans=1, width=width)
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(batch_size, 1, 8, 8))
    return sum(kept.values())


def circumstances() -> dict[str, Any]:
    """Hardware, versions and command of a measurement."""
    return {
        "command": shell_command(),
        "device": processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}",
        "date": str(date.today()),
    }


def shell_command() -> str:
    """The command line of this program."""
    return " ".join(["python -m benchmarks.scaling", *sys.argv[1:]])


MEASURES = {
    "phases": measure_phases,
    "exchange": measure_exchange,
    "cable": measure_cable,
    "memory": measure_memory,
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=[*MEASURES, "project"])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of scaling.json and scaling.md")
    parser.add_argument("--quick", action="store_true", help="one small row, to check that it works")
    options = parser.parse_args()
    file = options.results / "scaling.json"
    measured = json.loads(file.read_text()) if file.exists() else {}
    if options.what == "project":
        missing = [part for part in ("phases", "exchange", "cable") if part not in measured]
        if missing:
            parser.error(f"{file} has no measurements of {', '.join(missing)}: run them first")
        document(measured, REPOSITORY / "docs")
    else:
        before = circumstances()  # the load average before our own load
        measured[options.what] = {**before, "rows": MEASURES[options.what](options.quick)}
        file.write_text(json.dumps(measured, indent=1) + "\n")
    (options.results / "scaling.md").write_text(results_page(measured))


if __name__ == "__main__":
    main()
