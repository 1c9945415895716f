"""Populations: a random policy for each trajectory, kept to the end or until the worse half gives way.

`Population` is the plain baseline, random search within one run (Bergstra and Bengio, 2012): nothing is copied before
the end, and the trajectory with the best held-out score wins with its policy. `Halving` spends the N trajectories
better, by successive halving (Jamieson and Talwalkar, 2016). What an estimator learns beyond that is worth its effort.

Shapes: E elements, K operations, N trajectories.
"""

from collections.abc import Mapping, Sequence
from math import ceil, inf, log2
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from ohl_accel.operations.space import Space
from ohl_accel.policy import effects
from ohl_accel.policy.estimators.estimator import Estimator, FinishedStep
from ohl_accel.policy.estimators.screening import learning_curve_slope
from ohl_accel.policy.policy import Policy
from ohl_accel.policy.structure import product_of_elements, theta_of
from ohl_accel.rng import keyed_generator


class Population(Estimator):
    """Every trajectory has a policy of its own, with log-normal weights of the elements; the best one is learned.

    Weights are not copied before the end, unless a trajectory diverges: it becomes a copy of the best one, policy
    included. The policy learned is, at any time, that of the best trajectory when they were last scored.

    Args:
        policy: what log-weights of 0 stand for; replaced by the best trajectory's.
        spread: standard deviation of the log-weights.
        family_share: share of their variance that the elements of a family of transforms have in common, 0 to 0.9; the
            default is the mean of `ohl_accel.policy.effects.FAMILY_SHARES`.
        checks: how often trajectories are scored: every max(1, `outer_steps` // `checks`) outer steps, and at the end.
        settings: common to all estimators; with `lr` = 0 all trajectories keep the policy, nothing is learned;
            `betas` are not used.

    Raises:
        ValueError: for values out of range, or N < 2.
    """

    records: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        policy: Policy,
        *,
        spread: float = 1.0,
        family_share: float = fmean(effects.FAMILY_SHARES),
        checks: int = 10,
        **settings: Any,
    ) -> None:
        super().__init__(policy, **settings)
        if self.trajectories < 2:
            raise ValueError("a population compares trajectories: outer.trajectories must be at least 2")
        if spread <= 0 or checks < 1:
            raise ValueError(f"spread and checks must be positive, got {spread=}, {checks=}")
        if not 0 <= family_share <= 1 - effects.MAGNITUDE_SHARE:
            raise ValueError(
                f"family_share must be in 0..{1 - effects.MAGNITUDE_SHARE:g}, got {family_share=}"
            )
        self.check_length = max(1, self.outer_steps // checks)
        self._spread, self._family_share = spread, family_share
        self._start_K = policy.probabilities
        self._log_weights_NE = self._drawn("population")
        self._lineage_N = torch.arange(self.trajectories)
        self._policies = self._policies_of_all()
        self._parents = list(range(self.trajectories))

    def is_scored(self, outer_step: int) -> bool:
        """After every `check_length` outer steps."""
        return (outer_step + 1) % self.check_length == 0

    def policy_of(self, trajectory: int) -> Policy:
        """Its own."""
        return self._policies[trajectory]

    def step(self, finished: FinishedStep) -> dict[str, Any]:
        """Learn the policy of the best trajectory, and decide which ones continue as copies of others."""
        score_N, told = self._scores(finished)
        is_last = finished.outer_step == self.outer_steps - 1
        best = finished.winner
        self._parents = [best] * self.trajectories
        if not is_last:
            comparable_N = _comparable(score_N, finished.finite_N)
            self._parents = self._choose_parents(finished.outer_step, comparable_N)
            best = max(set(self._parents), key=lambda n: (float(comparable_N[n]), -n))
        if self.lr:
            self.policy.theta.copy_(self._policies[best].theta)
        if not is_last:
            self._inherit(finished, self._parents)
            self._policies = self._policies_of_all()
        return {**told, "best": best, "parents": list(self._parents)}

    def parents(self, finished: FinishedStep) -> list[int]:
        """Those chosen in `step`."""
        return list(self._parents)

    def state(self) -> dict[str, Tensor]:
        """theta, and of each trajectory the log-weights and the lineage: whose first policy its own comes from."""
        return {**super().state(), "log_weights": self._log_weights_NE, "lineage": self._lineage_N}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        super().load_state(state)
        self._log_weights_NE, self._lineage_N = state["log_weights"].clone(), state["lineage"].clone()
        self._policies = self._policies_of_all()

    def _scores(self, finished: FinishedStep) -> tuple[Tensor, dict[str, Any]]:
        """float64 [N], higher is better; and what to tell about them."""
        return finished.reward_N, {}

    def _choose_parents(self, outer_step: int, score_N: Tensor) -> list[int]:
        """The parent of each trajectory; the score of those that diverged is -inf."""
        return descend(self._lineage_N.tolist(), score_N.tolist())

    def _inherit(self, finished: FinishedStep, parents: list[int]) -> None:
        """Give copies what belongs to their parents."""
        self._log_weights_NE, self._lineage_N = self._log_weights_NE[parents], self._lineage_N[parents]

    def _drawn(self, purpose: str, *counters: int) -> Tensor:
        """New log-weights for every trajectory: float64 [N, E]."""
        generator = keyed_generator(self.seed, purpose, *counters)
        rows_NE = random_log_weights(self.policy.space, self.trajectories, self._family_share, generator)
        return self._spread * rows_NE if self.lr else torch.zeros_like(rows_NE)

    def _policies_of_all(self) -> list[Policy]:
        space = self.policy.space
        return [
            Policy(theta_of(self._start_K * product_of_elements(row_E, space)), space=space)
            for row_E in self._log_weights_NE
        ]


class ExtrapolatingPopulation(Population):
    """A population whose scores are held-out losses extrapolated along the learning curve, as in `Screening`.

    A policy that makes training harder looks worse at first; FIRE-PBT (Dalibard and Jaderberg, 2021) meets the same
    problem by judging the rate of improvement. The slope is that between two scorings, of all trajectories together.
    """

    records: ClassVar[frozenset[str]] = frozenset({"heldout_loss", "training_loss"})

    def __init__(self, policy: Policy, **settings: Any) -> None:
        super().__init__(policy, **settings)
        self._before = torch.full((2,), torch.nan, dtype=torch.float64)

    def state(self) -> dict[str, Tensor]:
        """As in a population, and the point of the learning curve at the last scoring."""
        return {**super().state(), "before": self._before}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        super().load_state(state)
        self._before = state["before"].clone()

    def _scores(self, finished: FinishedStep) -> tuple[Tensor, dict[str, Any]]:
        loss_NX = _losses(finished)
        after = loss_NX[finished.finite_N].mean(0)
        slope = learning_curve_slope(self._before, after) if bool(self._before.isfinite().all()) else 0.0
        score_N = slope * loss_NX[:, 1] - loss_NX[:, 0]
        return score_N, {
            "training_image_loss": loss_NX[:, 1].tolist(),
            "score": score_N.tolist(),
            "learning_curve_slope": slope,
        }

    def _inherit(self, finished: FinishedStep, parents: list[int]) -> None:
        super()._inherit(finished, parents)
        # of the parents, so that copying alone does not look like progress
        self._before = _losses(finished)[parents].mean(0)


class Halving(ExtrapolatingPopulation):
    """Successive halving: at each rung the better half of the policies continues, with twice the trajectories each.

    A policy is judged by the mean over the trajectories that have it. Those of the worse half become copies of the best
    trajectory of a better policy, weights and policy.

    Args:
        policy: as in `Population`.
        rungs: how often; None: until one policy is left.
        share: of the run before the first rung; the others follow at equal distances.
        settings: of a `Population`, without `checks`: trajectories are scored at each rung and midway before it.

    Raises:
        ValueError: for values out of range, or a run that is too short for its rungs.
    """

    def __init__(
        self, policy: Policy, *, rungs: int | None = None, share: float = 1 / 3, **settings: Any
    ) -> None:
        if "checks" in settings:
            raise ValueError("checks is not an option of halving: trajectories are scored at its rungs")
        super().__init__(policy, **settings)
        number = ceil(log2(self.trajectories)) if rungs is None else rungs
        if number < 1 or not 0 < share < 1:
            raise ValueError(f"rungs must be at least 1 and share in (0, 1), got {rungs=}, {share=}")
        self.rungs = [round(self.outer_steps * (share + k * (1 - share) / number)) for k in range(number)]
        """Outer steps done at each rung."""
        lengths = [after - before for before, after in zip([0, *self.rungs], self.rungs, strict=False)]
        if min(lengths) < 2 or self.rungs[-1] >= self.outer_steps:
            enough = ceil(2.5 * max(1 / share, number / (1 - share)))
            raise ValueError(
                f"rungs must be at least 2 outer steps apart, so {number} of them from {share:g} of the run on need "
                f"about outer.steps={enough}, got {self.outer_steps}"
            )
        midway = [rung - length // 2 for rung, length in zip(self.rungs, lengths, strict=True)]
        self._scored = frozenset([*self.rungs, *midway])

    def is_scored(self, outer_step: int) -> bool:
        """At each rung, and midway before it, for the slope of the learning curve."""
        return outer_step + 1 in self._scored

    def _choose_parents(self, outer_step: int, score_N: Tensor) -> list[int]:
        lineage = self._lineage_N.tolist()
        survivors = ceil(len(set(lineage)) / 2) if outer_step + 1 in self.rungs else None
        return descend(lineage, score_N.tolist(), survivors)


def random_log_weights(space: Space, number: int, family_share: float, generator: torch.Generator) -> Tensor:
    """Normal log-weights of elements that act alike as far as `ohl_accel.policy.effects.similarity` says.

    Args:
        space: of the elements.
        number: of policies.
        family_share: as in `similarity`.
        generator: on the CPU.

    Returns:
        float64 [number, E], of mean 0 within each row, and mean variance 1.
    """
    root_EE = effects.root_of(effects.similarity(space, family_share))
    normal_nE = torch.randn(number, len(root_EE), generator=generator, dtype=torch.float64)
    rows_nE: Tensor = normal_nE @ root_EE
    return rows_nE


def descend(lineage: Sequence[int], score: Sequence[float], survivors: int | None = None) -> list[int]:
    """Whose state each trajectory continues with if the best lineages survive.

    A lineage is judged by the mean score of its finite trajectories. In one that survives, those that diverged copy its
    best trajectory. All others are shared out among the survivors in turn, from the best on.

    Args:
        lineage: of each of N trajectories.
        score: of each; -inf if it diverged; at least one finite.
        survivors: how many lineages, at least 1; None: all with a finite trajectory.

    Returns:
        N parents; each is finite, and its own parent.
    """
    finite: dict[int, list[int]] = {}
    for n, own in enumerate(lineage):
        if score[n] > -inf:
            finite.setdefault(own, []).append(n)
    ranked = sorted(finite, key=lambda own: -fmean(score[n] for n in finite[own]))[:survivors]
    best = {own: max(finite[own], key=lambda n: score[n]) for own in ranked}
    parents, homeless = [], 0
    for n, own in enumerate(lineage):
        if own in best:
            parents.append(n if n in finite[own] else best[own])
        else:
            parents.append(best[ranked[homeless % len(ranked)]])
            homeless += 1
    return parents


def _comparable(score_N: Tensor, finite_N: Tensor) -> Tensor:
    """-inf for trajectories that diverged; the lowest of the others' where a finite one has no finite score."""
    usable_N = finite_N & score_N.isfinite()
    lowest = float(score_N[usable_N].min()) if bool(usable_N.any()) else 0.0
    return torch.where(finite_N, torch.where(usable_N, score_N, lowest), -inf)


def _losses(finished: FinishedStep) -> Tensor:
    """Held-out and training loss: float64 [N, 2]."""
    return torch.stack([finished.recorded["heldout_loss"], finished.recorded["training_loss"]], 1)
