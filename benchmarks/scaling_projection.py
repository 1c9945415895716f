"""The generated part of docs/scaling.md: the fitted cost model, and its projection to many GPUs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import timm
import torch
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from benchmarks import cost_model
from benchmarks.cost_model import Coefficients, Hardware, Layout, Task
from benchmarks.pages import replace_between
from benchmarks.scaling_pages import costs_in_words, error_of_outer_step, exchange_rows, table

BEGIN, END = "<!-- made by `python -m benchmarks.scaling project`: begin -->", "<!-- end -->"
CHART = "scaling.svg"

MACHINE = 8
"""GPUs per node."""
GPUS = tuple(2**power for power in range(11))
IMAGES, BATCH_SIZE = 1_231_167, 2048
"""ImageNet's training images without the 50,000 held out, and the paper's batch size."""
EPOCH = IMAGES // BATCH_SIZE
SLOW, FAST = "one 100 Gbit/s link for each machine", "eight of 400 Gbit/s"
LINKS = {SLOW: 100e9 / 8, FAST: 8 * 400e9 / 8}
ASSUMED = Hardware(
    inner_step=0.025,
    train_image=1 / 2500,
    validate_image=1 / 6000,
    link=LINKS[SLOW],
    inside=300e9,
    memory=2e12,
    disk=1e9,
    message=10e-6,
    update=0.0,  # measured instead
)
DEFAULTS = Task(0, 4, BATCH_SIZE, 50_000, eval_batch_size=500, checkpoint_every=1)
TUNED = replace(DEFAULTS, eval_batch_size=196, checkpoint_every=10)
INNER_STEPS = (1, 10, 100, EPOCH)


def resnet50_state() -> int:
    """Bytes of weights, buffers and momentum."""
    with torch.device("meta"):
        network = timm.create_model("resnet50")
    return sum(value.nbytes for value in [*network.state_dict().values(), *network.parameters()])


def layout_on(gpus: int) -> Layout:
    """The layout for four trajectories, with as many groups as possible."""
    return Layout(gpus, min(DEFAULTS.trajectories, gpus), min(MACHINE, gpus))


def hardware(measured: Mapping[str, Any], link: str = SLOW) -> Hardware:
    """The assumed hardware, with the measured time of the step on theta."""
    alone = next(row for row in measured["phases"]["rows"] if row["processes"] == 1)
    return replace(ASSUMED, link=LINKS[link], update=alone["seconds"]["update"])


def parts_of(
    task: Task, gpus: int, machines: Hardware, fitted: Coefficients, whole: bool = False
) -> Mapping[str, float]:
    """Seconds of each part of the outer loop, with NCCL's rings; `whole`: each process receives the whole state."""
    layout, size = layout_on(gpus), task.state_bytes
    work = cost_model.adopt(layout, size, ring=True)
    if whole and layout.machines > 1:
        work = replace(work, link_bytes=min(layout.group_size, layout.machine_size) * size)
    return cost_model.outer_loop(task, layout, machines, fitted.link, work)


def generated(measured: Mapping[str, Any]) -> str:
    """Markdown between the two marks."""
    rows = [row for _, _, row in exchange_rows(measured)]
    fitted = cost_model.fit(rows)
    size = resnet50_state()
    defaults, tuned = replace(DEFAULTS, state_bytes=size), replace(TUNED, state_bytes=size)
    return "\n".join(
        [
            *_fit(measured, fitted),
            *_assumptions(measured, fitted, size),
            *_largest(measured, fitted, defaults, tuned),
            *_by_gpus(measured, fitted, tuned),
        ]
    )


def _fit(measured: Mapping[str, Any], fitted: Coefficients) -> list[str]:
    rows = exchange_rows(measured)
    every = [row for _, _, row in rows]
    slow = [row for _, found, row in rows if found["rate"] == "250mbit"]
    others = [row for _, found, row in rows if found["rate"] != "250mbit"]
    held_out = cost_model.relative_errors(cost_model.fit(others), slow)
    errors = cost_model.relative_errors(fitted, every)
    body = []
    for name in dict.fromkeys(name for name, _, _ in rows):
        own = [abs(error) for error, (other, _, _) in zip(errors, rows, strict=True) if other == name]
        far = [abs(error) for error, row in zip(held_out, slow, strict=True) if row in _of(rows, name)]
        body.append([f"`{name}`", len(own), *_spread(own), *_spread(far)])
    body.append(["all", len(errors), *_spread(errors), *_spread(held_out)])
    steps = measured["phases"]["rows"]
    off = [error_of_outer_step(measured, row, fitted) for row in steps]
    return [
        "### Fitted",
        "",
        f"{len(every)} exchanges measured on 2 to 8 processes, on one machine and between two hosts at 1 Gbit/s and "
        f"250 Mbit/s: alpha = {1e3 * fitted.message:.2f} ms for a message, beta = {fitted.link:.2f} of the wire's "
        f"time, gamma = {1e9 * fitted.copy:.2f} ns for a byte copied by one core. The relative errors of the fit; and "
        "of the 250 Mbit/s rows, when they are predicted by a fit without them (a `gather` takes milliseconds):",
        "",
        *table(["exchange", "rows", "error, median", "most", "held out, median", "most"], body),
        f"Whole outer steps of a search on {len(steps)} layouts and cables, predicted from these and from the "
        f"processor time of each phase: median error {_spread(off)[0]}, most {_spread(off)[1]}.",
        "",
        f"Processor time of an image (digits of 8 x 8, `resnet8_cifar` with width=64): "
        f"{costs_in_words(measured)}.",
        "",
    ]


