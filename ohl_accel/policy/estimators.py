"""How the policy learns: from a finished outer step to a step on theta.

Shapes: K operations (1296 in the paper), N trajectories.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ohl_accel.policy.policy import Policy, probabilities_of


def advantage_of(reward_N: Tensor) -> Tensor:
    """The baseline trick of Eq 6: rewards shifted to zero mean over the trajectories. float64 [N]."""
    return reward_N - reward_N.mean()


def outer_gradient(theta_K: Tensor, counts_NK: Tensor, advantage_N: Tensor) -> Tensor:
    """Eq 6: the REINFORCE gradient of the expected validation accuracy with respect to theta.

    Eq 6 sums `grad log p(O_j,n) * advantage_n` over every image j of every trajectory n. All images
    with the same operation give the same term, so the counts are enough. With s = sigmoid(theta),
    `log p_k = log s_k - log sum_i s_i`, and `d s / d theta = s (1 - s)`, hence

        grad_i = 1/N sum_n advantage_n [ counts_ni (1 - s_i) - (sum_k counts_nk) p_i (1 - s_i) ]

    Args:
        theta_K: float64 parameters.
        counts_NK: how often each trajectory drew each operation since the last update.
        advantage_N: zero-mean rewards, as accuracy in 0..1.

    Returns:
        float64 [K], the direction of ascent.
    """
    counts_NK = counts_NK.double()
    surplus_NK = counts_NK - counts_NK.sum(1, keepdim=True) * probabilities_of(theta_K)
    return (advantage_N @ surplus_NK) / len(advantage_N) * (1 - theta_K.sigmoid())


class OuterOptimizer:
    """Adam ascent on theta (Eq 3, section 4.1: lr 0.05, betas 0.5 and 0.999).

    Args:
        policy: its `theta` is updated in place.
        lr: eta_theta; 0 keeps the policy as it is.
        betas: Adam's.
    """

    def __init__(self, policy: Policy, lr: float, betas: tuple[float, float]) -> None:
        self.policy = policy
        self._adam = torch.optim.Adam([policy.theta], lr=lr, betas=betas, maximize=True)

    def step(self, counts_NK: Tensor, advantage_N: Tensor) -> None:
        """One update from the counts and advantages of all trajectories."""
        self.policy.theta.grad = outer_gradient(self.policy.theta, counts_NK, advantage_N)
        self._adam.step()

    def state(self) -> dict[str, Tensor]:
        """theta and Adam's state, as float64 tensors (scalars for the step count)."""
        moments = self._adam.state.get(self.policy.theta, {})
        return {"theta": self.policy.theta, **{key: moments[key] for key in sorted(moments)}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.policy.theta.copy_(state["theta"])
        moments = {key: value.clone() for key, value in state.items() if key != "theta"}
        if moments:
            self._adam.state[self.policy.theta] = moments
