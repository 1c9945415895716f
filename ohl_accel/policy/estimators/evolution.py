"""Evolution strategies: every trajectory explores with a policy of its own, and the rewards say which way to go.

Eq 6 explores by the operations that happen to be sampled, so its trajectories hardly differ. Here each trajectory n
draws from a policy with log-weights (c + spread z_n) V: c are the coordinates learned, the rows of V few directions in
which elements act alike (families, transforms, magnitudes), and z_n signs of its own. With the scores F_n,

    1 / (N spread) sum_n F_n z_n

estimates the gradient of the expected score with respect to c (Salimans et al., 2017, "Evolution strategies as a
scalable alternative to reinforcement learning", Eq 1; in the space of parameters instead of actions: Sehnke et al.,
2010, "Parameter-exploring policy gradients"). Random signs have the covariance of the Gaussian noise there, and all
perturbations are equally long (Spall, 1992, "Multivariate stochastic approximation using a simultaneous perturbation
gradient approximation"). On scores that are linear in the log-weights the estimate has no bias.

A generation of policies is held for several outer steps before it is scored, and all trajectories keep their weights
meanwhile, since what a policy is worth does not show at once. Then all adopt the best one's.

Shapes: N trajectories, M of them perturbed, D directions, E elements, K operations.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ohl_accel.operations.space import Space
from ohl_accel.policy.estimators.estimator import Estimator, FinishedStep, finite_rewards, winner_of
from ohl_accel.policy.policy import Policy
from ohl_accel.policy.structure import features, product_of_elements, theta_of
from ohl_accel.rng import keyed_generator

STRUCTURE = {"families": 0.6, "transforms": 0.3, "magnitudes": 0.1}
"""Kind of features -> share of a perturbation's variance."""


def directions(space: Space, structure: Mapping[str, float]) -> Tensor:
    """V: changes of log-weights, float64 [D, E]; rows have mean 0 and are no multiples of each other.

    The sum of all rows with random signs has a variance of 1, averaged over the elements, of which each kind of
    features has its share (in proportion; a kind that a space lacks has none).

    Args:
        space: of the policies.
        structure: kind of features (`policy.structure.KINDS_OF_FEATURES`) -> positive share.

    Raises:
        ValueError: for an unknown kind, a share that is not positive, or a space without differences between elements.
    """
    kept: list[Tensor] = []
    if not isinstance(structure, Mapping):
        raise ValueError(
            f"structure must be kinds of features with their shares, as in {STRUCTURE}, got {structure}"
        )
    for kind, share in structure.items():
        if not share > 0:
            raise ValueError(f"structure: the share of {kind} must be positive, got {share}")
        own: list[Tensor] = []
        for row_E in features(space, [kind]):
            centred_E = row_E - row_E.mean()
            if float(centred_E.norm()) > 1e-9 and not any(_parallel(centred_E, each) for each in kept + own):
                own.append(centred_E)
        if own:
            own_DE = torch.stack(own)
            kept += list(own_DE * (share / own_DE.square().sum(0).mean()).sqrt())
    if not kept:
        raise ValueError(
            f"structure={dict(structure)}: the elements of space {space.name} have no such differences"
        )
    kept_DE = torch.stack(kept)
    return kept_DE / kept_DE.square().sum(0).mean().sqrt()


def draw_signs(trajectories: int, directions: int, mirrored: bool, generator: torch.Generator) -> Tensor:
    """z: float64 [N, D] of 1 and -1; mirrored, row 2 i + 1 is the negative of row 2 i, and an odd last row is 0."""
    rows = trajectories // 2 if mirrored else trajectories
    sign_ND = 2.0 * torch.randint(2, (rows, directions), generator=generator).double() - 1
    if not mirrored:
        return sign_ND
    pairs_ND = torch.stack([sign_ND, -sign_ND], 1).flatten(0, 1)
    return torch.cat([pairs_ND, torch.zeros(trajectories % 2, directions, dtype=torch.float64)])


