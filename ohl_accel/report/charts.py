"""Charts of a run: rewards, losses, the learning rate, the policy beside the noise, entropy and time.

Shapes: T outer steps, N trajectories, A positions in an operation, E elements.
"""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ohl_accel.policy import Policy
from ohl_accel.report.operations import POSITIONS, both_ends
from ohl_accel.report.read import OuterStep
from ohl_accel.report.svg import (
    ROW,
    STAND_INS,
    Size,
    dots,
    draw_chart,
    full,
    half,
    outer_step_axis,
    reward_rows,
    zoom,
)

_BARS = 12
"""Number of the most probable operations, and of the least probable ones."""
_NARROW = 270
"""Points of width below which five labels of ratios would touch."""
PHASES = ("train", "load", "augment", "validate", "gather", "update", "adopt", "check", "save")
"""The phases of an outer step as in `metrics.jsonl`; any others follow."""


def reward_chart(steps: Sequence[OuterStep], metric: str) -> Markup:
    """Rewards of every trajectory and of the winner, and below their differences from the mean.

    The axes show where the rewards are; the few outside, such as those of the first outer steps, are triangles.

    Args:
        steps: those with rewards.
        metric: what a reward is, in words.
    """
    steps_T = [step.outer_step + 1 for step in steps]
    reward_TN = 100 * reward_rows([step.reward for step in steps])
    winner_T = np.array([step.winner or 0 for step in steps])
    best_T = reward_TN[np.arange(len(steps)), winner_T]
    several = reward_TN.shape[1] > 1
    panels = [(f"held-out {metric}, %", reward_TN)]
    if several:
        differences_TN = reward_TN - np.nanmean(reward_TN, 1, keepdims=True)
        panels.append(("minus the mean of its outer step, points", differences_TN))

    def draw(figure: Figure) -> None:
        heights = (3, 2)[: len(panels)]
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        every_T = np.repeat(steps_T, reward_TN.shape[1])
        for axes, (title, values_TN) in zip(rows, panels, strict=True):
            dots(axes, every_T, values_TN.ravel(), "--dot")
            dots(axes, steps_T, values_TN[np.arange(len(steps)), winner_T], "--accent")
            outside = zoom(axes, every_T, values_TN.ravel())
            axes.set_title(f"{title} ({outside} outside)" if outside else title)
        rows[0].plot(steps_T, best_T, color=STAND_INS["--accent"], linewidth=1.2)
        if several:
            rows[1].axhline(0, color=STAND_INS["--muted"], linewidth=0.8, zorder=1)
        outer_step_axis(rows[-1], steps_T)

    summary = f"in the first and {best_T[-1]:.2f} % in the last of {len(steps)} outer steps"
    if several:
        spread_T = np.nanmax(reward_TN, 1) - np.nanmin(reward_TN, 1)
        summary = (
            f"Rewards of {reward_TN.shape[1]} trajectories: the winner's was {best_T[0]:.2f} % {summary}; rewards "
            f"of one outer step lie {spread_T.mean():.2f} points apart on average"
        )
    else:
        summary = f"Held-out {metric}: {best_T[0]:.2f} % {summary}"
    return draw_chart(draw, summary, full(400) if several else full(260, 240))


