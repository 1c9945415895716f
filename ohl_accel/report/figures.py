"""Figures of a run as PNG: the policy's heatmap, its marginals (Figure 4), scores and losses over the outer steps.

Drawn without a display.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from ohl_accel.policy import Policy
from ohl_accel.policy.evidence import multiple
from ohl_accel.report.heatmaps import Scale
from ohl_accel.report.operations import POSITIONS, both_ends, ratio_grid
from ohl_accel.report.svg import reward_rows, zoom

_BARS = 20
_SMALLEST = 64
"""Sides of an image in a grid, at least, in pixels."""


def policy_heatmap(policy: Policy) -> bytes:
    """The probability of each operation relative to the uniform policy.

    An E x E heatmap for operations of two elements; otherwise bars for the most and the least probable operations.
    """
    if policy.space.arity != 2:
        return _policy_bars(policy)
    names = [element.name for element in policy.space.elements]
    ratio_EE, evidence = ratio_grid(policy), policy.evidence
    scale = Scale.of(ratio_EE[ratio_EE.isfinite()], None if evidence is None else evidence.operation_band)
    figure = _figure(11, 10)
    axes = figure.subplots()
    picture = axes.imshow(ratio_EE.clamp_min(2.0**-10).log2().numpy(), cmap="RdBu_r", norm=norm_of(scale))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    title = "probability of an operation / uniform"
    if evidence is not None:
        title += f": {evidence.verdict}"
    axes.set(xlabel="second element", ylabel="first element", title=title)
    add_colour_bar(figure, axes, picture, scale)
    return _png(figure)


def norm_of(scale: Scale) -> TwoSlopeNorm:
    """The colours of a scale, for log2 of the ratios."""
    return TwoSlopeNorm(0, -scale.below, scale.above)


def add_colour_bar(figure: Figure, axes: Axes, picture: AxesImage, scale: Scale) -> None:
    """A bar beside a picture that says which ratios its colours stand for, and which of them noise alone makes."""
    bar = figure.colorbar(picture, ax=axes, shrink=0.8)
    noise = [math.log2(max(end, 2.0**-10)) for end in scale.noise or ()]
    signs = {-scale.below: "≤ ", scale.above: "≥ "}
    ends = [-scale.below, *noise, scale.above]
    labels = [f"{signs.get(end, '')}{multiple(2**end)} ×" for end in ends]
    bar.set_ticks([*ends, 0.0], labels=[*labels, "uniform"])
    bar.set_label("pale: what noise alone does" if scale.noise else "what noise does was not measured")


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
    """Held-out score of every trajectory and, below, the losses over the outer steps.

    The axis of the scores shows where they are; those outside, such as the first ones, are triangles at its edge.

    Args:
        lines: of `metrics.jsonl`; a reward of None was not measured.
    """
    losses = {name: _means(lines, f"{name}_loss") for name in ("train", "heldout")}
    has_losses = any(len(curve) for curve in losses.values())
    figure = _figure(9, 7 if has_losses else 4.5)
    rows = figure.subplots(1 + has_losses, 1, sharex=True, squeeze=False)[:, 0]
    steps = np.array([line["outer_step"] + 1 for line in lines], dtype=float)
    reward = reward_rows([line["reward"] for line in lines])
    axes = rows[0]
    axes.plot(steps, reward, ".", color="tab:blue", alpha=0.35, markersize=4)
    measured = ~np.isnan(reward).all(1)
    if measured.any():
        axes.plot(
            steps[measured], np.nanmax(reward[measured], 1), color="tab:blue", label="the best trajectory"
        )
        zoom(axes, np.repeat(steps, reward.shape[1]), reward.ravel())
        axes.legend(loc="lower right")
    axes.set(
        title="Score on the held-out images, by which the best trajectory is chosen", ylabel="held-out score"
    )
    if has_losses:
        for curve, label in zip(losses.values(), ("training, augmented images", "held-out"), strict=True):
            if len(curve):
                rows[1].plot(*curve.T, label=label)
        rows[1].set(title="Loss, mean over the trajectories", ylabel="nats")
        rows[1].legend(loc="upper right")
    rows[-1].set_xlabel("outer step")
    rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return _png(figure)


def _means(lines: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """(outer step, mean over the trajectories) of what was measured: float64 [n, 2]."""
    known = [(line["outer_step"] + 1, [v for v in line.get(key) or [] if v is not None]) for line in lines]
    return np.array([(step, sum(values) / len(values)) for step, values in known if values], dtype=float)


def pixels_of(png: bytes) -> np.ndarray:
    """The pixels of a PNG: uint8 [height, width, 3]."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def image_grid(images_nCHW: Tensor, columns: int) -> np.ndarray:
    """Images side by side, with a grey line between them: uint8 [height, width, 3].

    Small images are enlarged by a whole factor, to sides of 64 pixels or more, so that each of their pixels shows.

    Args:
        images_nCHW: uint8, 1 or 3 channels.
        columns: images in a row.
    """
    factor = -(-_SMALLEST // min(images_nCHW.shape[2:])) if min(images_nCHW.shape[2:]) < _SMALLEST else 1
    images_nCHW = images_nCHW.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
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
