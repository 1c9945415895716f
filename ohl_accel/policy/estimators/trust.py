"""Eq 6 on a leash: options that keep the paper's estimator from following noise. Each is off by default.

- `kl`: an anchor. kl * KL(p || start) is subtracted from the expected reward, which Eq 6 is the gradient of: a nat
  away from the start policy must be worth `kl` of the score.
- `clip` and `epochs`: proximal policy optimization (Schulman et al., 2017, Eq 7). Several Adam steps on the draws of
  one outer step, in which a draw counts no more once its probability has changed by the factor 1 + clip (or 1 - clip)
  in the direction of its advantage.
- `entropy_floor`: after each step the probabilities are flattened to p^t, with the greatest t <= 1 for which the
  entropy is not below the floor.
- `learn_from`, `learn_until`: the part of the run in which the policy learns.
- `average`: the policy that is used after learning, and saved in the end, is the exponential average of theta over the
  steps (Polyak and Juditsky, 1992).

`ReinforceSignificant` also copies a winner only over trajectories that are worse than it beyond chance.

Shapes: K operations, N trajectories, n held-out images, M numbers kept per image.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from torch import Tensor

from ohl_accel.errors import UserError
from ohl_accel.policy.estimators.estimator import FinishedStep
from ohl_accel.policy.estimators.reinforce import Reinforce, advantage_of, outer_gradient
from ohl_accel.policy.policy import Policy, probabilities_of

_TINY = torch.finfo(torch.float64).tiny
_HALVINGS = 60
"""Of the interval of t, to the last bit."""


def kl_gradient(theta_K: Tensor, start_K: Tensor) -> Tensor:
    """The gradient of KL(p || start) with respect to theta. float64 [K].

    With p = s / sum s, s = sigmoid(theta): d p_k / d theta_i = p_k (1 - s_i) (delta_ki - p_i), hence

        d KL / d theta_i = p_i (1 - s_i) [ log(p_i / start_i) - KL ]

    Args:
        theta_K: float64 parameters.
        start_K: probabilities.
    """
    probability_K = probabilities_of(theta_K)
    log_ratio_K = _ratio(probability_K, start_K).log()
    divergence = probability_K @ log_ratio_K
    return probability_K * (1 - theta_K.sigmoid()) * (log_ratio_K - divergence)


def clipped_counts(
    probability_K: Tensor, sampled_K: Tensor, counts_NK: Tensor, advantage_N: Tensor, clip: float
) -> Tensor:
    """Counts with which Eq 6 is the gradient of PPO's clipped objective. float64 [N, K].

    The gradient of r A, with r = p / p(sampled), is A r grad log p; where the minimum takes the clipped term, it is 0.

    Args:
        probability_K: of the policy now.
        sampled_K: of the policy that was sampled.
        counts_NK: how often each trajectory sampled each operation.
        advantage_N: zero-mean rewards.
        clip: epsilon; infinity for none.
    """
    ratio_K = _ratio(probability_K, sampled_K)
    sign_N1 = advantage_N.sign()[:, None]
    is_active_NK = (ratio_K - 1) * sign_N1 <= clip
    return counts_NK.double() * ratio_K * is_active_NK


def flattened(theta_K: Tensor, floor: float) -> Tensor:
    """theta itself, or that of p^t with the greatest t <= 1 for which the entropy is at least `floor`. float64 [K].

    The entropy falls with t at the rate t Var(log p), from log K at t = 0, so there is one such t. The greatest
    sigmoid is kept: Eq 7 leaves their common factor free, and Eq 6 vanishes where it is 1.

    Args:
        theta_K: float64 parameters.
        floor: in nats, below log K.
    """
    if _entropy(theta_K) >= floor:
        return theta_K
    greatest = theta_K.sigmoid().max()
    relative_K = (theta_K.sigmoid() / greatest).clamp_min(_TINY)

    def at(power: float) -> Tensor:
        return torch.logit(relative_K**power * greatest.clamp_max(1 - 1e-12))

    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _entropy(at(middle)) >= floor else (low, middle)
    return at(low)


class ReinforceTrust(Reinforce):
    """Eq 6 with options against following noise; with none of them, `Reinforce` to the last bit.

    Args:
        policy: to learn.
        kl: of the anchor to the start policy, in units of the score per nat; 0: none.
        clip: PPO's epsilon; None: no clipping.
        epochs: Adam steps on the draws of an outer step.
        entropy_floor: as a share of the entropy of the uniform policy, in [0, 1).
        learn_from, learn_until: as shares of the run; the policy learns after the outer steps between them.
        average: decay per step of the average of theta, in [0, 1); 0: the last theta is kept.
        settings: common to all estimators.

    Raises:
        ValueError: for values out of range.
    """

    plans_ahead = True  # shares of the run

    def __init__(
        self,
        policy: Policy,
        *,
        kl: float = 0.0,
        clip: float | None = None,
        epochs: int = 1,
        entropy_floor: float = 0.0,
        learn_from: float = 0.0,
        learn_until: float = 1.0,
        average: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(policy, **settings)
        if kl < 0 or (clip is not None and clip <= 0):
            raise ValueError(
                f"kl must not be negative, and clip must be positive or null, got {kl=}, {clip=}"
            )
        if not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"epochs must be a whole number from 1, got {epochs}")
        if not 0 <= entropy_floor < 1 or not 0 <= average < 1:
            raise ValueError(
                f"entropy_floor and average must lie in [0, 1), got {entropy_floor=}, {average=}"
            )
        self._first = math.ceil(learn_from * self.outer_steps)
        self._last = math.ceil(learn_until * self.outer_steps) - 1
        if not 0 <= learn_from < learn_until <= 1 or self._first > self._last:
            raise ValueError(
                "learn_from and learn_until are shares of the run, 0 <= learn_from < learn_until <= 1, with an outer "
                f"step between them, got {learn_from=}, {learn_until=} of {self.outer_steps} outer steps"
            )
        self._kl, self._clip, self._epochs = kl, math.inf if clip is None else clip, epochs
        self._floor = entropy_floor * policy.space.max_entropy
        self._start_K = policy.probabilities
        self._average = average
        self._average_K = policy.theta.clone()

    def step(self, finished: FinishedStep) -> dict[str, Any]:
        """`epochs` Adam steps, if the policy learns now."""
        theta_K, advantage_N = self.policy.theta, advantage_of(finished.reward_N)
        learns = self._first <= finished.outer_step <= self._last
        told = {"advantage": advantage_N.tolist(), "theta_learning_rate": self.lr if learns else 0.0}
        if not (learns and self.lr):
            return told
        counts_NK, sampled_K = finished.recorded["counts"], probabilities_of(theta_K)
        for _ in range(self._epochs):
            weighted_NK = clipped_counts(
                probabilities_of(theta_K), sampled_K, counts_NK, advantage_N, self._clip
            )
            theta_K.grad = outer_gradient(theta_K, weighted_NK, advantage_N)
            if self._kl:
                theta_K.grad -= self._kl * kl_gradient(theta_K, self._start_K)
            self._adam.step()
            theta_K.copy_(flattened(theta_K, self._floor))
        if self._average:
            self._average_K.lerp_(theta_K, 1 - self._average)
            if finished.outer_step == self._last:
                theta_K.copy_(flattened(self._average_K, self._floor))
        return told | {"divergence_of_step": _divergence(probabilities_of(theta_K), sampled_K)}

    def state(self) -> dict[str, Tensor]:
        """theta, its average, and Adam's state."""
        return super().state() | {"average": self._average_K}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        super().load_state({key: value for key, value in state.items() if key != "average"})
        self._average_K.copy_(state["average"])


