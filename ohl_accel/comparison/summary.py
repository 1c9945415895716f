"""The results of a comparison: rows of numbers, and the same as Markdown, JSON and a figure."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ohl_accel import __version__
from ohl_accel.comparison.statistics import Difference, holm, paired_difference
from ohl_accel.run_folder.atomic import replacing, write_text

JSON_FILE = "comparison.json"
MARKDOWN_FILE = "comparison.md"
FIGURE_FILE = "comparison.png"
_SCHEMA_VERSION = 1
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Row:
    """One contender: its accuracies in 0..1 by seed, and its difference from the reference."""

    policy: str
    accuracy: Mapping[int, float]
    compute: int
    """Images that its networks were trained on, in all trajectories, as a multiple of one plain training."""
    difference: Difference | None
    """None for the reference, and if no seed is in common with it."""
    p_holm: float | None
    """p of the difference, corrected for the number of contenders."""

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds."""
        return fmean(self.accuracy.values())

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None for one seed."""
        return stdev(self.accuracy.values()) if len(self.accuracy) > 1 else None

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `no difference shown`, at a corrected p of 0.05; empty if none was tested."""
        if self.difference is None or self.p_holm is None:
            return ""
        if self.p_holm >= _SIGNIFICANT:
            return "no difference shown"
        return "better" if self.difference.mean > 0 else "worse"


def rows_of(
    accuracy: Mapping[str, Mapping[int, float]], compute: Mapping[str, int], reference: str
) -> list[Row]:
    """One row for each contender that has a result, in their order.

    Args:
        accuracy: contender -> seed -> test accuracy in 0..1.
        compute: contender -> multiple of one plain training.
        reference: the contender that the others are compared with.
    """
    differences: dict[str, Difference] = {}
    for name, by_seed in accuracy.items():
        common = sorted(by_seed.keys() & accuracy.get(reference, {}).keys())
        if name != reference and common:
            own, other = ([values[seed] for seed in common] for values in (by_seed, accuracy[reference]))
            differences[name] = paired_difference(own, other)
    p_holm = holm({name: found.p for name, found in differences.items() if found.p is not None})
    return [
        Row(name, dict(sorted(by_seed.items())), compute[name], differences.get(name), p_holm.get(name))
        for name, by_seed in accuracy.items()
        if by_seed
    ]


def write(folder: Path, rows: Sequence[Row], reference: str, about: Mapping[str, Any]) -> None:
    """Write comparison.json, comparison.md and comparison.png, each whole or not at all.

    Args:
        folder: of the comparison.
        rows: from `rows_of`.
        reference: the contender that the others are compared with.
        about: how it was made: command, recipe, seeds, missing runs.
    """
    about = {**about, **environment()}
    document = {
        "format": "ohl_accel.comparison",
        "schema_version": _SCHEMA_VERSION,
        "reference": reference,
        **about,
        "rows": [_plain(row) for row in rows],
    }
    write_text(folder / JSON_FILE, json.dumps(document, indent=2, allow_nan=False) + "\n")
    write_text(folder / MARKDOWN_FILE, markdown(rows, reference, about))
    with replacing(folder / FIGURE_FILE) as aside:
        draw(rows, reference, about).savefig(aside, dpi=150, format="png")


def environment() -> dict[str, Any]:
    """Hardware and versions behind the numbers."""
    on_cuda = torch.cuda.is_available()
    packages = ("torch", "torchvision", "timm", "accelerate", "datasets")
    return {
        "device": torch.cuda.get_device_name(0) if on_cuda else f"{os.cpu_count()} cores of {processor()}",
        "python": platform.python_version(),
        "versions": {"ohl_accel": __version__, **{name: version(name) for name in packages}},
    }


