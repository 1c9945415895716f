"""Screening: a policy of its own for each trajectory through long rounds, and regression on the scores between them.

What a policy is worth shows only after many epochs, and held-out scores before that can have the wrong sign: a policy
that makes training harder looks worse at first. Hence

- every trajectory keeps its policy and its weights through a long round (a factor screening experiment: Box, Hunter and
  Hunter, 2005, chapter 5), with policies that differ along few directions, in mirrored pairs;
- a policy draws the elements of an operation independently, each in proportion to sigmoid(theta_e): Eq 7 for elements.
  What harms can become as rare as can be, but what helps is at most doubled, so that no policy becomes narrow: narrow
  ones are worse than uniform even if each of their elements is good;
- its score is its held-out loss *extrapolated along the learning curve* to the point where the training images are
  learned: h - k t, with its loss t on training images without augmentation, and k the slope of held-out against
  training loss that all trajectories showed in the second half of the round. A trajectory that has learned less of the
  training images has more to gain. Losses are means over several times in that half, which have less noise;
- nothing is learned unless the scores of all rounds differ by more than noise explains (a chi-square test). How large
  the noise is, is estimated from the losses of single images, as in an experiment whose blocks are the held-out images
  (Box, Hunter and Hunter, 2005, chapter 4): by how much trajectories differ on an image otherwise than on average.
  Networks trained alike differ by 1.5 times as much as images explain (docs/outer_loop.md);
- `ohl_accel.policy.effects` estimates from the scores of all rounds what each element contributes, and what is noise;
- in the next round the first trajectory has the policy learned so far, the others draws from what is still possible
  (Thompson sampling, Thompson, 1933);
- the best trajectory is copied to all at the end of a round; after the last round all have the policy learned, and the
  best is copied after each outer step, as in Algorithm 1;
- towards the end of the run every second trajectory trains without operations for a few outer steps. If these have the
  better rewards, all finish without them (He et al., 2019, "Data augmentation revisited"), otherwise with them.

Shapes: E elements, K operations, N trajectories, R rounds.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ohl_accel.policy import effects
from ohl_accel.policy.estimators.estimator import Estimator, FinishedStep, winner_of
from ohl_accel.policy.evidence import LEVEL, START, UNIFORM, Evidence
from ohl_accel.policy.policy import Policy
from ohl_accel.policy.protocol import AugmentationPolicy, NoPolicy
from ohl_accel.policy.structure import product_of_elements, theta_of
from ohl_accel.rng import keyed_generator

_NULL_SETS = 199
_TIMES = 4
"""Times in the second half of a round at which losses are measured, and averaged."""
_MORE_THAN_IMAGES = 1.5
"""How many times as much scores of networks trained alike differ as single images explain."""
_IMAGE_LOSSES = ("heldout_losses", "training_losses")
_MOST_ELEMENTS = 1000
"""The regression works on all pairs of elements."""
_ADVICE = (
    "more trajectories (outer.trajectories) or more rounds (outer.estimator_args.rounds)",
    "longer rounds (outer.steps, outer.estimator_args.share)",
    "less noise in the scores (outer.average), and more held-out images (data.heldout)",
)


class Screening(Estimator):
    """Learns a theta for each element in long rounds.

    Args:
        policy: what a theta of 0 for every element stands for; replaced by the learned one.
        rounds: of the search, at least 1.
        share: of the outer steps that belong to rounds, in (0, 1]; in the others the policy learned is only used.
        spread: standard deviation of the elements' theta in the first round.
        gain: theta of an element whose effect is one prior standard deviation.
        bound: greatest absolute theta of an element.
        level: the policy is learned only if scores differ so much by noise alone with at most this probability, in
            (0, 1]; 1: always.
        finish: share of the outer steps, the last ones, that may be trained without operations, in [0, 1); the first
            third of them tries which is better. 0: never.
        settings: common to all estimators; with `lr` = 0 all trajectories keep the policy, nothing is learned;
            `betas` are not used.

    Raises:
        ValueError: for values out of range, N < 2, or a run that is too short for its rounds.
    """

    records: ClassVar[frozenset[str]] = frozenset(
        {"heldout_loss", "heldout_losses", "training_loss", "training_losses"}
    )
    trajectories_needed = 2

    def __init__(
        self,
        policy: Policy,
        *,
        rounds: int = 1,
        share: float = 1 / 3,
        spread: float = 4.0,
        gain: float = 8.0,
        bound: float = 4.0,
        level: float = 0.05,
        finish: float = 0.1,
        **settings: Any,
    ) -> None:
        super().__init__(policy, **settings)
        if self.trajectories < 2:
            raise ValueError("screening compares trajectories: outer.trajectories must be at least 2")
        if rounds < 1 or not 0 < share <= 1:
            raise ValueError(f"rounds must be at least 1 and share in (0, 1], got {rounds=}, {share=}")
        if not 0 <= finish < 1 or share + finish > 1 + 1e-9:
            raise ValueError(
                f"finish must be in [0, 1) and share + finish at most 1, got {share=}, {finish=}"
            )
        if min(spread, gain, bound) <= 0:
            raise ValueError(f"spread, gain and bound must be positive, got {spread=}, {gain=}, {bound=}")
        if not 0 < level <= 1:
            raise ValueError(f"level must be in (0, 1], got {level=}")
        if policy.space.num_elements > _MOST_ELEMENTS:
            raise ValueError(
                f"screening takes spaces of up to {_MOST_ELEMENTS} elements, but {policy.space.name} has "
                f"{policy.space.num_elements}"
            )
        self.round_length = int(share * self.outer_steps / rounds + 1e-9)
        if self.round_length < 2:
            raise ValueError(
                f"a round has at least 2 outer steps, so {rounds} rounds in {share:g} of the run need outer.steps="
                f"{math.ceil(2 * rounds / share)} or more, got {self.outer_steps}"
            )
        self.rounds = rounds
        half = self.round_length // 2
        self._times = {half + (self.round_length - half) * part // _TIMES for part in range(_TIMES + 1)}
        """Outer steps of a round after which losses are measured: its middle, and later ones, which are averaged."""
        self._spread, self._gain, self._bound, self._level = spread, gain, bound, level
        self._finish = self.outer_steps - int(finish * self.outer_steps + 1e-9)
        """The first outer step of the finish."""
        self._decision = self._finish + (self.outer_steps - self._finish + 2) // 3
        """The first outer step after its trial."""
        self._without = False
        """Whether all trajectories finish without operations."""
        self._start_K = policy.probabilities
        self._done = 0
        self._next = 0
        """The outer step after the last scored one."""
        self._theta_RNE = torch.zeros(
            rounds, self.trajectories, policy.space.num_elements, dtype=torch.float64
        )
        self._scores = torch.full((rounds, self.trajectories), torch.nan, dtype=torch.float64)
        self._noise_R = torch.zeros(rounds, dtype=torch.float64)
        """The standard deviation of each round's scores if policies made no difference; 0: not known."""
        self._loss_TNX = torch.zeros(0, self.trajectories, 2, dtype=torch.float64)
        self._image_losses = {name: torch.zeros(self.trajectories, 0).double() for name in _IMAGE_LOSSES}
        """Sums over the times of a round that are averaged, [N, n]; n = 0 before the first, and if it was missed."""
        self._learned_E = torch.zeros_like(self._theta_RNE[0, 0])
        self._policies = self._begin_round(None)

    def records_of(self, outer_step: int) -> frozenset[str]:
        """The losses in a round; nothing afterwards."""
        return self.records if self._in_round(outer_step) else frozenset()

    def is_scored(self, outer_step: int) -> bool:
        """From the middle of a round to its end at a few times; later after every step but those of the trial."""
        if self._in_round(outer_step):
            return outer_step % self.round_length + 1 in self._times
        return not (self._in_trial(outer_step) and self._in_trial(outer_step + 1))

    def policy_of(self, trajectory: int) -> AugmentationPolicy:
        """Its own in a round; then the learned one; in the finish possibly none."""
        if self._done < self.rounds:
            return self._policies[trajectory]
        none = self._without or (self._in_trial(self._next) and trajectory % 2 == 1)
        return NoPolicy() if none else self.policy

    def step(self, finished: FinishedStep) -> dict[str, Any]:
        """At the end of a round: what its scores say, and the policies of the next."""
        self._next = finished.outer_step + 1
        if not self._in_round(finished.outer_step):
            return self._use(finished)
        loss_NX = torch.stack([finished.recorded["heldout_loss"], finished.recorded["training_loss"]], 1)
        finite_N = finished.finite_N
        told: dict[str, Any] = {"phase": f"round {self._done + 1} of {self.rounds}"}
        told["training_image_loss"] = loss_NX[:, 1].tolist()
        if len(self._loss_TNX) == 1:  # the time before, the middle of the round, is not averaged
            self._image_losses = {name: finished.recorded[name].clone() for name in _IMAGE_LOSSES}
        elif self._image_losses["heldout_losses"].numel():
            for name, sum_Nn in self._image_losses.items():
                sum_Nn += finished.recorded[name]
        self._loss_TNX = torch.cat([self._loss_TNX, loss_NX[None]])
        if not self._at_end(finished):
            return told
        always_N = self._loss_TNX.isfinite().all(2).all(0)
        finite_N = finite_N & always_N if bool((finite_N & always_N).any()) else finite_N
        slope = learning_curve_slope(self._loss_TNX[0, finite_N].mean(0), loss_NX[finite_N].mean(0))
        heldout_N, training_N = self._loss_TNX[1:].mean(0).T
        score_N = slope * training_N - heldout_N
        heldout, training = (
            noise_of_means(self._image_losses[name][finite_N] / (len(self._loss_TNX) - 1))
            for name in _IMAGE_LOSSES
        )
        self._noise_R[self._done] = _MORE_THAN_IMAGES * math.hypot(heldout, slope * training)
        self._image_losses = {name: sum_Nn[:, :0] for name, sum_Nn in self._image_losses.items()}
        self._loss_TNX = self._loss_TNX[:0]
        self._scores[self._done] = torch.where(finite_N, score_N, torch.nan)
        self._done += 1
        known, by_noise = self._known(), self._probability_by_noise()
        differ = by_noise <= self._level
        self._learned_E = self._bounded(differ * self._gain * known.effect_E)
        if self.lr:
            self.policy.theta.copy_(self._theta_of(self._learned_E))
        if self._done < self.rounds:
            self._policies = self._begin_round(known if differ else None)
        return told | {
            "score": score_N.tolist(),
            "score_noise": float(self._noise_R[self._done - 1]),
            "probability_by_noise": by_noise,
            "learning_curve_slope": slope,
            "element_theta": self._learned_E.tolist(),
            "family_share": known.family_share,
            "noise_share": known.noise_share,
        }

    def _use(self, finished: FinishedStep) -> dict[str, Any]:
        """After the rounds: which way to finish, at the end of the trial."""
        if self._at_decision(finished):
            reward_N = finished.reward_N
            without, with_policy = float(reward_N[1::2].mean()), float(reward_N[::2].mean())
            self._finish_without(without > with_policy)
            return {
                "phase": "trial of the finish",
                "reward_without_policy": without,
                "reward_with_policy": with_policy,
            }
        return {"phase": "finishing without the policy" if self._without else "using the policy learned"}

    def parents(self, finished: FinishedStep) -> list[int]:
        """In a round each trajectory itself; at its end the one with the best score; then the winner.

        At the end of the trial the winner among those that were trained in the better way.
        """
        if not self._in_round(finished.outer_step):
            if not self._at_decision(finished):
                return super().parents(finished)
            way_N = torch.arange(self.trajectories) % 2 == int(self._without)
            candidate_N = finished.finite_N & way_N
            winner = winner_of(
                finished.reward_N, candidate_N if bool(candidate_N.any()) else finished.finite_N
            )
            return [winner] * self.trajectories
        if not self._at_end(finished):
            return [n if finished.finite_N[n] else finished.winner for n in range(self.trajectories)]
        score_N = self._scores[self._done - 1]
        return [winner_of(score_N, score_N.isfinite())] * self.trajectories

    def evidence(self) -> Evidence | None:
        """Whether what was learned can be told from what noise alone would have taught.

        The p-value is that of the chi-square test. The band is what the regression makes of scores that differ by noise
        alone, of the size that is known: at the scale, and with the weights, that it found in the real ones. None
        before the end of the first round, and where the size of the noise is not known.
        """
        compared = self._compared()
        if not compared or not self.lr or not all(noise for noise, _ in compared):
            return None
        p_value = self._probability_by_noise()
        return Evidence(
            p_value=p_value,
            outer_steps=self._done * self.round_length,
            reference=UNIFORM if bool((self._start_K == self._start_K[0]).all()) else START,
            advice=() if p_value <= LEVEL else _ADVICE,
            **self._bands(self.null_thetas()),
        )

    def null_thetas(self) -> Tensor:
        """What sets of scores that differ by noise alone would add to the learned theta. float64 [S, E]."""
        generator = keyed_generator(self.seed, "screening noise", self._done)
        noise = [
            deviation * torch.randn(len(score_N), _NULL_SETS, generator=generator, dtype=torch.float64)
            for deviation, score_N in zip(self._noise_R, self._rounds()[1], strict=False)
        ]
        return torch.stack(
            [self._bounded(self._gain * effect_E) for effect_E in self._known().effects_of(noise)]
        )

    def _bands(self, null_SE: Tensor) -> dict[str, Any]:
        """The bands of `Evidence`, from the theta that noise would have given."""
        space = self.policy.space
        probability_SK = torch.stack(
            [Policy(self._theta_of(row_E), space=space).probabilities for row_E in null_SE]
        )
        marginal_SAE = torch.stack([space.marginals(row_K) for row_K in probability_SK])
        start_AE = space.marginals(self._start_K)
        # all elements together stay within this factor of the start with probability 1 - LEVEL
        factor_S = (marginal_SAE / start_AE).log().abs().flatten(1).amax(1)
        factor = float(factor_S.quantile(1 - LEVEL).exp())
        ratio_S = (probability_SK / self._start_K).log().abs().amax(1)
        uniform_K = self._start_K * space.num_operations
        band = float(ratio_S.quantile(1 - LEVEL).exp())
        return {
            "low_AE": tuple(map(tuple, (start_AE / factor).tolist())),
            "high_AE": tuple(map(tuple, (start_AE * factor).tolist())),
            "operation_band": (float(uniform_K.min()) / band, float(uniform_K.max()) * band),
        }

    def state(self) -> dict[str, Tensor]:
        """theta, and everything about the rounds so far."""
        return {
            **super().state(),
            "rounds_done": torch.tensor(self._done),
            "element_theta": self._theta_RNE,
            "scores": self._scores,
            "losses": self._loss_TNX,
            **self._image_losses,
            "noise": self._noise_R,
            "learned": self._learned_E,
            "next": torch.tensor(self._next),
            "without": torch.tensor(self._without),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        super().load_state(state)
        self._done, self._next = int(state["rounds_done"]), int(state["next"])
        self._finish_without(bool(state["without"]))
        self._theta_RNE, self._scores = state["element_theta"].clone(), state["scores"].clone()
        self._loss_TNX, self._learned_E = state["losses"].clone(), state["learned"].clone()
        self._noise_R = state.get(
            "noise", self._noise_R
        ).clone()  # checkpoints of older versions have neither
        self._image_losses = {
            name: state.get(name, empty).clone() for name, empty in self._image_losses.items()
        }
        self._policies = self._policies_of_round()

    def _finish_without(self, without: bool) -> None:
        self._without = without
        if without:
            self.policy.provenance["used_until_outer_step"] = self._finish

    def _in_trial(self, outer_step: int) -> bool:
        return self._finish <= outer_step < self._decision and bool(self.lr)

    def _at_decision(self, finished: FinishedStep) -> bool:
        return self._in_trial(finished.outer_step) and finished.outer_step + 1 == self._decision

    def _in_round(self, outer_step: int) -> bool:
        return outer_step < self.rounds * self.round_length

    def _at_end(self, finished: FinishedStep) -> bool:
        return (finished.outer_step + 1) % self.round_length == 0

    def _rounds(self) -> tuple[list[Tensor], list[Tensor]]:
        """Theta of the elements and scores of the rounds that are done, of the trajectories that were finite."""
        designs, scores = [], []
        for theta_NE, score_N in zip(self._theta_RNE[: self._done], self._scores, strict=False):
            finite_N = score_N.isfinite()
            designs.append(theta_NE[finite_N])
            scores.append(score_N[finite_N])
        return designs, scores

    def _known(self) -> effects.Posterior:
        """What the scores of the rounds that are done say."""
        return effects.posterior(self.policy.space, *self._rounds())

    def _compared(self) -> list[tuple[float, Tensor]]:
        """Noise, 0 if it is not known, and scores of the rounds that are done and have scores to compare."""
        rounds = zip(self._noise_R.tolist(), self._rounds()[1], strict=False)
        return [(noise, score_N) for noise, score_N in rounds if len(score_N) > 1]

    def _probability_by_noise(self) -> float:
        """That the scores of all rounds differ as much, or more, if policies make no difference; 0 if not known."""
        square, freedom = 0.0, 0
        for noise, score_N in self._compared():
            if not noise:
                return 0.0
            square += float((score_N - score_N.mean()).square().sum()) / noise**2
            freedom += len(score_N) - 1
        halves = torch.tensor([freedom / 2, square / 2], dtype=torch.float64)
        return float(torch.special.gammaincc(halves[0], halves[1])) if freedom else 1.0

    def _begin_round(self, known: effects.Posterior | None) -> list[Policy]:
        """Choose the elements' theta of a round, from what is known; returns the policies."""
        generator = keyed_generator(self.seed, "screening", self._done)
        N = self.trajectories
        if known is None:
            rows = self._spread * effects.factorial_design(self.policy.space, (N + 1) // 2, generator)
        else:
            drawn = [each for _ in range(N // 2) for each in known.draw(generator)]
            rows = torch.stack([self._learned_E, *(self._bounded(self._gain * each_E) for each_E in drawn)])
        self._theta_RNE[self._done] = rows[:N] if self.lr else 0.0
        return self._policies_of_round()

    def _policies_of_round(self) -> list[Policy]:
        if self._done == self.rounds:
            return []
        space = self.policy.space
        return [Policy(self._theta_of(row_E), space=space) for row_E in self._theta_RNE[self._done]]

    def _theta_of(self, theta_E: Tensor) -> Tensor:
        return theta_of(self._start_K * product_of_elements(logsigmoid(theta_E), self.policy.space))

    def _bounded(self, theta_E: Tensor) -> Tensor:
        return (theta_E - theta_E.mean()).clamp(-self._bound, self._bound)


def noise_of_means(loss_Nn: Tensor) -> float:
    """The standard deviation of trajectories' mean losses if they differ on single images alone.

    The residual mean square of a randomized block design (Box, Hunter and Hunter, 2005, chapter 4): trajectories are
    the treatments, images the blocks.

    Args:
        loss_Nn: float64, of N trajectories on n images.

    Returns:
        0 if there are too few of either to know.
    """
    trajectories, images = loss_Nn.shape
    if trajectories < 2 or images < 2:
        return 0.0
    residual_Nn = loss_Nn - loss_Nn.mean(0) - loss_Nn.mean(1, keepdim=True) + loss_Nn.mean()
    mean_square = residual_Nn.square().sum() / ((trajectories - 1) * (images - 1))
    return float((mean_square / images).sqrt())


def learning_curve_slope(before: Tensor, after: Tensor) -> float:
    """The slope of held-out against training loss between two points of a learning curve, within 0..1.

    0 if the held-out loss no longer falls, or the training loss does not.

    Args:
        before, after: (held-out loss, loss on training images).
    """
    heldout, training = (before - after).tolist()
    return min(max(heldout / training, 0.0), 1.0) if training > 0 else 0.0