def centred_ranks(score_N: Tensor) -> Tensor:
    """Ranks of the scores from -0.5 (worst) to 0.5; equal scores share the mean of their ranks. float64 [N]."""
    wins_NN = (score_N[:, None] > score_N).double() - (score_N[:, None] < score_N).double()
    return wins_NN.sum(1) / (2 * (len(score_N) - 1))


def evolution_gradient(score_N: Tensor, sign_ND: Tensor, spread: float, mirrored: bool) -> Tensor:
    """The estimate of the gradient of the expected score with respect to the coordinates. float64 [D].

    From the score of each trajectory the mean of the others is subtracted, a baseline that does not depend on its own
    signs (Kool, van Hoof and Welling, 2019, "Buy 4 REINFORCE samples, get a baseline for free!"). Its mirror image
    depends on them, and is left out with it; so in mirrored pairs every baseline cancels, and what remains are the
    differences of the pairs ("symmetric sampling", Sehnke et al., 2010).

    Args:
        score_N: float64, higher is better.
        sign_ND: of `draw_signs`.
        spread: length of the perturbations.
        mirrored: whether the signs were drawn in mirrored pairs.
    """
    perturbed_M = sign_ND.any(1)
    score_M, sign_MD = score_N[perturbed_M], sign_ND[perturbed_M]
    number = len(score_M)
    if not mirrored:
        score_M = (score_M - score_M.mean()) * number / (number - 1)
    return score_M @ sign_MD / (number * spread)