def _of(rows: Sequence[Any], name: str) -> list[cost_model.Row]:
    return [row for other, _, row in rows if other == name]


def _spread(errors: Sequence[float]) -> list[str]:
    """Median and largest absolute error, in percent."""
    ordered = sorted(map(abs, errors))
    return [f"{100 * ordered[len(ordered) // 2]:.0f} %", f"{100 * ordered[-1]:.0f} %"]


def _assumptions(measured: Mapping[str, Any], fitted: Coefficients, size: float) -> list[str]:
    machines = hardware(measured)
    body = [
        ["training, all of it, on one GPU", f"{1 / machines.train_image:,.0f} images/s", "assumed"],
        [
            "least time of an inner step",
            f"{1e3 * machines.inner_step:.0f} ms",
            "assumed (latency, all-reduce)",
        ],
        ["validation on one GPU", f"{1 / machines.validate_image:,.0f} images/s", "assumed"],
        ["into a machine of 8 GPUs", f"{SLOW}, or {FAST}", "assumed"],
        ["between the GPUs of a machine", f"{machines.inside / 1e9:.0f} GB/s", "assumed"],
        ["memory of a GPU", f"{machines.memory / 1e12:.0f} TB/s", "assumed"],
        ["disk of process 0", f"{machines.disk / 1e9:.0f} GB/s", "assumed"],
        ["a message (NCCL)", f"{1e6 * machines.message:.0f} µs", "assumed"],
        ["time on a link over the wire's", f"{fitted.link:.2f}", "measured: beta"],
        ["step on theta", f"{1e3 * machines.update:.1f} ms", "measured on a CPU"],
        ["state of ResNet-50", f"{size / 1e6:.1f} MB", "counted"],
    ]
    return ["### What the projection rests on", "", *table(["", "value", ""], body)]


def _largest(measured: Mapping[str, Any], fitted: Coefficients, defaults: Task, tuned: Task) -> list[str]:
    gpus = GPUS[-1]
    layout = layout_on(gpus)
    slow, fast = hardware(measured), hardware(measured, FAST)
    gloo = replace(slow, message=fitted.message)
    columns = [
        ("whole state to each process", parts_of(defaults, gpus, slow, fitted, whole=True)),
        ("defaults", parts_of(defaults, gpus, slow, fitted)),
        ("tuned", parts_of(tuned, gpus, slow, fitted)),
        (f"tuned, {FAST}", parts_of(tuned, gpus, fast, fitted)),
        ("tuned, messages as slow as gloo's", parts_of(tuned, gpus, gloo, fitted)),
    ]
    body = [[part, *(_ms(parts[part]) for _, parts in columns)] for part in columns[0][1]]
    totals = [sum(parts.values()) for _, parts in columns]
    inner = cost_model.inner_step(tuned, layout, slow)
    body.append(["**sum**", *(f"**{_ms(total)}**" for total in totals)])
    body.append(["share, one epoch for each outer step", *(_share(total, EPOCH * inner) for total in totals)])
    return [
        f"### ResNet-50 on {gpus:,} GPUs: milliseconds of the outer loop",
        "",
        f"N = {defaults.trajectories}, {layout.groups} groups of {layout.group_size}, batch {BATCH_SIZE:,}: "
        f"{BATCH_SIZE // layout.group_size} images for each GPU, {1e3 * inner:.0f} ms an inner step, {EPOCH} of them "
        f"in an epoch. Defaults: `data.eval_batch_size={defaults.eval_batch_size}`, a checkpoint after each outer "
        f"step. Tuned: `data.eval_batch_size={tuned.eval_batch_size}`, "
        f"`run.checkpoint_every={tuned.checkpoint_every}`.",
        "",
        *table(["part", *(name for name, _ in columns)], body),
    ]


