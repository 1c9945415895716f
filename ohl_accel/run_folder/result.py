"""`result.json`: the scores of a finished run.

`metric` is the name of the main score (the objective's, by default `accuracy`), in `test_METRIC` and `heldout_METRIC`.
"""

from collections.abc import Mapping
from typing import Any


def metric_of(result: Mapping[str, Any]) -> str:
    """The name of the main score; results of version 0.1.0 do not have it."""
    metric: str = result.get("metric", "accuracy")
    return metric


def main_score(result: Mapping[str, Any], split: str = "test") -> float | None:
    """The main score on the `test` or `heldout` images; None if it was not measured."""
    score: float | None = result.get(f"{split}_{metric_of(result)}")
    return score


def in_words(metric: str, score: float) -> str:
    """A score as text: in percent if it is in 0..1, a loss as it is."""
    return f"{score:.4f}" if metric == "loss" or not 0 <= score <= 1 else f"{100 * score:.2f} %"