def processor() -> str:
    """The processor's name, from /proc/cpuinfo if that has it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def markdown(rows: Sequence[Row], reference: str, about: Mapping[str, Any]) -> str:
    """The table as Markdown, with the notes needed to judge it."""
    lines = [
        "# Comparison of augmentation policies",
        "",
        f"Final test accuracy in %, paired by seed; differences from **{reference}** in points.",
        "",
        "| policy | n | mean ± sd | compute | difference | 95 % t interval | 95 % bootstrap | p (Holm) | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f" ± {100 * row.std:.2f}" if row.std is not None else ""
        cells = [row.policy, len(row.accuracy), f"{100 * row.mean:.2f}{spread}", f"{row.compute} x"]
        found = row.difference
        if found is None:
            cells += ["reference" if row.policy == reference else "", "", "", "", ""]
        else:
            p = "" if row.p_holm is None else f"{row.p_holm:.3f}"
            intervals = [_interval(found.t_interval), _interval(found.bootstrap_interval)]
            cells += [f"{100 * found.mean:+.2f}", *intervals, p, row.verdict]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    seeds = sorted({seed for row in rows for seed in row.accuracy})
    single = {row.policy: [f"{100 * a:.2f}" for a in row.accuracy.values()] for row in rows}
    lines += [
        "",
        f"![accuracy of every seed, and paired differences]({FIGURE_FILE})",
        "",
        "- Accuracy is that of the last step, measured once; no best epoch is chosen.",
        "- With equal seeds, all policies have the same initial weights, training images and order of images.",
        "- `compute`: images that networks were trained on, as a multiple of one plain training.",
        "- With few seeds, trust Student's interval; the bootstrap's is then too narrow. `verdict` is "
        f"`better` or `worse` where p, corrected by Holm for {max(0, len(rows) - 1)} comparisons, is below 0.05.",
        "",
        f"Seeds {', '.join(map(str, seeds))}; single values:",
        "",
        *(f"- {name}: {', '.join(values)}" for name, values in single.items()),
        "",
        *([f"**Missing**: {'; '.join(about['missing'])}", ""] if about.get("missing") else []),
        f"Command: `{about['command']}`",
        "",
        f"{about['device']}, Python {about['python']}, "
        + ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        "",
    ]
    return "\n".join(lines)


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{100 * bounds[0]:+.2f} to {100 * bounds[1]:+.2f}"


def _plain(row: Row) -> dict[str, Any]:
    found = row.difference
    return {
        "policy": row.policy,
        "n": len(row.accuracy),
        "mean": row.mean,
        "std": row.std,
        "compute": row.compute,
        "difference": found and found.mean,
        "t_interval": found and found.t_interval,
        "bootstrap_interval": found and found.bootstrap_interval,
        "p": found and found.p,
        "p_holm": row.p_holm,
        "verdict": row.verdict,
        "accuracy": {str(seed): value for seed, value in row.accuracy.items()},
    }


def draw(rows: Sequence[Row], reference: str, about: Mapping[str, Any]) -> Figure:
    """Left, every seed and the mean; right, the paired differences with Student's interval, where there is one.

    Args:
        rows, reference, about: as in `write`.
    """
    figure = Figure(figsize=(11, 1.8 + 0.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    heights = range(len(rows))
    for y, row in zip(heights, rows, strict=True):
        values = [100 * value for value in row.accuracy.values()]
        left.plot(values, [y] * len(values), "o", color="0.6", markersize=4)
        if len(values) > 1:
            left.plot([100 * row.mean] * 2, [y - 0.3, y + 0.3], color="black", linewidth=2)
        _number(left, y, f"{100 * row.mean:.2f}")
        found = row.difference
        if found is not None:
            colour = {"better": "#117733", "worse": "#aa3311"}.get(row.verdict, "0.35")
            if found.t_interval is not None:
                low, high = found.t_interval
                right.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=2)
            right.plot(100 * found.mean, y, "o", color=colour, markersize=6)
            _number(right, y, f"{100 * found.mean:+.2f}")
        elif row.policy == reference:
            _number(right, y, "reference")
    left.set_yticks(list(heights), [row.policy for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    counts = {len(row.accuracy) for row in rows}
    several = max(counts) > 1
    number = f"{min(counts)} to {max(counts)} seeds" if len(counts) > 1 else f"{max(counts)} seeds"
    section = about.get("recipe", {})
    names = (section.get("data", {}).get("path"), section.get("model", {}).get("name"))
    what = ", ".join(Path(str(name)).name for name in names if name)
    figure.suptitle(
        f"Augmentation policies{f' on {what}' if what else ''}: "
        + (number if several else "one seed, so nothing is known about the noise")
    )
    left.set_xlabel("final test accuracy, %: every seed" + (", and their mean" if several else ""))
    right.set_xlabel(f"difference from {reference}, points" + (", with 95 % t interval" if several else ""))
    right.axvline(0, color="black", linewidth=0.8)
    for axes in (left, right):
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _number(axes: Axes, y: float, text: str) -> None:
    """A number at the right edge of a row."""
    axes.annotate(
        text, (1, y), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
        fontsize=9, annotation_clip=False,
    )  # fmt: skip
