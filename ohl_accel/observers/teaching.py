"""The observer that warns, once and early in a search, if rewards teach nothing. The summary says it at the end."""

from collections.abc import Mapping
from typing import Any

from ohl_accel.observers.observer import Observer, RunInfo
from ohl_accel.policy.evidence import Evidence
from ohl_accel.run_folder.files import METRICS_FILE
from ohl_accel.run_folder.metrics import lines_before

FEWEST = 10
"""Outer steps before the first warning, at least; in long runs a tenth of all."""


def first_look(outer_steps: int) -> int:
    """After how many outer steps, at the earliest, a run of that length is looked at for the first time."""
    return max(FEWEST, -(-outer_steps // 10))


class Teaching(Observer):
    """Warns if most rewards are tied, or what was learned is indistinguishable from noise, and says what would help.

    Only if the estimator measures it. A resumed run is not warned again early.
    """

    def __init__(self) -> None:
        self._looked = False

    def start(self, run: RunInfo) -> None:
        """Find out whether the run was looked at before it was resumed."""
        lines = lines_before(run.folder / METRICS_FILE, run.first_outer_step)
        self._looked = any(self._is_due(run, line) for line in lines)

    def outer_step(self, run: RunInfo, line: Mapping[str, Any]) -> None:
        """Look at the run once, when it is due."""
        if self._looked or not self._is_due(run, line) or line["outer_step"] + 1 == run.recipe.outer.steps:
            return
        self._looked = True
        evidence = run.policy.evidence if run.policy is not None else None
        if evidence is not None and not evidence.teaches:
            run.warn(
                f"after outer step {line['outer_step'] + 1} of {run.recipe.outer.steps}, {_in_words(evidence)}"
            )

    @staticmethod
    def _is_due(run: RunInfo, line: Mapping[str, Any]) -> bool:
        """Whether evidence was measured in this line, late enough."""
        return "evidence" in line and line["outer_step"] + 1 >= first_look(run.recipe.outer.steps)


def _in_words(evidence: Evidence) -> str:
    """What is wrong, the measurements, and what would help."""
    tied = "more than half of the rewards are tied, and " if evidence.many_ties else ""
    measured = f": {evidence.measurements}" if evidence.measurements else ""
    advice = f"; what would help: {'; '.join(evidence.advice)}" if evidence.advice else ""
    return f"{tied}what was learned is {evidence.verdict}{measured}{advice}"