def loss_chart(steps: Sequence[OuterStep]) -> Markup | None:
    """Training and held-out loss, mean over the trajectories, and the range of the trajectories.

    Returns:
        None for runs of older versions, whose lines have no losses.
    """
    losses = {
        "training, augmented images": ("--accent", [step.train_loss for step in steps]),
        "held-out": ("--phase1", [step.heldout_loss for step in steps]),
    }
    curves = {}
    for name, (colour, loss) in losses.items():
        known = [
            (step.outer_step + 1, [value for value in values if value is not None])
            for step, values in zip(steps, loss, strict=True)
        ]
        measured = [(number, min(v), float(np.mean(v)), max(v)) for number, v in known if v]
        if measured:
            curves[name] = colour, np.array(measured, dtype=float)
    if not curves:
        return None
    steps_T = [step.outer_step + 1 for step in steps]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, (colour, values_T4) in curves.items():
            numbers_T, low_T, mean_T, high_T = values_T4.T
            axes.fill_between(numbers_T, low_T, high_T, color=STAND_INS[colour], alpha=0.22, linewidth=0)
            line = {"linewidth": 1.6, "marker": "o", "markersize": 2}
            axes.plot(numbers_T, mean_T, color=STAND_INS[colour], label=name, **line)  # type: ignore[arg-type]
        every = np.concatenate([values_T4 for _, values_T4 in curves.values()])
        outside = zoom(axes, every[:, 0], every[:, 2], beginning=0)
        axes.set_title(f"nats ({outside} outside)" if outside else "nats")
        figure.legend(
            loc="outside lower left", frameon=False, ncols=2, labelcolor=STAND_INS["--ink"], handlelength=1
        )
        outer_step_axis(axes, steps_T)

    summary = "; ".join(
        f"{name} loss {values_T4[0, 2]:.4f} in the first and {values_T4[-1, 2]:.4f} in the last outer step"
        for name, (_, values_T4) in curves.items()
    )
    return draw_chart(draw, summary, half(270))


def learning_rate_chart(steps: Sequence[OuterStep]) -> Markup | None:
    """The learning rate at the end of every outer step; None for runs of older versions, which do not have it."""
    known = [(step.outer_step + 1, step.learning_rate) for step in steps if step.learning_rate is not None]
    if not known:
        return None
    steps_T, rate_T = zip(*known, strict=True)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(steps_T, rate_T, color=STAND_INS["--accent"], linewidth=1.6, marker="o", markersize=2)
        axes.set_ylim(0, max(rate_T) * 1.08 or 1)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        outer_step_axis(axes, steps_T)

    summary = f"Learning rate: {rate_T[0]:.3g} in the first and {rate_T[-1]:.3g} in the last outer step"
    return draw_chart(draw, summary, half(250))


def noise_chart(policy: Policy) -> Markup | None:
    """The probability of each element, in multiples of uniform, in front of the band in which noise would leave it.

    Returns:
        None if no band was measured.
    """
    evidence, space = policy.evidence, policy.space
    if evidence is None or evidence.low_AE is None or evidence.high_AE is None:
        return None
    uniform_AE = space.uniform_marginals.numpy()
    low_AE, high_AE = (np.array(rows) / uniform_AE for rows in (evidence.low_AE, evidence.high_AE))
    ratio_AE = policy.element_probabilities.numpy() / uniform_AE
    side_AE = evidence.sides(policy.element_probabilities).numpy()
    names = [element.name for element in space.elements]
    lowest = float(min(low_AE.min(), ratio_AE.min(), 0.98))
    highest = float(max(high_AE.max(), ratio_AE.max(), 1.02))

    def draw(figure: Figure) -> None:
        beside = figure.get_figwidth() * 72 > 600
        shape = (1, space.arity) if beside else (space.arity, 1)
        panels = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False).ravel()
        rows = np.arange(len(names))
        for number, axes in enumerate(panels):
            axes.barh(
                rows, high_AE[number] - low_AE[number], 0.8, left=low_AE[number], color=STAND_INS["--noise"]
            )
            for side, colour in ((0, "--dot"), (1, "--accent"), (-1, "--accent")):
                chosen = side_AE[number] == side
                dots(axes, ratio_AE[number][chosen], rows[chosen].astype(float), colour)
            if space.arity > 1:
                axes.set_title(f"{POSITIONS[number]} element")
            ratio_axis(axes, lowest, highest)
            axes.set_yticks(rows, names)
            axes.tick_params(labelbottom=True)
        panels[0].set_ylim(len(names) - 0.4, -0.6)

    outside = int((side_AE != 0).sum())
    summary = (
        f"Probability over uniform of {side_AE.size} elements, from {ratio_AE.min():.2f} to {ratio_AE.max():.2f}; "
        f"{outside} of them lie outside the noise band"
    )
    height = 60 + ROW * len(names)
    return draw_chart(draw, summary, element_sizes(height, space.arity))


