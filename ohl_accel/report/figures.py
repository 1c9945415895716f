"""Figures of a run as PNG: the policy's heatmap, its marginals (Figure 4), rewards over the outer steps.

Drawn without a display.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from ohl_accel.policy import Policy
from ohl_accel.report.operations import POSITIONS, both_ends, ratio_grid

_BARS = 20


def policy_heatmap(policy: Policy) -> bytes:
    """The probability of each operation relative to the uniform policy.

    An E x E heatmap for operations of two elements; otherwise bars for the most and the least probable operations.
    """
    if policy.space.arity != 2:
        return _policy_bars(policy)
    names = [element.name for element in policy.space.elements]
    ratio = ratio_grid(policy).numpy()
    figure = _figure(9, 8)
    axes = figure.subplots()
    reach = max(float(np.nanmax(np.abs(ratio - 1))), 1e-3)
    norm = TwoSlopeNorm(1, max(0.0, 1 - reach) if reach < 1 else 0.0, 1 + reach)
    picture = axes.imshow(ratio, cmap="RdBu_r", norm=norm)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(xlabel="second element", ylabel="first element", title="probability of an operation / uniform")
    figure.colorbar(picture, ax=axes, shrink=0.8)
    return _png(figure)


def _policy_bars(policy: Policy) -> bytes:
    shown = both_ends(policy, _BARS)
    figure = _figure(9, 1.5 + 0.2 * len(shown))
    axes = figure.subplots()
    position = np.arange(len(shown))
    axes.barh(position, [operation.ratio - 1 for operation in shown], left=1)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(position, [operation.name for operation in shown], fontsize=7)
    axes.invert_yaxis()
    number = policy.space.num_operations
    which = "" if len(shown) == number else f": the most and the least probable of {number:,}"
    axes.set_title(f"probability of an operation / uniform{which}")
    return _png(figure)


def policy_marginals(policy: Policy) -> bytes:
    """The probability of each element at each position, relative to the uniform policy (Figure 4 of the paper)."""
    space = policy.space
    figure = _figure(9, 5)
    axes = figure.subplots()
    position = np.arange(space.num_elements)
    ratio = (policy.element_probabilities / space.uniform_marginals).numpy()
    width = 0.8 / space.arity
    for number, values in enumerate(ratio):
        shift = (number - (space.arity - 1) / 2) * width
        label = f"as the {POSITIONS[number]} element"
        axes.bar(position + shift, values - 1, width, bottom=1, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    evidence, title = policy.evidence, "probability of an element"
    if evidence is not None:
        title += f": {evidence.verdict}"
    if evidence is not None and evidence.low_AE is not None and evidence.high_AE is not None:
        low_AE, high_AE = (
            np.array(rows) / space.uniform_marginals.numpy() for rows in (evidence.low_AE, evidence.high_AE)
        )
        for number, (low, high) in enumerate(zip(low_AE, high_AE, strict=True)):
            left = position + (number - space.arity / 2) * width
            axes.bar(
                left, high - low, width, bottom=low, align="edge", color="grey", alpha=0.3,
                label="" if number else "noise band",
            )  # fmt: skip
    axes.set_xticks(position, [element.name for element in space.elements], rotation=90, fontsize=7)
    axes.set(ylabel="probability / uniform", title=title)
    axes.margins(x=0.01)
    if space.arity > 1:
        figure.legend(loc="outside lower center", ncols=space.arity + 1)
    return _png(figure)


def reward_curves(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Held-out accuracy of every trajectory, and the policy's entropy, over the outer steps.

    Args:
        lines: of `metrics.jsonl`; a reward of None was not measured.
    """
    figure = _figure(9, 4.5)
    axes = figure.subplots()
    steps = [line["outer_step"] + 1 for line in lines]
    reward = np.array([line["reward"] for line in lines], dtype=float)
    axes.plot(steps, reward, ".", color="tab:blue", alpha=0.35, markersize=4)
    measured = ~np.isnan(reward).all(1)
    axes.plot(
        np.array(steps)[measured], reward[measured].max(1), color="tab:blue", label="best held-out accuracy"
    )
    axes.set(xlabel="outer step", ylabel="held-out accuracy")
    if all("entropy" in line for line in lines):
        entropy_axes = axes.twinx()
        entropy_axes.plot(steps, [line["entropy"] for line in lines], color="tab:orange", label="entropy")
        entropy_axes.ticklabel_format(useOffset=False)
        entropy_axes.set_ylabel("entropy of the policy (nats)", color="tab:orange")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left")
    return _png(figure)


def pixels_of(png: bytes) -> np.ndarray:
    """The pixels of a PNG: uint8 [height, width, 3]."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def image_grid(images_nCHW: Tensor, columns: int) -> np.ndarray:
    """Images side by side, with a grey line between them: uint8 [height, width, 3].

    Args:
        images_nCHW: uint8, 1 or 3 channels.
        columns: images in a row.
    """
    images = images_nCHW.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    grid = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), 128, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        grid[top : top + height, left : left + width] = image
    return grid


def _figure(width: float, height: float) -> Figure:
    figure = Figure((width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()
