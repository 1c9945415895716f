"""Two runs side by side: where their recipes differ, their results, curves and policies.

Two runs are one pair: even with equal recipes they differ by their seeds. The page says so, and how much of a
difference in accuracy is explained by the number of test images alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ohl_accel.policy.evidence import moved_in_words
from ohl_accel.report.charts import element_sizes, ratio_axis
from ohl_accel.report.operations import POSITIONS
from ohl_accel.report.read import OuterStep, Run
from ohl_accel.report.svg import BEGINNING, ROW, STAND_INS, dots, draw_chart, half, outer_step_axis, zoom
from ohl_accel.run_folder.result import in_words

COLOURS = ("--accent", "--phase1")
"""Of the first and the second run, in all charts."""
_ROWS = 12
"""Classes in the table, at most."""
_Z = 1.959964

Pair = tuple[Run, Run]


@dataclass(frozen=True)
class Line:
    """A line of a table: what, and of each run the text."""

    what: str
    first: str
    second: str
    difference: str = ""

    @property
    def same(self) -> bool:
        """Whether both runs have the same."""
        return self.first == self.second


def recipe_lines(pair: Pair) -> list[Line]:
    """The fields in which the recipes differ."""
    flat = [_flat(run.recipe.model_dump(mode="json")) if run.recipe is not None else {} for run in pair]
    names = sorted(flat[0].keys() | flat[1].keys())
    ignored = {"run.dir", "run.resume", "run.overwrite"}
    lines = [
        Line(name, *(_text(values.get(name)) for values in flat)) for name in names if name not in ignored
    ]
    return [line for line in lines if not line.same]


def result_lines(pair: Pair) -> list[Line]:
    """Scores, evidence and time of both runs."""
    lines = []
    results = [run.result for run in pair]
    first, second = results
    if first is not None and second is not None and first.metric == second.metric:
        metric = first.metric
        tests = _score(metric, first.test), _score(metric, second.test)
        lines.append(Line(f"test {metric}", tests[0], tests[1], test_difference(pair)))
        lines.append(Line("test images", _text(first.test_images), _text(second.test_images)))
        for name in [name for name in first.other_tests if name in second.other_tests]:
            scores = [result.other_tests[name] for result in (first, second)]
            lines.append(
                Line(f"test {name}".replace("_", " "), _score(name, scores[0]), _score(name, scores[1]))
            )
        lines.append(Line(f"held-out {metric}", *(_score(metric, r.heldout) for r in (first, second))))
    else:
        lines.append(Line("state", *("finished" if run.finished else "not finished" for run in pair)))
    lines.append(Line("outer steps", *(f"{len(run.steps)}" for run in pair)))
    policies = [run.policy if run.learned else None for run in pair]
    if any(policies):
        lines.append(
            Line("entropy", *(f"{each.entropy:.4f} nats" if each is not None else "" for each in policies))
        )
        verdicts = []
        for policy in policies:
            evidence = policy.evidence if policy is not None else None
            verdicts.append(
                "" if policy is None else evidence.verdict if evidence is not None else "not measured"
            )
        lines.append(Line("evidence", *verdicts))
        moved = [
            "; ".join(moved_in_words(each.moved_elements)) or "none" if each is not None else ""
            for each in policies
        ]
        lines.append(Line("elements that noise does not explain", *moved))
    seconds = [sum(sum(step.seconds.values()) for step in run.steps) for run in pair]
    lines.append(Line("seconds", *(f"{each:,.1f}" for each in seconds)))
    return lines


def test_difference(pair: Pair) -> str:
    """The difference of the test accuracies, with the 95 % interval of two samples of as many test images; or ""."""
    results = [run.result for run in pair]
    if any(each is None or each.test is None or each.metric != "accuracy" for each in results):
        return ""
    scores = [(each.test, each.test_images) for each in results if each is not None and each.test is not None]
    (p, n), (q, m) = scores
    if not n or not m:
        return ""
    half = _Z * math.sqrt(p * (1 - p) / n + q * (1 - q) / m)
    difference = q - p
    inside = abs(difference) <= half
    about = (
        "no more than the choice of test images makes"
        if inside
        else "more than the choice of test images makes"
    )
    return f"{100 * difference:+.2f} points (± {100 * half:.2f}): {about}"


def class_lines(pair: Pair) -> list[Line]:
    """The classes whose top-1 accuracies differ most, if both runs have the same classes."""
    first, second = (run.classes for run in pair)
    if first is None or second is None or first.names != second.names:
        return []
    found = []
    for one, other in zip(first.classes, second.classes, strict=True):
        p, q = one.get("top1"), other.get("top1")
        if isinstance(p, float) and isinstance(q, float):
            line = Line(
                str(one["class"]), f"{100 * p:.2f}", f"{100 * q:.2f}", difference=f"{100 * (q - p):+.2f}"
            )
            found.append((abs(q - p), line))
    return [line for _, line in sorted(found, key=lambda each: -each[0])[:_ROWS]]


def charts(pair: Pair) -> dict[str, Markup | None]:
    """Curves of both runs in the same charts, by name; None for those that no run has."""

    def best(step: OuterStep) -> float | None:
        rewards = [reward for reward in step.reward if reward is not None]
        return 100 * max(rewards) if rewards else None

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return {
        "Best held-out score, %": _curves(pair, "Best held-out score in per cent", best, BEGINNING),
        "Held-out loss": _curves(pair, "Held-out loss", lambda step: mean(step.heldout_loss), BEGINNING),
        "Training loss": _curves(pair, "Training loss", lambda step: mean(step.train_loss)),
        "Learning rate": _curves(pair, "Learning rate", lambda step: step.learning_rate),
        "Entropy of the policy, nats": _curves(pair, "Entropy in nats", lambda step: step.entropy),
    }


def _curves(
    pair: Pair, what: str, value: Callable[[OuterStep], float | None], beginning: float = 0.0
) -> Markup | None:
    points = [
        np.array([(step.outer_step + 1, v) for step in run.steps if (v := value(step)) is not None])
        for run in pair
    ]
    if not any(len(each) for each in points):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for each, colour in zip(points, COLOURS, strict=True):
            if len(each):
                axes.plot(*each.T, color=STAND_INS[colour], linewidth=1.6, marker="o", markersize=2)
        every = np.concatenate([each for each in points if len(each)])
        zoom(axes, every[:, 0], every[:, 1], beginning)
        axes.ticklabel_format(axis="y", useOffset=False)
        outer_step_axis(axes, [int(every[:, 0].min()), int(every[:, 0].max())])

    last = ", ".join(f"{each[-1, 1]:.4g}" if len(each) else "none" for each in points)
    return draw_chart(draw, f"{what} of both runs; at the end {last}", half(230))


def element_chart(pair: Pair) -> Markup | None:
    """The probabilities of the elements in both policies, before the noise band; None if the spaces differ."""
    policies = [run.policy for run in pair if run.learned and run.policy is not None]
    if len(policies) < 2 or policies[0].space != policies[1].space:
        return None
    space = policies[0].space
    uniform_AE = space.uniform_marginals.numpy()
    ratios = [policy.element_probabilities.numpy() / uniform_AE for policy in policies]
    bands = []
    for policy in policies:
        evidence = policy.evidence
        if evidence is not None and evidence.low_AE is not None and evidence.high_AE is not None:
            bands.append([np.array(rows) / uniform_AE for rows in (evidence.low_AE, evidence.high_AE)])
    values = [*ratios, *(end for band in bands for end in band)]
    lowest, highest = min(0.98, *(each.min() for each in values)), max(1.02, *(each.max() for each in values))
    names = [element.name for element in space.elements]

    def draw(figure: Figure) -> None:
        shape = (1, space.arity) if figure.get_figwidth() * 72 > 600 else (space.arity, 1)
        panels = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False).ravel()
        rows = np.arange(len(names), dtype=float)
        for number, axes in enumerate(panels):
            if len(bands) == 2:  # the wider of both: a difference inside it is no finding
                low = np.minimum(bands[0][0][number], bands[1][0][number])
                high = np.maximum(bands[0][1][number], bands[1][1][number])
                axes.barh(rows, high - low, 0.8, left=low, color=STAND_INS["--noise"])
            _both(axes, [ratio_AE[number] for ratio_AE in ratios], rows)
            if space.arity > 1:
                axes.set_title(f"{POSITIONS[number]} element")
            ratio_axis(axes, float(lowest), float(highest))
            axes.set_yticks(rows, names)
            axes.tick_params(labelbottom=True)
        panels[0].set_ylim(len(names) - 0.4, -0.6)

    correlation = float(np.corrcoef(np.log(ratios[0]).ravel(), np.log(ratios[1]).ravel())[0, 1])
    known = (
        f"correlation of their logarithms {correlation:.2f}"
        if math.isfinite(correlation)
        else "one is uniform"
    )
    height = 60 + ROW * len(names)
    summary = f"Probability over uniform of each element in both policies; {known}"
    return draw_chart(draw, summary, element_sizes(height, space.arity))


def _both(axes: Axes, ratios: Sequence[np.ndarray], rows: np.ndarray) -> None:
    for ratio_E, colour, shift in zip(ratios, COLOURS, (-0.17, 0.17), strict=True):
        dots(axes, ratio_E, rows + shift, colour)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _text(value: object) -> str:
    return "" if value is None else f"{value:,}" if type(value) is int else str(value)


def _score(metric: str, score: float | None) -> str:
    return "not measured" if score is None else in_words(metric, score)
