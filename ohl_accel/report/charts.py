"""Charts of a run, drawn by matplotlib as SVG for the page.

Matplotlib gets placeholder colours, which are replaced by the page's CSS variables, so that a chart follows the
theme. Text stays text, in the page's font. Each chart is drawn twice, for wide and for narrow windows.

Shapes: T outer steps, N trajectories.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ohl_accel.policy import Policy
from ohl_accel.report.operations import both_ends
from ohl_accel.report.read import OuterStep

_BARS = 12
"""Number of the most probable operations, and of the least probable ones."""
_STAND_INS = {
    "--ink": "#010101",
    "--muted": "#020202",
    "--line": "#030303",
    "--accent": "#040404",
    "--dot": "#050505",
    **{f"--phase{number}": f"#0606{number:02d}" for number in range(10)},
}
PHASES = ("train", "load", "augment", "validate", "gather", "update", "adopt", "check", "save")
"""The phases of an outer step as in `metrics.jsonl`; any others follow."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "path.simplify": False,
    "font.size": 10.5,
    "text.color": _STAND_INS["--muted"],
    "axes.labelcolor": _STAND_INS["--muted"],
    "axes.edgecolor": _STAND_INS["--line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _STAND_INS["--line"],
    "grid.linewidth": 0.8,
    "xtick.color": _STAND_INS["--line"],
    "ytick.color": _STAND_INS["--line"],
    "xtick.labelcolor": _STAND_INS["--muted"],
    "ytick.labelcolor": _STAND_INS["--muted"],
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


def reward_chart(steps: Sequence[OuterStep]) -> Markup:
    """Rewards of every trajectory and of the winner, and below their differences from the mean.

    Args:
        steps: those with rewards.
    """
    steps_T = [step.outer_step + 1 for step in steps]
    reward_TN = 100 * np.array([step.reward for step in steps], dtype=float)
    winner_T = np.array([step.winner or 0 for step in steps])
    best_T = reward_TN[np.arange(len(steps)), winner_T]
    several = reward_TN.shape[1] > 1
    panels = [("reward, %", reward_TN)]
    if several:
        differences_TN = reward_TN - reward_TN.mean(1, keepdims=True)
        panels.append(("reward minus the mean of its outer step, points", differences_TN))

    def draw(figure: Figure) -> None:
        heights = (3, 2)[: len(panels)]
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        every_T = np.repeat(steps_T, reward_TN.shape[1])
        for axes, (title, values_TN) in zip(rows, panels, strict=True):
            _dots(axes, every_T, values_TN.ravel(), "--dot")
            _dots(axes, steps_T, values_TN[np.arange(len(steps)), winner_T], "--accent")
            axes.set_title(title, loc="left", fontsize=10.5)
        rows[0].plot(steps_T, best_T, color=_STAND_INS["--accent"], linewidth=1.2)
        if several:
            rows[1].axhline(0, color=_STAND_INS["--muted"], linewidth=0.8, zorder=1)
        _outer_step_axis(rows[-1], steps_T)

    summary = f"in the first and {best_T[-1]:.2f} % in the last of {len(steps)} outer steps"
    if several:
        summary = (
            f"Rewards of {reward_TN.shape[1]} trajectories: the winner's was {best_T[0]:.2f} % {summary}; rewards "
            f"of one outer step lie {np.ptp(reward_TN, axis=1).mean():.2f} points apart on average"
        )
    else:
        summary = f"Accuracy on the held-out images: {best_T[0]:.2f} % {summary}"
    return _in_both_sizes(draw, summary, (960, 400 if several else 260), (360, 380 if several else 240))


def entropy_chart(steps: Sequence[OuterStep], uniform: float) -> Markup:
    """Entropy of the policy in nats, and that of the uniform one.

    Args:
        steps: those with an entropy.
        uniform: entropy of the uniform policy.
    """
    steps_T = [step.outer_step + 1 for step in steps]
    entropy_T = np.array([step.entropy for step in steps], dtype=float)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(uniform, color=_STAND_INS["--muted"], linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "uniform", (1, uniform), (0, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", fontsize=9.5,
        )  # fmt: skip
        axes.plot(steps_T, entropy_T, color=_STAND_INS["--accent"], linewidth=1.8, marker="o", markersize=2)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.margins(y=0.14)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        _outer_step_axis(axes, steps_T)

    summary = (
        f"Entropy of the policy over {len(steps)} outer steps: {entropy_T[0]:.4f} nats after the first, "
        f"{entropy_T[-1]:.4f} after the last one; uniform is {uniform:.4f}"
    )
    return _in_both_sizes(draw, summary, (470, 250), (360, 230))


def operation_chart(policy: Policy) -> Markup:
    """Bars for the most and the least probable operations, relative to uniform; for spaces without a matrix."""
    shown = both_ends(policy, _BARS)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        position = np.arange(len(shown))
        widths = [operation.ratio - 1 for operation in shown]
        axes.barh(position, widths, 0.7, left=1, color=_STAND_INS["--accent"])
        axes.axvline(1, color=_STAND_INS["--muted"], linewidth=0.8)
        axes.grid(visible=False, axis="y")
        axes.set_yticks(position, [operation.name for operation in shown], fontsize=8.5)
        axes.invert_yaxis()
        axes.set_xlabel("probability / uniform")

    summary = (
        f"Probability over uniform of {len(shown)} operations, from {shown[0].ratio:.2f} for {shown[0].name} to "
        f"{shown[-1].ratio:.2f} for {shown[-1].name}"
    )
    height = 70 + 17 * len(shown)
    return _in_both_sizes(draw, summary, (960, height), (360, height))


def phases_of(steps: Sequence[OuterStep]) -> list[str]:
    """The phases that occur: the known ones in their order, then any others."""
    found = {name for step in steps for name in step.seconds}
    return [name for name in PHASES if name in found] + sorted(found.difference(PHASES))


def phase_chart(steps: Sequence[OuterStep]) -> Markup:
    """Seconds of every outer step, by phase; its colours are `--phase0` and so on."""
    steps_T = [step.outer_step + 1 for step in steps]
    names = phases_of(steps)
    seconds_PT = np.array([[step.seconds.get(name, 0.0) for step in steps] for name in names])
    edges_T = np.array([*steps_T, steps_T[-1] + 1]) - 0.5

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        below_T = np.zeros(len(steps))
        for number, values_T in enumerate(seconds_PT):
            colour = _STAND_INS[f"--phase{number % 10}"]
            axes.stairs(below_T + values_T, edges_T, baseline=below_T, fill=True, color=colour, linewidth=0)
            below_T = below_T + values_T
        axes.set_axisbelow(True)
        axes.set_ylim(0, below_T.max() * 1.06 or 1)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_title("seconds", loc="left", fontsize=10.5)
        _outer_step_axis(axes, steps_T)

    total = seconds_PT.sum()
    fractions = ", ".join(
        f"{name} {100 * seconds / (total or 1):.0f} %"
        for name, seconds in zip(names, seconds_PT.sum(1), strict=True)
    )
    return _in_both_sizes(
        draw, f"Seconds of each outer step by phase; in total {fractions}", (470, 250), (360, 230)
    )


def _dots(axes: Axes, x: Sequence[int] | np.ndarray, y: np.ndarray, colour: str) -> None:
    """Dots as lines of zero length with round caps: one path, a quarter of the text of markers."""
    gap = np.full(len(y), np.nan)
    xs, ys = np.stack([x, x, gap], 1).ravel(), np.stack([y, y, gap], 1).ravel()
    width = 4.2 if len(y) <= 400 else 2.8
    axes.plot(xs, ys, color=_STAND_INS[colour], linewidth=width, solid_capstyle="round")


def _outer_step_axis(axes: Axes, steps_T: Sequence[int]) -> None:
    axes.set_xlim(steps_T[0] - 0.7, steps_T[-1] + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))
    axes.set_xlabel("outer step")


def _in_both_sizes(
    draw: Callable[[Figure], None], summary: str, wide: tuple[int, int], narrow: tuple[int, int]
) -> Markup:
    """The chart for wide and for narrow windows, sizes in CSS pixels; the summary describes it in words."""
    return Markup("").join(
        Markup('<div class="chart {}" role="img" aria-label="{}">{}</div>').format(
            name, summary, _svg(draw, size, f"{name} {summary}")
        )
        for name, size in (("wide", wide), ("narrow", narrow))
    )


def _svg(draw: Callable[[Figure], None], size: tuple[int, int], salt: str) -> Markup:
    """SVG without a fixed size; equal input gives equal text."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": salt}):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", text)
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.S)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # names of its parts, the same in every chart
    text = re.sub(r"font-family: [^;]*; ", "", text)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"\d+\.\d{3,}", _rounded, tag[0]), text)
    for variable, stand_in in _STAND_INS.items():
        text = text.replace(stand_in, f"var({variable})")
    return Markup(text)


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"