class Evolution(Estimator):
    """Adam ascent on the coordinates of few directions, by the scores of perturbed policies.

    Args:
        policy: what coordinates of 0 stand for.
        hold: outer steps of a generation; None: a third of the run. Early scores can have the wrong sign, and then
            short generations learn the opposite of what pays.
        spread: length of the perturbations: the standard deviation of the log-weights of the elements.
        share: of the outer steps that belong to whole generations, in (0, 1]; in the others all have the policy
            learned, and the best is copied after each, as in Algorithm 1.
        structure: kind of features -> share of the variance, see `directions`.
        mirrored: draw perturbations in pairs z and -z, an odd trajectory without one; otherwise independently.
        ranks: centred ranks instead of scores (Salimans et al., 2017): outliers count no more than others. The gradient
            is that of the expected rank, so its length says nothing about the differences of the scores.
        score: `reward`, or `loss` for the negative loss on the held-out images, which has less noise than accuracy.
        settings: common to all estimators; with `lr` = 0 all trajectories keep the policy, nothing is learned. `lr` is
            in coordinates: one of 1 is a perturbation of spread 1 along a direction.

    Raises:
        ValueError: for values out of range, N < 2, or a run shorter than a generation.
    """

    records: ClassVar[frozenset[str]] = frozenset({"heldout_loss"})

    def __init__(
        self,
        policy: Policy,
        *,
        hold: int | None = None,
        spread: float = 0.7,
        share: float = 0.75,
        structure: Mapping[str, float] = STRUCTURE,
        mirrored: bool = True,
        ranks: bool = True,
        score: str = "reward",
        **settings: Any,
    ) -> None:
        super().__init__(policy, **settings)
        if self.trajectories < 2:
            raise ValueError("evolution compares trajectories: outer.trajectories must be at least 2")
        if hold is None:
            hold = max(self.outer_steps // 3, 1)
        if not isinstance(hold, int) or hold < 1 or spread <= 0 or not 0 < share <= 1:
            raise ValueError(
                "hold must be a whole number from 1 or null, spread positive and share in (0, 1], got "
                f"{hold=}, {spread=}, {share=}"
            )
        if score not in ("reward", "loss"):
            raise ValueError(f"score must be reward or loss, got {score}")
        self.generations = int(share * self.outer_steps) // hold
        if self.generations < 1:
            raise ValueError(
                f"{share=} of {self.outer_steps} outer steps is less than a generation of {hold=}: lower hold, or "
                "raise share"
            )
        self.hold, self._spread, self._mirrored = hold, spread, mirrored
        self._ranks, self._by_loss = ranks, score == "loss"
        self._start_K = policy.probabilities
        self._direction_DE = directions(policy.space, structure)
        self._coordinate_D = torch.zeros(len(self._direction_DE), dtype=torch.float64)
        self._adam = torch.optim.Adam([self._coordinate_D], lr=self.lr, betas=self.betas, maximize=True)
        self._done = 0
        self._policies = self._begin_generation()

    def is_scored(self, outer_step: int) -> bool:
        """At the end of a generation, and after every outer step once all have the learned policy."""
        return self._is_after(outer_step) or (outer_step + 1) % self.hold == 0

    def policy_of(self, trajectory: int) -> Policy:
        """Its own in a generation; then the learned one."""
        return self._policies[trajectory] if self._policies else self.policy

    def step(self, finished: FinishedStep) -> dict[str, Any]:
        """At the end of a generation: a step on the policy, and the policies of the next."""
        if self._is_after(finished.outer_step):
            return {"phase": "using the policy learned"}
        score_N = self._scores(finished)
        told_N = centred_ranks(score_N) if self._ranks else score_N
        gradient_D = evolution_gradient(told_N, self._signs(), self._spread, self._mirrored)
        self._coordinate_D.grad = gradient_D
        self._adam.step()
        self._done += 1
        if self.lr:
            self.policy.theta.copy_(self._theta_of(self._coordinate_D))
        self._policies = self._begin_generation()
        return {
            "phase": f"generation {self._done} of {self.generations}",
            "score": score_N.tolist(),
            "gradient": gradient_D.tolist(),
            "coordinates": self._coordinate_D.tolist(),
        }

    def parents(self, finished: FinishedStep) -> list[int]:
        """The trajectory with the best score, for all."""
        return [winner_of(self._scores(finished), finished.finite_N)] * self.trajectories

    def state(self) -> dict[str, Tensor]:
        """theta, the coordinates, how many generations are done, and Adam's state."""
        return {
            **super().state(),
            "coordinates": self._coordinate_D,
            "generations_done": torch.tensor(self._done),
            **{f"adam.{key}": value for key, value in self._adam.state.get(self._coordinate_D, {}).items()},
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave; the policies of a generation follow from it."""
        super().load_state(state)
        self._coordinate_D.copy_(state["coordinates"])
        self._done = int(state["generations_done"])
        moments = {
            key.removeprefix("adam."): value.clone()
            for key, value in state.items()
            if key.startswith("adam.")
        }
        if moments:
            self._adam.state[self._coordinate_D] = moments
        self._policies = self._begin_generation()

    def _is_after(self, outer_step: int) -> bool:
        return outer_step >= self.generations * self.hold

    def _scores(self, finished: FinishedStep) -> Tensor:
        if not self._by_loss:
            return finished.reward_N
        return finite_rewards(-finished.recorded["heldout_loss"], finished.finite_N)

    def _signs(self) -> Tensor:
        generator = keyed_generator(self.seed, "evolution", self._done)
        return draw_signs(self.trajectories, len(self._coordinate_D), self._mirrored, generator)

    def _begin_generation(self) -> list[Policy]:
        """The policies of the trajectories; none after the last generation."""
        if self._done == self.generations:
            return []
        length = self._spread if self.lr else 0.0
        rows_ND = self._coordinate_D + length * self._signs()
        return [Policy(self._theta_of(row_D), space=self.policy.space) for row_D in rows_ND]

    def _theta_of(self, coordinate_D: Tensor) -> Tensor:
        log_weight_E = coordinate_D @ self._direction_DE
        return theta_of(self._start_K * product_of_elements(log_weight_E, self.policy.space))


def _parallel(first_E: Tensor, second_E: Tensor) -> bool:
    return bool((first_E @ second_E).abs() > (1 - 1e-9) * first_E.norm() * second_E.norm())
