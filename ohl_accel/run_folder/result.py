"""`result.json`: the scores of a finished run.

`metric` is the name of the main score (the objective's, by default `accuracy`), in `test_METRIC` and `heldout_METRIC`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ohl_accel.errors import UserError
from ohl_accel.plain_json import read_object
from ohl_accel.run_folder.files import RESULT_FILE

REWRITE_RESULT = (
    "delete it and rerun the search's command with run.resume=auto, which tests the network again"
)


def read_result(folder: Path) -> dict[str, Any] | None:
    """The contents of a run folder's `result.json`; None if the run is not finished.

    Raises:
        UserError: if it is damaged.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    try:
        result = read_object(path)
        if not isinstance(result.get("metric", "accuracy"), str):
            raise ValueError("metric must be the name of a score")
        for split in ("test", "heldout"):
            score = main_score(result, split)
            if score is not None and type(score) not in (int, float):
                raise ValueError(f"{split}_{metric_of(result)} must be a number")
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; {REWRITE_RESULT}") from None
    return result


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
