"""Matplotlib's figures as SVG for the page.

Matplotlib gets placeholder colours, which are replaced by the page's CSS variables, so that a chart follows the
theme. Text stays text, in the page's font. Charts that are as wide as the page are drawn for three widths of the
window, so that their text is never smaller than 11 px.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETDOWN, CARETUP
from matplotlib.ticker import MaxNLocator

STAND_INS = {
    "--ink": "#010101",
    "--muted": "#020202",
    "--line": "#030303",
    "--accent": "#040404",
    "--dot": "#050505",
    "--noise": "#070707",
    **{f"--phase{number}": f"#0606{number:02d}" for number in range(10)},
}
"""CSS variable of the page -> the colour that stands for it while matplotlib draws."""
FONT = 12.0
"""Of all text in a chart, in CSS pixels if the chart is as wide as it was drawn; it may be shrunk by a twelfth."""
ROW = 17
"""Height of a row with text, in CSS pixels."""
_SHOWN = 0.95
"""Part of the values that an axis shows at least; a few far away would flatten all others."""
BEGINNING = 0.2
"""Part of a run at whose beginning values change most; an axis need not show all of it."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "path.simplify": False,
    "font.size": FONT,
    "axes.titlesize": FONT,
    "text.color": STAND_INS["--muted"],
    "axes.labelcolor": STAND_INS["--muted"],
    "axes.edgecolor": STAND_INS["--line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.titlelocation": "left",
    "grid.color": STAND_INS["--line"],
    "grid.linewidth": 0.8,
    "xtick.color": STAND_INS["--line"],
    "ytick.color": STAND_INS["--line"],
    "xtick.labelcolor": STAND_INS["--muted"],
    "ytick.labelcolor": STAND_INS["--muted"],
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}

Size = tuple[float, float]


def full(height: float, narrow_height: float | None = None) -> dict[str, Size]:
    """Sizes of a chart that is as wide as the page: one for each of three widths of the window."""
    return {"wide": (900, height), "medium": (570, height), "narrow": (340, narrow_height or height)}


def half(height: float) -> dict[str, Size]:
    """Sizes of a chart in one of two columns, which wide windows have: one, for a width that all windows have."""
    return {"every": (350, height)}


def draw_chart(draw: Callable[[Figure], None], summary: str, sizes: Mapping[str, Size]) -> Markup:
    """A chart, drawn for the widths that windows have.

    Args:
        draw: draws it.
        summary: describes it in words, for those who do not see it.
        sizes: class of the page's CSS, which shows one of them -> width and height in CSS pixels.
    """
    return Markup("").join(
        Markup('<div class="chart {}" role="img" aria-label="{}">{}</div>').format(
            name, summary, _svg(draw, size, f"{name} {summary}")
        )
        for name, size in sizes.items()
    )


def reward_rows(rewards: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Rewards of all outer steps. float64 [T, N]: NaN for those not measured, and for trajectories that were lost.

    Args:
        rewards: of each outer step, of the trajectories that took part.
    """
    number = max(map(len, rewards))
    return np.array([[*row, *[None] * (number - len(row))] for row in rewards], dtype=float)


def dots(axes: Axes, x: Sequence[int] | np.ndarray, y: np.ndarray, colour: str) -> None:
    """Dots as lines of zero length with round caps: one path, a quarter of the text of markers."""
    gap = np.full(len(y), np.nan)
    xs, ys = np.stack([x, x, gap], 1).ravel(), np.stack([y, y, gap], 1).ravel()
    width = 4.2 if len(y) <= 400 else 2.8
    axes.plot(xs, ys, color=STAND_INS[colour], linewidth=width, solid_capstyle="round")


def zoom(axes: Axes, x: np.ndarray, y: np.ndarray, beginning: float = BEGINNING) -> int:
    """Set the y axis to where most values are, and mark those that lie outside of it by triangles at its edge.

    Args:
        axes: in which the values are drawn.
        x, y: of the values; y may be NaN.
        beginning: the first part of the x, in 0..1, which the axis need not show.

    Returns:
        The number of values outside.
    """
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    later = y[x >= x.min() + beginning * np.ptp(x)]
    low, high = np.quantile(later, [(1 - _SHOWN) / 2, (1 + _SHOWN) / 2])
    spread = high - low
    low, high = max(y.min(), low - spread / 2), min(y.max(), high + spread / 2)
    margin = 0.06 * (high - low) or max(0.02 * abs(high), 1e-6)
    bottom, top = low - margin, high + margin
    axes.set_ylim(bottom, top)
    for outside, edge, marker in ((y < bottom, bottom, CARETDOWN), (y > top, top, CARETUP)):
        if outside.any():
            axes.plot(
                x[outside], np.full(int(outside.sum()), edge), linestyle="", marker=marker, markersize=5,
                color=STAND_INS["--muted"], clip_on=False,
            )  # fmt: skip
    return int(((y < bottom) | (y > top)).sum())


def outer_step_axis(axes: Axes, steps_T: Sequence[int]) -> None:
    """The outer steps, counted from 1, as the x axis."""
    axes.set_xlim(steps_T[0] - 0.7, steps_T[-1] + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))
    axes.set_xlabel("outer step")


def _svg(draw: Callable[[Figure], None], size: Size, salt: str) -> Markup:
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
    for variable, stand_in in STAND_INS.items():
        text = text.replace(stand_in, f"var({variable})")
    return Markup(text)


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"
