"""When the processes of a run save or stop inside an outer step: they agree on the inner step."""

import math
import time
from dataclasses import dataclass

import torch

from ohl_accel import interrupts
from ohl_accel.distributed.groups import Groups

_SECONDS = 1.0
"""About how often processes ask each other, which takes a sum over all of them."""


@dataclass(frozen=True)
class Pause:
    """The processes save here; and stop if a signal asked any of them to."""

    signal: int = 0
    """Its number; 0: the run goes on."""


class Pauses:
    """Asks all processes of a run whether to save or stop.

    Args:
        groups: of the run.
        minutes: between two checkpoints inside an outer step (`run.checkpoint_minutes`); None: none but for signals.
    """

    def __init__(self, groups: Groups, minutes: float | None) -> None:
        self._groups = groups
        self._every = math.inf if minutes is None else 60 * minutes
        self._saved = self._asked = time.monotonic()
        self._steps, self._interval = 0, 1

    def after_inner_step(self) -> Pause | None:
        """Whether to save or stop after this inner step; every process must call it after every one."""
        self._steps += 1
        return self.ask() if self._steps >= self._interval else None

    def ask(self) -> Pause | None:
        """Whether to save or stop now; every process must call it."""
        now = time.monotonic()
        due, number = now - self._saved >= self._every, interrupts.requested()
        if self._groups.processes > 1:
            steps = max(1, round(_SECONDS * self._steps / max(now - self._asked, 1e-9)))
            own = [float(number == each) for each in interrupts.SIGNALS]
            main = self._groups.rank == 0
            asked = self._groups.sum_in_world(
                torch.tensor([*own, float(main and due), float(steps if main else 0)], dtype=torch.float64)
            ).tolist()
            number = next((each for each, count in zip(interrupts.SIGNALS, asked, strict=False) if count), 0)
            due, self._interval = bool(asked[-2]), int(asked[-1])
        self._asked, self._steps = now, 0
        return Pause(number) if due or number else None

    def saved(self) -> None:
        """A checkpoint is written: the next one is due in so many minutes."""
        self._saved = time.monotonic()