def element_sizes(height: float, panels: int) -> dict[str, Size]:
    """Sizes of a chart with a panel for each position: side by side where the window is wide."""
    return {"wide": (900, height), "medium": (570, panels * height), "narrow": (340, panels * height)}


def ratio_axis(axes: Axes, lowest: float, highest: float) -> None:
    """Ratios on a logarithmic x axis, with few ticks at round factors; symmetric, so that 1 is in the middle.

    Narrow axes, as on a phone, have room for one factor on either side.
    """
    reach = 1.06 * max(-np.log2(max(lowest, 2.0**-10)), np.log2(highest))
    axes.set_xscale("log")
    axes.set_xlim(2**-reach, 2**reach)
    steps = [(1.05,), (1.1,), (1.2,), (1.5,), (2.0,), (2.0, 4.0), (4.0, 16.0), (8.0, 64.0), (16.0, 256.0)]
    factors = next((each for each in reversed(steps) if np.log2(max(each)) <= reach), steps[0])
    if axes.bbox.width * 72 / axes.figure.dpi < _NARROW:
        factors = factors[-1:]
    ticks = sorted({1.0, *factors, *(1 / factor for factor in factors)})
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g} ×"))
    axes.axvline(1, color=STAND_INS["--muted"], linewidth=0.8, zorder=1)
    axes.grid(visible=False, axis="y")


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
        axes.axhline(uniform, color=STAND_INS["--muted"], linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "uniform", (1, uniform), (0, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right",
        )  # fmt: skip
        axes.plot(steps_T, entropy_T, color=STAND_INS["--accent"], linewidth=1.8, marker="o", markersize=2)
        axes.ticklabel_format(axis="y", useOffset=False)
        lowest = min(
            float(entropy_T.min()), 0.99 * uniform
        )  # a change of less than 1 % is not to look like one
        axes.set_ylim(lowest - 0.1 * (uniform - lowest), uniform + 0.2 * (uniform - lowest))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        outer_step_axis(axes, steps_T)

    summary = (
        f"Entropy of the policy over {len(steps)} outer steps: {entropy_T[0]:.4f} nats after the first, "
        f"{entropy_T[-1]:.4f} after the last one; uniform is {uniform:.4f}"
    )
    return draw_chart(draw, summary, half(250))


def operation_chart(policy: Policy) -> Markup:
    """Bars for the most and the least probable operations, relative to uniform; for spaces without a matrix."""
    shown, evidence = both_ends(policy, _BARS), policy.evidence
    band = None if evidence is None else evidence.operation_band

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        position = np.arange(len(shown))
        ratios = [operation.ratio for operation in shown]
        if band is not None:
            axes.axvspan(max(band[0], 2.0**-10), band[1], color=STAND_INS["--noise"], linewidth=0)
        widths = [ratio - 1 for ratio in ratios]
        axes.barh(position, widths, 0.6, left=1, color=STAND_INS["--accent"])
        axes.set_yticks(position, [operation.name for operation in shown])
        axes.invert_yaxis()
        ends = (*ratios, *(band or ()), 0.98, 1.02)
        ratio_axis(axes, min(ends), max(ends))
        axes.set_xlabel("probability / uniform")

    summary = (
        f"Probability over uniform of {len(shown)} operations, from {shown[0].ratio:.2f} for {shown[0].name} to "
        f"{shown[-1].ratio:.2f} for {shown[-1].name}"
    )
    return draw_chart(draw, summary, full(70 + ROW * len(shown)))


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
            colour = STAND_INS[f"--phase{number % 10}"]
            axes.stairs(below_T + values_T, edges_T, baseline=below_T, fill=True, color=colour, linewidth=0)
            below_T = below_T + values_T
        axes.set_axisbelow(True)
        axes.set_ylim(0, below_T.max() * 1.06 or 1)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_title("seconds")
        outer_step_axis(axes, steps_T)

    total = seconds_PT.sum()
    fractions = ", ".join(
        f"{name} {100 * seconds / (total or 1):.0f} %"
        for name, seconds in zip(names, seconds_PT.sum(1), strict=True)
    )
    return draw_chart(draw, f"Seconds of each outer step by phase; in total {fractions}", half(250))
