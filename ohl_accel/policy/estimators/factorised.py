"""Eq 6 for policies with few degrees of freedom: log-weights of the elements at each place, or of what they share.

The paper's policy has a parameter for each of the K = E^2 operations, most of which are sampled less than once in an
outer step. Here operation k, with the elements k_1, ..., k_A, has the log-probability

    log p_k = log p_k(start) + sum_a x_a(k_a) - log Z,    x_a = w_a @ features

so that A E numbers (or fewer) are learned from the same draws, and all operations with an element teach about it.
REINFORCE (Williams, 1992) with the baseline of Eq 6; by the chain rule its gradient needs only the counts of elements
at each place:

    d/dx_a(e) = 1/N sum_n advantage_n [ counts_n(a, e) - (number of images) p(a, e) ],    p(a, e): marginals of p.

Shapes: K operations, N trajectories, E elements, A elements of an operation (its places), D features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ohl_accel.operations.space import Space
from ohl_accel.policy.estimators.estimator import Estimator, FinishedStep
from ohl_accel.policy.estimators.reinforce import advantage_of
from ohl_accel.policy.policy import Policy
from ohl_accel.policy.structure import features, product_of_places, theta_of


def factorised_gradient(
    probability_K: Tensor, counts_NK: Tensor, advantage_N: Tensor, space: Space
) -> Tensor:
    """Eq 6 with respect to the log-weights of the elements at each place: float64 [A, E], the ascent direction.

    Args:
        probability_K: float64, of the policy that was sampled.
        counts_NK: how often each trajectory sampled each operation since the last update.
        advantage_N: zero-mean rewards, as accuracy in 0..1.
        space: of the policy.
    """
    counts_NK = counts_NK.double()
    surplus_NK = counts_NK - counts_NK.sum(1, keepdim=True) * probability_K
    return space.marginals(advantage_N @ surplus_NK) / len(advantage_N)


class Factorised(Estimator):
    """Adam ascent along Eq 6 on the log-weights of what elements share.

    Args:
        policy: what log-weights of 0 stand for.
        structure: kinds of features (`policy.structure.KINDS_OF_FEATURES`) that have a weight: `elements`; or
            `transforms` and `magnitudes`; or any others, whose weights add up.
        places: whether the first, second, ... element of an operation have weights of their own; otherwise common ones.
        settings: common to all estimators. `lr` is in log-weights.

    Raises:
        ValueError: for unknown kinds, or none.
    """

    trajectories_vary = True

    def __init__(
        self,
        policy: Policy,
        *,
        structure: Sequence[str] = ("elements",),
        places: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(policy, **settings)
        if isinstance(structure, str):
            raise ValueError(f"structure must be a list of kinds of features, as in [{structure}]")
        self._start_K = policy.probabilities
        self._feature_DE = features(policy.space, structure)
        if not len(self._feature_DE):
            raise ValueError(f"structure={list(structure)} has no features in space {policy.space.name}")
        rows = policy.space.arity if places else 1
        self._weight_AD = torch.zeros(rows, len(self._feature_DE), dtype=torch.float64)
        self._adam = torch.optim.Adam([self._weight_AD], lr=self.lr, betas=self.betas, maximize=True)

    def step(self, finished: FinishedStep) -> dict[str, Any]:
        """w + eta_theta * Adam(Eq 6)."""
        space, advantage_N = self.policy.space, advantage_of(finished.reward_N)
        gradient_AE = factorised_gradient(
            self.policy.probabilities, finished.recorded["counts"], advantage_N, space
        )
        if len(self._weight_AD) == 1:
            gradient_AE = gradient_AE.sum(0, keepdim=True)
        self._weight_AD.grad = gradient_AE @ self._feature_DE.T
        self._adam.step()
        if self.lr:
            log_weight_AE = (self._weight_AD @ self._feature_DE).expand(space.arity, -1)
            self.policy.theta.copy_(theta_of(self._start_K * product_of_places(log_weight_AE, space)))
        return {"advantage": advantage_N.tolist(), "log_weights": self._weight_AD.tolist()}

    def state(self) -> dict[str, Tensor]:
        """theta, the weights, and Adam's state."""
        moments = self._adam.state.get(self._weight_AD, {})
        return {
            **super().state(),
            "weights": self._weight_AD,
            **{f"adam.{key}": value for key, value in moments.items()},
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        super().load_state(state)
        self._weight_AD.copy_(state["weights"])
        moments = {
            key.removeprefix("adam."): value.clone()
            for key, value in state.items()
            if key.startswith("adam.")
        }
        if moments:
            self._adam.state[self._weight_AD] = moments
