"""The paper's estimator: REINFORCE on the held-out accuracies (Eq 3 and 6).

Shapes: K operations (1296 in the paper), N trajectories.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ohl_accel.policy.estimators.estimator import Estimator, FinishedStep
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


class Reinforce(Estimator):
    """The paper's estimator: Adam ascent on theta (Eq 3, section 4.1: lr 0.05, betas 0.5 and 0.999) along Eq 6."""

    def __init__(self, policy: Policy, **settings: Any) -> None:
        super().__init__(policy, **settings)
        self._adam = torch.optim.Adam([policy.theta], lr=self.lr, betas=self.betas, maximize=True)

    def step(self, finished: FinishedStep) -> dict[str, Any]:
        """theta + eta_theta * Adam(Eq 6)."""
        advantage_N = advantage_of(finished.reward_N)
        self.policy.theta.grad = outer_gradient(self.policy.theta, finished.recorded["counts"], advantage_N)
        self._adam.step()
        return {"advantage": advantage_N.tolist(), "theta_learning_rate": self.lr}

    def state(self) -> dict[str, Tensor]:
        """theta and Adam's state, as float64 tensors (scalars for the step count)."""
        moments = self._adam.state.get(self.policy.theta, {})
        return {**super().state(), **{key: moments[key] for key in sorted(moments)}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        super().load_state(state)
        moments = {key: value.clone() for key, value in state.items() if key != "theta"}
        if moments:
            self._adam.state[self.policy.theta] = moments
