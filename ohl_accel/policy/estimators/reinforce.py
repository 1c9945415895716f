"""The paper's estimator: REINFORCE on the held-out accuracies (Eq 3 and 6).

Shapes: K operations (1296 in the paper), N trajectories.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ohl_accel.policy.estimators.estimator import Estimator, FinishedStep
from ohl_accel.policy.estimators.shadows import Shadows
from ohl_accel.policy.evidence import Evidence
from ohl_accel.policy.policy import Policy, probabilities_of


def advantage_of(reward_N: Tensor) -> Tensor:
    """The baseline of Eq 6: rewards shifted to zero mean over the trajectories. float64 [N]."""
    return reward_N - reward_N.mean()


def outer_gradient(theta_K: Tensor, counts_NK: Tensor, advantage_N: Tensor) -> Tensor:
    """Eq 6: the REINFORCE gradient of the expected validation accuracy with respect to theta.

    Eq 6 sums `grad log p(O_j,n) * advantage_n` over every image j of every trajectory n. All images
    with the same operation give the same term, so the counts are sufficient. With s = sigmoid(theta),
    `log p_k = log s_k - log sum_i s_i`, and `d s / d theta = s (1 - s)`, hence

        grad_i = 1/N sum_n advantage_n [ counts_ni (1 - s_i) - (sum_k counts_nk) p_i (1 - s_i) ]

    Args:
        theta_K: float64 parameters.
        counts_NK: how often each trajectory sampled each operation since the last update.
        advantage_N: zero-mean rewards, as accuracy in 0..1.

    Returns:
        float64 [K], the ascent direction.
    """
    counts_NK = counts_NK.double()
    surplus_NK = counts_NK - counts_NK.sum(1, keepdim=True) * probabilities_of(theta_K)
    return (advantage_N @ surplus_NK) / len(advantage_N) * (1 - theta_K.sigmoid())


_SHADOWS = "shadows."


class Reinforce(Estimator):
    """The paper's estimator: Adam ascent on theta (Eq 3, section 4.1: lr 0.05, betas 0.5 and 0.999) along Eq 6.

    Beside it, and without any effect on it, shadow policies learn from permuted rewards (`Shadows`).
    """

    trajectories_needed = 2
    plans_ahead = False
    trajectories_vary = True

    def __init__(self, policy: Policy, **settings: Any) -> None:
        super().__init__(policy, **settings)
        self._adam = torch.optim.Adam([policy.theta], lr=self.lr, betas=self.betas, maximize=True)
        self._shadows: Shadows | None = None
        if self.lr > 0 and self.trajectories >= self.trajectories_needed:  # otherwise nothing is learned
            self._shadows = Shadows(policy.theta, policy.space, lr=self.lr, betas=self.betas, seed=self.seed)

    def step(self, finished: FinishedStep) -> dict[str, Any]:
        """theta + eta_theta * Adam(Eq 6)."""
        counts_NK = finished.recorded["counts"]
        if self._shadows is not None:
            self._shadows.step(finished, counts_NK, self.policy.theta)
        advantage_N = advantage_of(finished.reward_N)
        self.policy.theta.grad = outer_gradient(self.policy.theta, counts_NK, advantage_N)
        self._adam.step()
        return {"advantage": advantage_N.tolist(), "theta_learning_rate": self.lr}

    def evidence(self) -> Evidence | None:
        """Whether theta can be told from what it would be if the rewards were permuted among the trajectories.

        None before the first outer step, for lr = 0, and in a run resumed from a checkpoint without shadows.
        """
        return None if self._shadows is None else self._shadows.evidence(self.policy.theta)

    def state(self) -> dict[str, Tensor]:
        """theta, Adam's state and the shadows', as float64 tensors (scalars for the step counts)."""
        moments = self._adam.state.get(self.policy.theta, {})
        shadows = {} if self._shadows is None else self._shadows.state()
        return {
            **super().state(),
            **{key: moments[key] for key in sorted(moments)},
            **{_SHADOWS + key: value for key, value in shadows.items()},
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        super().load_state(state)
        shadows = {
            key.removeprefix(_SHADOWS): value for key, value in state.items() if key.startswith(_SHADOWS)
        }
        moments = {
            key: value.clone()
            for key, value in state.items()
            if key != "theta" and not key.startswith(_SHADOWS)
        }
        if moments:
            self._adam.state[self.policy.theta] = moments
        if not shadows:  # of an earlier version, which measured nothing
            self._shadows = None
        elif self._shadows is not None:
            self._shadows.load_state(shadows)
