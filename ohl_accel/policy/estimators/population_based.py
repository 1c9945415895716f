"""Population based training (Jaderberg et al., 2017), slowly: a copy is made only of what has proved itself.

The worst trajectories adopt the weights of the best, and a perturbation of their policy. Judged by their next score,
policies that pay at once win, and those that pay in the end are lost ("greed"). Against that:

- scores are extrapolated along the learning curve, as in `Screening`; they take the place of the improvement rate of
  FIRE-PBT (Dalibard and Jaderberg, 2021);
- a trajectory is judged by the mean of its last scores, and only once it has so many since it was last copied;
- part of the trajectories are replaced less often, and only by each other; the rest may copy them as well. This is a
  small form of the sub-populations of MF-PBT, which evolve at several frequencies (arXiv 2506.03225).

Shapes: N trajectories, E elements, w scores of a window.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ohl_accel.policy.estimators.estimator import FinishedStep
from ohl_accel.policy.estimators.population import ExtrapolatingPopulation
from ohl_accel.policy.policy import Policy


class PopulationBasedTraining(ExtrapolatingPopulation):
    """The worst trajectories become copies of the best, with a perturbed policy.

    Args:
        policy: as in `Population`.
        ready: outer steps between two scorings; None: a twelfth of the run, at least 1.
        window: scorings since a trajectory was last copied that it is judged by, at least 1.
        begin: share of the run before the first copy, in 0..1.
        fraction: of the trajectories that are replaced at once, in (0, 0.5]; at least one is.
        perturbation: standard deviation of the change of a copied policy's log-weights, relative to `spread`.
        slow: the second half of the trajectories is replaced at every `slow`-th scoring only, and only by its own
            members; 1: there is one population.
        settings: of a `Population`, without `checks`.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        ready: int | None = None,
        window: int = 2,
        begin: float = 1 / 3,
        fraction: float = 0.25,
        perturbation: float = 0.3,
        slow: int = 1,
        **settings: Any,
    ) -> None:
        if "checks" in settings:
            raise ValueError(
                "checks is not an option of pbt: give ready, the outer steps between two scorings"
            )
        super().__init__(policy, **settings)
        self.check_length = max(1, self.outer_steps // 12) if ready is None else ready
        if min(self.check_length, window, slow) < 1:
            raise ValueError(f"ready, window and slow must be at least 1, got {ready=}, {window=}, {slow=}")
        if not 0 <= begin <= 1 or not 0 < fraction <= 0.5 or perturbation < 0:
            raise ValueError(
                "begin must be in 0..1, fraction in (0, 0.5] and perturbation at least 0, got "
                f"{begin=}, {fraction=}, {perturbation=}"
            )
        self._begin, self._fraction, self._slow = begin, fraction, slow
        self._perturbation = perturbation
        self._history_wN = torch.full((window, self.trajectories), torch.nan, dtype=torch.float64)

    def state(self) -> dict[str, Tensor]:
        """As in a population, and the scores since each trajectory was last copied."""
        return {**super().state(), "history": self._history_wN}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        super().load_state(state)
        self._history_wN = state["history"].clone()

    def _choose_parents(self, outer_step: int, score_N: Tensor) -> list[int]:
        finite_N = score_N.isfinite()
        centred_N = torch.where(finite_N, score_N - score_N[finite_N].mean(), torch.nan)
        self._history_wN = torch.cat([self._history_wN[1:], centred_N[None]])
        parents = super()._choose_parents(outer_step, score_N)  # of those that diverged
        done, numbers = outer_step + 1, range(self.trajectories)
        if parents != list(numbers) or done < self._begin * self.outer_steps:
            return parents
        judged_N = self._history_wN.mean(0).tolist()  # NaN before there are enough
        judged = [n for n in numbers if judged_N[n] == judged_N[n]]
        steady = numbers[ceil(self.trajectories / 2) :] if self._slow > 1 else range(0)
        parts = [[n for n in numbers if n not in steady]]
        if done // self.check_length % self._slow == 0 and steady:
            parts.insert(0, list(steady))
        for part in parts:
            own = sorted((n for n in judged if n in part), key=lambda n: judged_N[n])
            sources = own if part == list(steady) else judged
            number = min(max(1, int(self._fraction * len(part))), len(own))
            worst = own[:number]
            best = [n for n in sources if n not in worst and parents[n] == n]
            best.sort(key=lambda n: -judged_N[n])
            for child, parent in zip(worst, best[:number], strict=False):
                if judged_N[parent] > judged_N[child]:
                    parents[child] = parent
        return parents

    def _inherit(self, finished: FinishedStep, parents: list[int]) -> None:
        super()._inherit(finished, parents)
        copied_N = torch.tensor([parent != n for n, parent in enumerate(parents)])
        change_NE = self._perturbation * self._drawn("perturbation", finished.outer_step)
        self._log_weights_NE[copied_N] += change_NE[copied_N]
        self._history_wN[:, copied_N] = torch.nan
