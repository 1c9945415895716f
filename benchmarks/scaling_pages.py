"""The page of measured costs of an outer step, with predictions of the cost model.

"Columns" on this page are replica groups (see `benchmarks.cost_model`).
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import cost_model
from benchmarks.cost_model import Coefficients, Layout, Row, Work

RATES = {"1gbit": 1e9 / 8, "250mbit": 250e6 / 8}
"""Bandwidth of the cables, in tc's notation -> bytes/s."""
EXCHANGES = ("broadcast", "columns_whole", "adopt", "gather")
PHASES = ("load", "augment", "train", "validate", "gather", "update", "adopt", "check", "save")
TRAJECTORIES, BATCH_SIZE, HELDOUT = 8, 100, 297
"""Settings of the search whose phases are measured."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    return [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
        "",
    ]


def layout_of(row: Mapping[str, Any], cores: float) -> Layout:
    """The layout of a measured row: two hosts have half of the processes each, and all processes share the cores."""
    machine_size = row["processes"] if row["rate"] is None else row["processes"] // 2
    return Layout(row["processes"], row["groups"], machine_size, cores)


def work_of(name: str, layout: Layout, size: float, trajectories: int) -> Work:
    """The work of one of `EXCHANGES`."""
    if name == "gather":
        return cost_model.gather(layout, trajectories)
    work: Work = getattr(cost_model, name)(layout, size)
    return work


def exchange_rows(measured: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], Row]]:
    """(exchange, measured row, the same for the model) for everything in `exchange` and `cable`."""
    rows = []
    for part in (measured[name] for name in ("exchange", "cable") if name in measured):
        for row in part["rows"]:
            layout = layout_of(row, part["cores"])
            bandwidth = RATES.get(row["rate"], math.inf)
            for name in EXCHANGES:
                work = work_of(name, layout, row["state_bytes"], row["groups"])
                ending = math.ceil(math.log2(layout.processes))  # a barrier before the clock is read
                work = replace(work, messages=work.messages + ending)
                rows.append((name, row, Row(layout, work, bandwidth, row["seconds"][name])))
    return rows


def check_seconds(measured: Mapping[str, Any]) -> float:
    """Seconds of one core per byte of a checksum."""
    amounts, seconds = [], []
    for part in (measured[name] for name in ("exchange", "cable") if name in measured):
        for row in part["rows"]:
            amounts.append([row["state_bytes"] * layout_of(row, part["cores"]).per_core])
            seconds.append(row["seconds"]["check"])
    return cost_model.costs_of(amounts, seconds)[0]


def phase_amounts(row: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """(images, batches) processed in each phase of an outer step, over all processes."""
    steps, processes = row["inner_steps"], row["processes"]
    batches = steps * TRAJECTORIES * processes // row["groups"]
    trained = steps * BATCH_SIZE * TRAJECTORIES
    return {
        "load": (steps * BATCH_SIZE * row["groups"], steps * processes),
        "augment": (trained, batches),
        "train": (trained, batches),
        "validate": (HELDOUT * TRAJECTORIES, 0),
    }


@dataclass(frozen=True)
class Cost:
    """CPU seconds of a phase."""

    image: float
    batch: float
    error: float
    """The largest relative error among the rows."""


def phase_costs(measured: Mapping[str, Any]) -> dict[str, Cost]:
    """Costs fitted to the CPU time of all processes."""
    rows, fitted = measured["phases"]["rows"], {}
    for phase in phase_amounts(rows[0]):
        amounts = [phase_amounts(row)[phase] for row in rows]
        seconds = [row["processor"][phase] for row in rows]
        image, batch = cost_model.costs_of(amounts, seconds)
        predicted = [images * image + batches * batch for images, batches in amounts]
        errors = [abs(a / b - 1) for a, b in zip(predicted, seconds, strict=True)]
        fitted[phase] = Cost(image, batch, max(errors))
    return fitted


def costs_in_words(measured: Mapping[str, Any]) -> str:
    """The costs of all phases as text."""
    return "; ".join(
        f"{phase} {1e6 * cost.image:.1f} µs"
        + (f" and {1e3 * cost.batch:.2f} ms for a batch" if cost.batch else "")
        + f" (error of a row up to {100 * cost.error:.0f} %)"
        for phase, cost in phase_costs(measured).items()
    )


def predicted_phases(measured: Mapping[str, Any], row: Mapping[str, Any], exchanges: Coefficients) -> float:
    """Predicted seconds of an outer step: CPU time divided by the cores, plus the exchanges."""
    cores = measured["phases"]["cores"]
    layout, size = layout_of(row, cores), row["state_bytes"]
    bandwidth = RATES.get(row["rate"], math.inf)
    working = min(cores, layout.processes)
    costs = phase_costs(measured)
    amounts = phase_amounts(row)
    compute: float = sum(
        (images * costs[phase].image + batches * costs[phase].batch) / working
        for phase, (images, batches) in amounts.items()
    )
    hosted: float = TRAJECTORIES / layout.groups
    exchanged = 0.0
    if layout.groups > 1:
        works = [cost_model.gather(layout, TRAJECTORIES), cost_model.adopt(layout, size)]
        exchanged = sum(exchanges.seconds(layout, work, bandwidth) for work in works)
    copied: float = (hosted - 1) * layout.processes * size * exchanges.copy / working
    checked: float = hosted * layout.per_core * size * check_seconds(measured)
    return compute + exchanged + copied + checked


def error_of_outer_step(
    measured: Mapping[str, Any], row: Mapping[str, Any], exchanges: Coefficients
) -> float:
    """Predicted over measured, minus 1, without saving."""
    took = sum(row["seconds"].values()) - row["seconds"]["save"]
    return float(predicted_phases(measured, row, exchanges) / took - 1)


def results_page(measured: Mapping[str, Any]) -> str:
    """benchmarks/results/scaling.md."""
    lines = [
        "# What an outer step costs on several processes",
        "",
        "Linux, gloo, every process on one thread. Two hosts are network namespaces on one machine with a cable "
        "between them (tbf); they share its cores. Medians. [docs/scaling.md](../../docs/scaling.md) has the cost "
        "model fitted to these tables, and what it says about many GPUs.",
        "",
    ]
    for name, section in (
        ("phases", _phases),
        ("exchange", _exchange),
        ("cable", _cable),
        ("memory", _memory),
    ):
        if name in measured:
            part = measured[name]
            lines += section(measured, part["rows"])
            lines += [
                f"- command: `{part['command']}`",
                f"- {part['device']}, {part['cores']} cores; load average before it began {part['load_average']}",
                f"- {part['versions']}; {part['date']}",
                "",
            ]
    return "\n".join(lines)


def _phases(measured: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    exchanges = (
        cost_model.fit([row for _, _, row in exchange_rows(measured)]) if "cable" in measured else None
    )
    cores = measured["phases"]["cores"]
    head = ["cable", "processes", "groups", "processes for a core", *PHASES, "sum"]
    seconds: list[list[object]] = []
    processor: list[list[object]] = []
    for row in rows:
        layout = layout_of(row, cores)
        start = [row["rate"] or "none", layout.processes, f"{layout.groups} x {layout.group_size}"]
        start.append(f"{layout.per_core:g}")
        for kind, found in (("seconds", seconds), ("processor", processor)):
            values = [row[kind].get(name, 0.0) for name in PHASES]
            found.append([*start, *(f"{value:.3f}" for value in [*values, sum(values)])])
        if exchanges is not None:
            seconds[-1].append(f"{predicted_phases(measured, row, exchanges) + row['seconds']['save']:.3f}")
    return [
        "## Phases of an outer step",
        "",
        f"{TRAJECTORIES} trajectories of `resnet8_cifar` with width=64 ({rows[0]['state_bytes'] / 1e6:.0f} MB of "
        f"state), {rows[0]['inner_steps']} inner steps of {BATCH_SIZE} digits, {HELDOUT} held-out images. "
        "Seconds by the main process's clock, as `metrics.jsonl` has them; `train` is forward, backward and the "
        "optimizer; `gather` is the exchange and the time in which the main process waits for the others. With more "
        "processes than cores a core is shared, so seconds stop falling there; processor time is free of that. "
        "`model` is what the cost model predicts of the sum, with the measured time of `save`.",
        "",
        *table([*head, "model"] if exchanges else head, seconds),
        "Processor time of all processes together, seconds:",
        "",
        *table(head, processor),
        f"Processor time of an image, fitted: {costs_in_words(measured)}.",
        "",
    ]


def _exchange_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ["cable", "processes", "groups", "MB", "broadcast, s", "columns, whole state, s (ratio)"]
    names = ["columns_whole", "adopt", "synchronize", "synchronize_and_check", "gather", "check"]
    head += ["adopt", "gather + update + adopt", "with the check", "gather alone", "check alone"]
    body = []
    for row in rows:
        seconds = row["seconds"]
        ratios = [f"{seconds[name]:.3f} ({seconds[name] / seconds['broadcast']:.2f})" for name in names]
        layout = layout_of(row, 1)
        start = [row["rate"] or "none", layout.processes, f"{layout.groups} x {layout.group_size}"]
        body.append([*start, f"{row['state_bytes'] / 1e6:.0f}", f"{seconds['broadcast']:.3f}", *ratios])
    return table(head, body)


def _exchange(measured: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        "## Exchanges on one machine",
        "",
        "The state of the paper's ResNet-18 for CIFAR, weights, buffers and momentum. `broadcast` is one plain "
        "broadcast of it to all processes in buckets of 25 MB; `columns, whole state` is adoption as it was at first: "
        "each column of processes carries all of the state. The numbers in brackets are times over `broadcast`.",
        "",
        *_exchange_table(rows),
    ]


def _cable(measured: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    body = []
    for row in rows:
        layout, size = layout_of(row, 1), row["state_bytes"]
        counted = [row["cable_bytes"][name] / size for name in ("broadcast", "columns_whole", "adopt")]
        expected = [
            work_of(name, layout, size, 1).link_bytes / size
            for name in ("broadcast", "columns_whole", "adopt")
        ]
        pairs = [f"{count:.2f} ({exact:.2f})" for count, exact in zip(counted, expected, strict=True)]
        start = [row["rate"], layout.processes, f"{layout.groups} x {layout.group_size}"]
        body.append([*start, *pairs, f"{row['cable_bytes_most'] / size:.3f}"])
    return [
        "## Exchanges between two hosts",
        "",
        *_exchange_table(rows),
        "Bytes that crossed the cable in its busier direction (the kernel's counters; headers are up to 4.6 %) over "
        "the bytes of the state; in brackets what the model counts. The mean over the senders; for `adopt` also the "
        "most.",
        "",
        *table(
            ["cable", "processes", "groups", "broadcast", "columns, whole state", "adopt", "adopt, most"],
            body,
        ),
    ]


def memory_budget(row: Mapping[str, Any]) -> dict[str, float]:
    """Bytes of the main process, by purpose."""
    return {
        "baseline": row["baseline"],
        "hosted states": row["hosted"] * row["state_bytes"],
        "gradients": row["gradient_bytes"],
        "activations": row["activation_bytes"],
        "bucket": cost_model.BUCKET_BYTES if row["processes"] > 1 else 0,
        "checkpoint as it is written": row["state_bytes"],
    }


def slope(values: Sequence[float], first: int) -> float:
    """Growth per step from `first` on, by least squares."""
    rest = values[first:]
    return statistics.linear_regression(range(len(rest)), rest).slope


def _memory(measured: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    over_time, budgets, grows = [], [], []
    for row in rows:
        resident, budget = row["resident"], memory_budget(row)
        start = [row["processes"], row["hosted"]]
        at = [_mib(resident[step - 1]) if step <= len(resident) else "" for step in (20, 40, 100, 200)]
        starts = (20, len(resident) // 2)
        growths = [100 * slope(resident, first) / 2**20 for first in starts if len(resident) - first > 1]
        growing = [f"{growth:+.2f}" for growth in growths]
        growing = [""] * (len(starts) - len(growing)) + growing  # a quick run is too short for the first
        over_time.append([*start, *at, *growing, _mib(row["peak"]), _mib(row["live"])])
        whole = sum(budget.values())
        budgets.append([*start, *map(_mib, budget.values()), _mib(whole), f"{max(resident) / whole:.2f}"])
        for more in rows:
            further = more["hosted"] - row["hosted"]
            if more["processes"] == row["processes"] and further > 0:
                each = (more["live"] - row["live"]) / further
                steps = [row["processes"], f"{row['hosted']} to {more['hosted']}"]
                state = row["state_bytes"]
                grows.append([*steps, _mib(each), _mib(state), f"{each / state:.2f}"])
    return [
        "## Memory of a process",
        "",
        "The main process, MiB: resident after the training of an outer step, its peak, and at the end after what is "
        "free went back to the system (`live`). Where it grows by a step, the allocator keeps what was freed: `live` "
        "is what the states take.",
        "",
        *table(
            [
                "processes", "trajectories hosted", "after 20 outer steps", "40", "100", "200",
                "growth in 100, after 20", "in the second half", "peak", "live",
            ],
            over_time,
        ),
        "The budget. `baseline` is the same search with a network of 21 kB: interpreter, libraries and data. Pixels "
        "are in memory, so nothing is fetched ahead; where workers decode, five batches more, in shared memory.",
        "",
        *table(["processes", "hosted", *memory_budget(rows[0]), "sum", "most resident / sum"], budgets),
        "What each further hosted trajectory takes, of `live`:",
        "",
        *table(["processes", "hosted", "each more takes", "one state", "ratio"], grows),
    ]  # fmt: skip


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f}"