class ReinforceSignificant(ReinforceTrust):
    """`ReinforceTrust` in which only trajectories that are worse than the winner beyond chance adopt its state.

    The others keep their own weights, so that luck is not copied. A trajectory is worse if a paired test says so: z =
    sum d / sqrt(sum d^2) with d the differences from the winner, image by image, which for right and wrong answers is
    McNemar's (1947). The winner is the best of N, so all N (N - 1) ordered pairs share the level (Bonferroni): of N
    equal networks any is copied with at most this probability. Eq 6 stays the gradient of the mean reward, since where
    a trajectory starts does not depend on its draws.

    Args:
        policy: to learn.
        level: of the test, in (0, 0.5).
        settings: of `ReinforceTrust`.

    Raises:
        ValueError: for values out of range.
    """

    records: ClassVar[frozenset[str]] = frozenset({"counts", "heldout_outcomes"})
    trajectories_vary = False  # they keep weights of their own

    def __init__(self, policy: Policy, *, level: float = 0.05, **settings: Any) -> None:
        super().__init__(policy, **settings)
        if not 0 < level < 0.5:
            raise ValueError(f"level must lie in (0, 0.5), got {level}")
        ordered_pairs = self.trajectories * (self.trajectories - 1)
        self._threshold = NormalDist().inv_cdf(1 - level / max(ordered_pairs, 1))

    def parents(self, finished: FinishedStep) -> list[int]:
        """The winner for those that are worse beyond chance, or diverged; themselves for the others."""
        winner = finished.winner
        outcome_Nn = image_rewards(finished)
        z_N = paired_z(outcome_Nn[winner] - outcome_Nn)
        return [
            winner if z_N[n] > self._threshold or not finished.finite_N[n] else n
            for n in range(self.trajectories)
        ]


def paired_z(difference_Nn: Tensor) -> Tensor:
    """sum d / sqrt(sum d^2) of each row: standard normal if signs are random, 0 without differences. float64 [N]."""
    return difference_Nn.sum(1) / difference_Nn.square().sum(1).sqrt().clamp_min(1e-300)


def image_rewards(finished: FinishedStep) -> Tensor:
    """The number kept per held-out image whose mean is the reward; negated if lower is better. float64 [N, n].

    Raises:
        UserError: if the reward is not such a mean, as mAP is not.
    """
    outcome_NnM = finished.recorded["heldout_outcomes"]
    finite_N = finished.finite_N
    for sign in (1, -1):
        for column in range(outcome_NnM.shape[2]):
            outcome_Nn = sign * outcome_NnM[:, :, column]
            if torch.allclose(
                outcome_Nn[finite_N].mean(1), finished.reward_N[finite_N], rtol=1e-9, atol=1e-12
            ):
                return outcome_Nn
    raise UserError(
        "outer.estimator=reinforce-significant compares held-out images one by one, but the objective's reward is not "
        "the mean of a number that it keeps per image: use reinforce-trust"
    )


def _entropy(theta_K: Tensor) -> float:
    return float(torch.special.entr(probabilities_of(theta_K)).sum())


def _divergence(probability_K: Tensor, from_K: Tensor) -> float:
    return float(probability_K @ _ratio(probability_K, from_K).log())


def _ratio(probability_K: Tensor, from_K: Tensor) -> Tensor:
    """Their ratio, positive and finite also where they vanish; exactly 1 where they are equal."""
    return probability_K.clamp_min(_TINY) / from_K.clamp_min(_TINY)
