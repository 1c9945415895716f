"""The interface of estimators: from finished outer steps to steps on the policy, and who continues from whom.

Shapes: K operations (1296 in the paper), N trajectories, I inner steps, B images of a mini-batch, n held-out images,
M numbers kept per image (`Objective.outcomes`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ohl_accel.policy.evidence import Evidence
from ohl_accel.policy.policy import Policy
from ohl_accel.policy.protocol import AugmentationPolicy

RECORDS = {
    "counts": "int64 [N, K]: how often each trajectory sampled each operation",
    "operations": "int64 [N, I, B]: the operation of every training image",
    "heldout_loss": "float64 [N]: the loss on the held-out images",
    "heldout_losses": "float64 [N, n]: the loss on every held-out image",
    "training_loss": "float64 [N]: the loss on as many training images, without augmentation",
    "training_losses": "float64 [N, n]: the loss on every one of these",
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

    @property
    def winner(self) -> int:
        """The trajectory with the best reward among the finite ones."""
        return winner_of(self.reward_N, self.finite_N)


def finite_rewards(reward_N: Tensor, finite_N: Tensor) -> Tensor:
    """Rewards in which a trajectory that diverged gets the lowest of the others'. float64 [N].

    A reward of 0 would dwarf the differences between the other trajectories, and stay in Adam's second
    moment for a thousand steps.

    Args:
        reward_N: float64.
        finite_N: bool, at least one True.
    """
    return torch.where(finite_N, reward_N, reward_N[finite_N].min())


def winner_of(reward_N: Tensor, finite_N: Tensor) -> int:
    """The trajectory with the best reward among the finite ones; the first one in case of a tie."""
    return int(((reward_N == reward_N[finite_N].max()) & finite_N).nonzero()[0])


class Estimator(ABC):
    """Learns a policy. Derive from it and name the class in the recipe: `outer.estimator: my_module.py:MyEstimator`.

    It runs on every process and must do the same on each: use only random numbers keyed by `ohl_accel.rng`.

    Args:
        policy: updated in place.
        lr: eta_theta; 0 leaves the policy unchanged.
        betas: of Adam.
        trajectories: N, or those of them that take part.
        outer_steps: T_max, of the whole run.
        seed: of the run.
    """

    records: ClassVar[frozenset[str]] = frozenset({"counts"})
    """The keys of `RECORDS` that it may need."""
    trajectories_needed: ClassVar[int] = 1
    """The fewest trajectories from which it can learn."""
    plans_ahead: ClassVar[bool] = True
    """Whether what it does in an outer step may depend on how many are to follow (`outer_steps`). If not, a finished
    search can be made longer."""

    trajectories_vary: ClassVar[bool] = False
    """Whether another number of trajectories may take part in the next outer step (`run.on_loss=shrink`): `state` does
    not depend on it, and all trajectories continue with the winner's state."""

    def __init__(
        self,
        policy: Policy,
        *,
        lr: float,
        betas: tuple[float, float],
        trajectories: int,
        outer_steps: int,
        seed: int,
    ) -> None:
        self.policy = policy
        self.lr, self.betas, self.seed = lr, betas, seed
        self.trajectories, self.outer_steps = trajectories, outer_steps

    @abstractmethod
    def step(self, finished: FinishedStep) -> dict[str, Any]:
        """One step on the policy; returns plain numbers for the line of `metrics.jsonl`."""

    def policy_of(self, trajectory: int) -> AugmentationPolicy:
        """The policy of a trajectory in the next outer step: the learned one itself, unless the estimator explores.

        Over the space of the learned policy; or `NoPolicy`, for an outer step without operations.
        """
        return self.policy

    def records_of(self, outer_step: int) -> frozenset[str]:
        """The keys of `RECORDS` that it needs of a scored outer step; in general all of `records`."""
        return self.records

    def is_scored(self, outer_step: int) -> bool:
        """Whether the trajectories are scored after an outer step (from 0); in Algorithm 1, always.

        After one that is not scored, `step` is not called, and every trajectory keeps its weights. The last outer step
        is scored in any case.
        """
        return True

    def parents(self, finished: FinishedStep) -> list[int]:
        """Whose state each trajectory continues with, called after `step`; in Algorithm 1, the winner's for all.

        A trajectory that is a parent must be finite, and keep its own state. After the last outer step all adopt the
        winner's in any case.

        Returns:
            N trajectories in 0..N-1.
        """
        return [finished.winner] * self.trajectories

    def evidence(self) -> Evidence | None:
        """What is known about the policy so far: whether it can be told from noise, and how much rewards teach.

        Called after `step`, and when a run is resumed, on every process. None, as here, if that is not measured.
        """
        return None

    def state(self) -> dict[str, Tensor]:
        """Everything to save in a checkpoint, including theta."""
        return {"theta": self.policy.theta}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `state`."""
        self.policy.theta.copy_(state["theta"])
