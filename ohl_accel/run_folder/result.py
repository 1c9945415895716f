"""`result.json`: the scores of a finished run.

`metric` names the main one (`accuracy` unless the objective has another), `test_METRIC` and `heldout_METRIC` hold it.
"""

from collections.abc import Mapping
from typing import Any


def metric_of(result: Mapping[str, Any]) -> str:
    """The name of the main score; runs of version 0.1.0 do not say it."""
    metric: str = result.get("metric", "accuracy")
    return metric


def main_score(result: Mapping[str, Any], split: str = "test") -> float | None:
    """The main score on the `test` or `heldout` images; None where it was not measured."""
    score: float | None = result.get(f"{split}_{metric_of(result)}")
    return score


def in_words(metric: str, score: float) -> str:
    """A score as text: those in 0..1 in per cent, a loss as it is."""
    return f"{score:.4f}" if metric == "loss" or not 0 <= score <= 1 else f"{100 * score:.2f} %"
