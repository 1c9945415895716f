"""An estimator that lets a test act in the middle of a run: Eq 6, and waits that change nothing."""

import time
from pathlib import Path
from typing import Any

from ohl_accel import interrupts
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators import FinishedStep, Reinforce

SECONDS = 120.0
"""The longest wait."""


class Waiting(Reinforce):
    """In the second outer step all processes wait for a file; fewer than `whole` trajectories wait in the third one for
    the signal by which a launcher lets another machine join.

    Args:
        policy: to learn.
        gate: the file.
        whole: all trajectories.
        settings: of `Reinforce`.
    """

    def __init__(self, policy: Policy, *, gate: str, whole: int, **settings: Any) -> None:
        super().__init__(policy, **settings)
        self._gate, self._is_whole = Path(gate), self.trajectories == whole

    def step(self, finished: FinishedStep) -> dict[str, Any]:
        """As `Reinforce`."""
        end = time.monotonic() + SECONDS
        while not self._may_go_on(finished.outer_step):
            assert time.monotonic() < end
            time.sleep(0.05)
        return super().step(finished)

    def _may_go_on(self, outer_step: int) -> bool:
        if self._is_whole:
            return outer_step != 1 or self._gate.exists()
        return outer_step != 2 or interrupts.requested() != 0