def _by_gpus(measured: Mapping[str, Any], fitted: Coefficients, tuned: Task) -> list[str]:
    body = []
    for gpus in GPUS[3:]:
        parts, inner = parts_of(tuned, gpus, hardware(measured), fitted), _inner(measured, tuned, gpus)
        outer = sum(parts.values())
        rest = outer - parts["validate"]
        layout = layout_on(gpus)
        fewest = [cost_model.inner_steps_for(fraction, outer, inner) for fraction in (0.1, 0.01)]
        shares = [_share(outer, steps * inner) for steps in INNER_STEPS]
        start = [f"{gpus:,}", f"{layout.groups} x {layout.group_size}", _ms(inner), _ms(parts["validate"])]
        body.append([*start, _ms(rest), *shares, *(f"{steps:,}" for steps in fewest)])
    head = ["GPUs", "groups", "inner step, ms", "validation, ms", "all else, ms"]
    head += [f"share, I = {steps}" for steps in INNER_STEPS]
    head += ["10 % from I =", "1 % from I ="]
    return [
        "### By the number of GPUs",
        "",
        "Tuned, 100 Gbit/s. The outer loop's share of the time with I inner steps for each outer step, and the "
        "fewest I with which it stays within 10 % and 1 %.",
        "",
        *table(head, body),
        *_answers(measured, fitted, tuned),
        f"![share of the outer loop by the number of GPUs]({CHART})",
        "",
    ]


def _answers(measured: Mapping[str, Any], fitted: Coefficients, tuned: Task) -> list[str]:
    """The fewest GPUs with which the outer loop takes more than 1 % and 10 %, with and without validation."""
    body = []
    for steps in INNER_STEPS:
        cells: list[object] = [f"{steps}" if steps != EPOCH else f"{steps} (an epoch)"]
        for without in ((), ("validate",)):
            for limit in (0.01, 0.1):
                above = [
                    gpus for gpus in GPUS if _shares(measured, fitted, tuned, gpus, steps, without) > limit
                ]
                cells.append(f"{above[0]:,}" if above else f"not up to {GPUS[-1]:,}")
        body.append(cells)
    return [
        "The fewest GPUs with which it takes more than that (powers of two were looked at):",
        "",
        *table(["I", "1 %", "10 %", "1 %, without validation", "10 %, without validation"], body),
    ]


def _inner(measured: Mapping[str, Any], task: Task, gpus: int) -> float:
    return cost_model.inner_step(task, layout_on(gpus), hardware(measured))


def _shares(
    measured: Mapping[str, Any],
    fitted: Coefficients,
    task: Task,
    gpus: int,
    steps: int,
    without: Sequence[str] = (),
) -> float:
    parts = parts_of(task, gpus, hardware(measured), fitted)
    counted = sum(seconds for name, seconds in parts.items() if name not in without)
    return counted / (sum(parts.values()) + steps * _inner(measured, task, gpus))


def _ms(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _share(outer: float, inner: float) -> str:
    percent = 100 * outer / (outer + inner)
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def chart(measured: Mapping[str, Any], file: Path) -> None:
    """The outer loop's fraction of the time against the number of GPUs, with and without validation."""
    fitted = cost_model.fit([row for _, _, row in exchange_rows(measured)])
    tuned = replace(TUNED, state_bytes=resnet50_state())
    with mpl.rc_context({"svg.hashsalt": "scaling", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for number, steps in enumerate(INNER_STEPS):
            for without, style in (((), "-"), (("validate",), "--")):
                values = [100 * _shares(measured, fitted, tuned, gpus, steps, without) for gpus in GPUS]
                axes.plot(GPUS, values, style, color=f"C{number}")
                if not without:
                    axes.annotate(f"I = {steps}", (GPUS[-1], values[-1]), (6, -3), textcoords="offset points")
        for limit in (1, 10):
            axes.axhline(limit, color="grey", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(GPUS, [f"{gpus:,}" for gpus in GPUS])
        axes.set_xlabel("GPUs (ResNet-50, N = 4, 100 Gbit/s for each machine; projection)")
        axes.set_ylabel("outer loop, % of the time")
        axes.set_title("Solid: all of the outer loop; dashed: without validation", loc="left", fontsize=10)
        axes.margins(x=0.13)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def document(measured: Mapping[str, Any], docs: Path) -> None:
    """Write the generated part of docs/scaling.md, and its chart."""
    replace_between(docs / "scaling.md", BEGIN, END, f"\n\n{generated(measured)}\n")
    chart(measured, docs / CHART)
