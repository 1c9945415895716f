"""How the policy learns: an estimator turns a finished outer step into a step on the policy.

`Reinforce` is the paper's (Eq 3 and 6); `outer.estimator` chooses another one, built-in or the user's own.

Shapes: K operations (1296 in the paper), N trajectories, I inner steps, B images of a mini-batch, n held-out images,
M numbers kept per image (`Objective.outcomes`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ohl_accel.errors import UserError
from ohl_accel.extensions import find_class
from ohl_accel.policy.policy import Policy, probabilities_of
from ohl_accel.policy.protocol import AugmentationPolicy

RECORDS = {
    "counts": "int64 [N, K]: how often each trajectory sampled each operation",
    "operations": "int64 [N, I, B]: the operation of every training image",
    "heldout_outcomes": "float64 [N, n, M]: `Objective.outcomes` of every held-out image",
}
"""What an estimator can request to be recorded during an outer step, and what it then gets."""


@dataclass(frozen=True, kw_only=True)
class FinishedStep:
    """The results of an outer step, the same on every process."""

    outer_step: int
    """Index of the outer step, from 0."""
    reward_N: Tensor
    """float64: the scores on the held-out images; higher is better, all finite."""
    finite_N: Tensor
    """bool: False for trajectories that diverged; their reward is the lowest of the others'."""
    recorded: Mapping[str, Tensor] = field(default_factory=dict)
    """The tensors requested in `Estimator.records`."""


class Estimator(ABC):
    """Learns a policy. Derive from it and name the class in the recipe: `outer.estimator: my_module.py:MyEstimator`.

    It runs on every process and must do the same on each: use only random numbers keyed by `ohl_accel.rng`.

    Args:
        policy: updated in place.
        lr: eta_theta; 0 leaves the policy unchanged.
        betas: of Adam.
        trajectories: N.
        seed: of the run.
    """

    records: ClassVar[frozenset[str]] = frozenset({"counts"})
    """The keys of `RECORDS` that it needs."""

    def __init__(
        self, policy: Policy, *, lr: float, betas: tuple[float, float], trajectories: int, seed: int
    ) -> None:
        self.policy = policy
        self.lr, self.betas, self.trajectories, self.seed = lr, betas, trajectories, seed

    @abstractmethod
    def step(self, finished: FinishedStep) -> dict[str, Any]:
        """One step on the policy; returns plain numbers for the line of `metrics.jsonl`."""

    def policy_of(self, trajectory: int) -> AugmentationPolicy:
        """The policy of a trajectory in the next outer step: the learned one itself, unless the estimator explores."""
        return self.policy

    def state(self) -> dict[str, Tensor]:
        """Everything to save in a checkpoint, including theta."""
        return {"theta": self.policy.theta}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `state`."""
        self.policy.theta.copy_(state["theta"])


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


ESTIMATORS: dict[str, type[Estimator]] = {"reinforce": Reinforce}
"""The built-in estimators by name."""


def open_estimator(name: str, policy: Policy, options: Mapping[str, Any], **settings: Any) -> Estimator:
    """The estimator that a recipe names.

    Args:
        name: a key of `ESTIMATORS`, `package.module:Name` or `path/to/file.py:Name`.
        policy: to learn.
        options: `outer.estimator_args`, additional arguments of its constructor.
        settings: common to all estimators: `lr`, `betas`, `trajectories`, `seed`.

    Raises:
        UserError: if there is none, the options are invalid, or it requests what cannot be recorded.
    """
    kind = find_class("outer.estimator", name, ESTIMATORS, Estimator)  # type: ignore[type-abstract]
    unknown = sorted(kind.records - RECORDS.keys())
    if unknown:
        raise UserError(
            f"outer.estimator={name}: {', '.join(unknown)} cannot be recorded; known: {', '.join(RECORDS)}"
        )
    try:
        return kind(policy, **settings, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"outer.estimator={name}, outer.estimator_args={dict(options)}: {error}") from error
