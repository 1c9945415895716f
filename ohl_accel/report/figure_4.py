"""Figure 4 of the paper from a run folder: the marginal probability of every element over training.

The paper draws the first element; here each position of an operation has a row: the probabilities over the outer
steps, and at their end beside the noise band, which is what an element must leave before it counts as gained or lost.
Below is the whole matrix of operations.

Shapes: T outer steps, A positions, E elements.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ohl_accel.errors import UserError
from ohl_accel.report.charts import ratio_axis
from ohl_accel.report.figures import add_colour_bar, norm_of
from ohl_accel.report.heatmaps import Scale
from ohl_accel.report.operations import POSITIONS, element_band, ratio_grid
from ohl_accel.report.read import Run, read_run
from ohl_accel.run_folder.atomic import replacing

_COLOURS = "RdBu_r"
_SIDES = {1: "#aa3311", 0: "0.55", -1: "#225588"}
"""Colours of elements above, inside and below the noise band."""


def write_figure_4(folder: Path, output: Path, every: int = 1) -> Path:
    """Draw the figure as PNG; returns its file.

    Args:
        folder: of a search, finished or in progress.
        output: the file.
        every: show every so-many-th outer step, as the paper does, and the last one.

    Raises:
        UserError: if the folder cannot be read, has no policy over time, or the file cannot be written.
    """
    figure = figure_4(read_run(folder), every)
    try:
        with replacing(output) as aside:
            figure.savefig(aside, format="png", metadata={"Software": None})
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}; choose another --output") from None
    return output


def figure_4(run: Run, every: int = 1) -> Figure:
    """The figure of a run.

    Raises:
        UserError: if its metrics have no policy over time.
    """
    known = [step for step in run.steps if step.element_probabilities is not None]
    if not known:
        raise UserError(
            f"{run.folder}: no outer step has the policy's probabilities: it trains with a fixed policy, has not "
            "finished an outer step, or is of an older version"
        )
    shown = [step for number, step in enumerate(known) if number % every == 0 or number == len(known) - 1]
    space = run.space
    ratio_TAE = torch.tensor([step.element_probabilities for step in shown], dtype=torch.float64)
    ratio_TAE = ratio_TAE / space.uniform_marginals
    steps_T = [step.outer_step + 1 for step in shown]
    has_matrix = run.policy is not None and space.arity == 2
    heights = [*[1.0] * space.arity, *([1.6] if has_matrix else [])]
    figure = Figure((11, 5 * sum(heights)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.add_gridspec(len(heights), 2, width_ratios=[3, 1], height_ratios=heights)
    scale = Scale.of(ratio_TAE, element_band(run.policy) if run.policy is not None else None)
    for position in range(space.arity):
        _over_time(figure, figure.add_subplot(rows[position, 0]), run, position, steps_T, ratio_TAE, scale)
        _at_the_end(figure.add_subplot(rows[position, 1]), run, position, ratio_TAE[-1, position].numpy())
    if has_matrix:
        _matrix(figure, figure.add_subplot(rows[-1, :]), run)
    evidence = run.policy.evidence if run.policy is not None else None
    verdict = evidence.verdict if evidence is not None else "noise was not measured"
    figure.suptitle(f"{run.folder.resolve().name}: probability of an element / uniform; {verdict}")
    return figure


def _over_time(
    figure: Figure,
    axes: Axes,
    run: Run,
    position: int,
    steps_T: list[int],
    ratio_TAE: torch.Tensor,
    scale: Scale,
) -> None:
    log_ET = ratio_TAE[:, position].clamp_min(1e-12).log2().T.numpy()
    picture = axes.imshow(log_ET, aspect="auto", interpolation="nearest", cmap=_COLOURS, norm=norm_of(scale))
    names = [element.name for element in run.space.elements]
    axes.set_yticks(range(len(names)), names, fontsize=6)
    ticks = sorted({*range(0, len(steps_T), max(1, len(steps_T) // 8)), len(steps_T) - 1})
    axes.set_xticks(ticks, [str(steps_T[tick]) for tick in ticks])
    axes.set(xlabel="outer step", title=f"{POSITIONS[position]} element over training")
    add_colour_bar(figure, axes, picture, scale)


def _at_the_end(axes: Axes, run: Run, position: int, ratio_E: np.ndarray) -> None:
    """The last probabilities, and what noise explains: grey behind each element."""
    y = np.arange(len(ratio_E))
    evidence = run.policy.evidence if run.policy is not None else None
    sides_E = np.zeros(len(ratio_E), dtype=int)
    ends = [1.0, *ratio_E]
    grey = ""
    if evidence is not None and evidence.low_AE is not None and evidence.high_AE is not None:
        uniform_E = run.space.uniform_marginals[position].numpy()
        low_E, high_E = (np.array(rows[position]) / uniform_E for rows in (evidence.low_AE, evidence.high_AE))
        axes.barh(y, high_E - low_E, 0.9, left=low_E, color="0.88")
        ends += [*low_E, *high_E]
        grey = "; grey: noise"
        assert run.policy is not None
        sides_E = evidence.sides(run.policy.element_probabilities)[position].numpy()
    axes.scatter(ratio_E, y, s=14, c=[_SIDES[int(side)] for side in sides_E], zorder=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks([])
    axes.set_ylim(len(ratio_E) - 0.5, -0.5)
    ratio_axis(axes, float(min(ends)), float(max(ends)))
    axes.set(xlabel="probability / uniform", title=f"at the end{grey}")


def _matrix(figure: Figure, axes: Axes, run: Run) -> None:
    assert run.policy is not None
    ratio_EE = ratio_grid(run.policy)
    evidence = run.policy.evidence
    scale = Scale.of(ratio_EE[ratio_EE.isfinite()], None if evidence is None else evidence.operation_band)
    log_EE = ratio_EE.clamp_min(1e-12).log2().numpy()
    picture = axes.imshow(log_EE, cmap=_COLOURS, norm=norm_of(scale), interpolation="nearest")
    names = [element.name for element in run.space.elements]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set(xlabel="second element", ylabel="first element", title="every operation at the end")
    add_colour_bar(figure, axes, picture, scale)
