"""What Eq 6 learns from rewards that mean nothing: the noise that a learned policy must beat.

P shadow policies start where the policy starts and see the same counts, with the same Adam; but the rewards of each
outer step are permuted among the trajectories, for each shadow on its own. If the rewards tell nothing about the
operations, then all permutations are equally probable, and the learned policy is one of P + 1 alike: a permutation
test (Good, 2005), valid for any distribution of the rewards, ties included. How far a policy is from its start is
measured by the chi-square distance of its element probabilities; the band for elements is simultaneous, from the
largest deviation of each shadow (Westfall & Young, 1993).

Counts are sampled from the learned policy alone, and what it samples more often varies more. So a shadow's surplus
counts are scaled to the standard deviation that they would have had if sampled from the shadow: sqrt(p_shadow / p).
Without it, the p-value is too small once policies are far from their start (11 % of noise instead of 5 % in a
simulation with 6 times the paper's learning rate; with it, 5 %).

N trajectories have N! permutations in an outer step, those of tied rewards being equal. With few of them (N = 2 and
few outer steps) shadows coincide with the policy, which counts against it: the p-value cannot fall below one over
their number, and is right however few there are.

Shapes: P shadows, K operations, N trajectories, A positions, E elements.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ohl_accel.operations.space import Space
from ohl_accel.policy.estimators.estimator import FinishedStep
from ohl_accel.policy.evidence import LEVEL, START, UNIFORM, Evidence, advice_for
from ohl_accel.policy.policy import probabilities_of
from ohl_accel.rng import keyed_generator

SHADOWS = 39
"""P: the fewest with which a test at `LEVEL` = 5 % of either side of a band is exact, 1 of P + 1 = 40 each."""
_SAME = 1 - 1e-9
"""Distances that differ by less, relatively, are equal: sums of the same numbers in another order."""
_LEAST = 1e-300
"""Stands for probabilities of 0, which have no logarithm."""


def tied_share(reward_N: Tensor, finite_N: Tensor) -> float:
    """Share, in 0..1, of the pairs of finite trajectories whose rewards are equal; 0 if there is no pair.

    Args:
        reward_N: float64.
        finite_N: bool.
    """
    values = reward_N[finite_N]
    n = len(values)
    equal = int((values[:, None] == values).sum()) - n
    return equal / (n * (n - 1)) if n > 1 else 0.0


def signal_to_noise(reward_N: Tensor, score_N: Tensor) -> float:
    """How well a score of the trajectories that was known before predicts their rewards, in standard deviations.

    Their correlation times sqrt(N - 1): over the N! permutations of the rewards it has mean 0 and variance 1, exactly.

    Args:
        reward_N: float64.
        score_N: float64, such as the gain of the log-likelihood of their operations under the learned policy.

    Returns:
        In -sqrt(N - 1)..sqrt(N - 1); 0 if all rewards or all scores are equal, which tells nothing.
    """
    reward_N, score_N = reward_N - reward_N.mean(), score_N - score_N.mean()
    scale = float(reward_N.norm() * score_N.norm())
    return float(reward_N @ score_N) / scale * (len(reward_N) - 1) ** 0.5 if scale > 0 else 0.0


class Shadows:
    """Shadow policies, and what they tell about the policy that Eq 6 learns.

    Args:
        theta_K: float64, of the policy at its start; copied.
        space: of the policy.
        lr: eta_theta.
        betas: of Adam.
        seed: of the run.
        count: P.
    """

    def __init__(
        self,
        theta_K: Tensor,
        space: Space,
        *,
        lr: float,
        betas: tuple[float, float],
        seed: int,
        count: int = SHADOWS,
    ) -> None:
        self._space, self._seed = space, seed
        self._start_K = theta_K.clone()
        self._theta_PK = theta_K.repeat(count, 1)
        self._adam = torch.optim.Adam([self._theta_PK], lr=lr, betas=betas, maximize=True)
        # outer steps; sums over them of tied shares and signals to noise; and those of the last one
        self._sums = torch.zeros(5, dtype=torch.float64)

    def step(self, finished: FinishedStep, counts_NK: Tensor, theta_K: Tensor) -> None:
        """Let the shadows learn from an outer step, with its rewards permuted.

        Args:
            finished: the outer step.
            counts_NK: how often each trajectory sampled each operation.
            theta_K: of the policy, before it learns from this outer step.
        """
        counts_NK = counts_NK.double()
        reward_N, number = finished.reward_N, len(finished.reward_N)
        tied = tied_share(reward_N, finished.finite_N)
        own_K = probabilities_of(theta_K).clamp_min(_LEAST)
        gain_K = (own_K / probabilities_of(self._start_K).clamp_min(_LEAST)).log()
        ratio = signal_to_noise(reward_N, counts_NK @ gain_K)
        self._sums += torch.tensor([1.0, tied, ratio, 0.0, 0.0], dtype=torch.float64)
        self._sums[3:] = torch.tensor([tied, ratio], dtype=torch.float64)
        generator = keyed_generator(self._seed, "shadow rewards", finished.outer_step)
        order_PN = torch.rand(len(self._theta_PK), number, generator=generator).argsort(1)
        advantage_PN = (reward_N - reward_N.mean())[order_PN]
        sigmoid_PK = self._theta_PK.sigmoid()
        shadow_PK = sigmoid_PK / sigmoid_PK.sum(1, keepdim=True)
        # Eq 6 as in `outer_gradient`, with the surplus counts of the shadow's own policy
        surplus_NK = (counts_NK - counts_NK.sum(1, keepdim=True) * own_K) / own_K.sqrt()
        self._theta_PK.grad = (advantage_PN @ surplus_NK) * shadow_PK.sqrt() / number * (1 - sigmoid_PK)
        self._adam.step()

    def evidence(self, theta_K: Tensor) -> Evidence | None:
        """What is known about a policy that learned from the same outer steps; None before the first one.

        Args:
            theta_K: of the policy.
        """
        steps, tied, ratio, last_tied, last_ratio = self._sums.tolist()
        if not steps:
            return None
        space = self._space
        start_AE = self._marginals(self._start_K).clamp_min(_LEAST)
        own_AE, shadow_PAE = (
            self._marginals(theta_K),
            torch.stack([self._marginals(each) for each in self._theta_PK]),
        )
        distance, distance_P = (
            ((each - start_AE).square() / start_AE).sum((-2, -1)) for each in (own_AE, shadow_PAE)
        )
        further = int((distance_P >= distance * _SAME).sum())
        p_value = (1 + further) / (1 + len(distance_P))
        # |log ratio| to the start, the largest of all elements: a band of one width in which all lie together
        largest_P = (shadow_PAE / start_AE).clamp_min(_LEAST).log().abs().amax((1, 2))
        inside = round((1 - LEVEL) * (1 + len(largest_P)))
        factor = float(largest_P.sort().values[min(inside, len(largest_P)) - 1].exp())
        ratio_PK = torch.stack([probabilities_of(each) for each in self._theta_PK]) * space.num_operations
        mean_tied = tied / steps
        return Evidence(
            p_value=p_value,
            outer_steps=round(steps),
            reference=UNIFORM if bool((self._start_K == self._start_K[0]).all()) else START,
            tied_share=mean_tied,
            signal_to_noise=ratio / steps,
            step_tied_share=last_tied,
            step_signal_to_noise=last_ratio,
            low_AE=_rows(start_AE / factor),
            high_AE=_rows((start_AE * factor).clamp_max(1.0)),
            operation_band=(float(ratio_PK.min()), float(ratio_PK.max())),
            advice=advice_for(p_value, mean_tied),
        )

    def _marginals(self, theta_K: Tensor) -> Tensor:
        return self._space.marginals(probabilities_of(theta_K))

    def state(self) -> dict[str, Tensor]:
        """Everything to save in a checkpoint."""
        moments = self._adam.state.get(self._theta_PK, {})
        return {
            "start": self._start_K,
            "theta": self._theta_PK,
            "sums": self._sums,
            **{f"adam.{key}": moments[key] for key in sorted(moments)},
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `state`."""
        self._start_K.copy_(state["start"])
        self._theta_PK.copy_(state["theta"])
        self._sums.copy_(state["sums"])
        moments = {
            key.removeprefix("adam."): value.clone()
            for key, value in state.items()
            if key.startswith("adam.")
        }
        if moments:
            self._adam.state[self._theta_PK] = moments


def _rows(values_AE: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values_AE.tolist())
