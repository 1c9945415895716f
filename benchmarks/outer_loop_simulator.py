"""A search without a network: a reward surface, delay, history and noise, calibrated to measured runs.

Every estimator is driven through its real interface by operations that its own policies sample; only the networks are
replaced. A trajectory is its history of exposure: which share of its training images got which element.

**Surface.** With x the shares of the E elements (both positions together) and u those of the uniform policy, training
with x throughout ends V(x) = sum_e beta_e x_e - C KL(x || u) points above the uniform policy, sum_e beta_e u_e = 0. The
best x is proportional to u exp(beta / C), and V there is C log sum_e u_e exp(beta_e / C).

**Delay and history.** The exposure of outer step t of T has the weight of the learning rate, w_t = (1 + cos(pi t / T))
/ 2, and matures into the network with the time constant `delay`; what has not matured at the end is lost, so late
changes do not pay. With M_t the matured exposure (of total m_t) a network is at m_t / m_T V(M_t / m_t).

**Early scores** have the wrong sign: what will help is harder to learn at first. `-early w_t sum_e beta_e f_e` is
added, with f the exposure of the last `recent` outer steps; it vanishes with the learning rate.

That is, a network that has learned less of its training images has more to gain: the same deficit, as far as `shown`,
is in the loss on training images, on the learning curve that all networks follow.

**Noise.** `luck` is a random walk of a network's true accuracy, which its copies inherit: what best-of-N selects.
Scores have independent noise besides, that depends on the learning rate, and on whether averaged weights are scored.

Shapes: N trajectories, K operations, E elements, A elements of an operation, I inner steps, B images of a mini-batch.
Points are per cent of test accuracy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.outer_loop_shared import (
    BEST_OF_N,
    UNIFORM,
    Contestant,
    Known,
    Trial,
    elements_of,
    independent_policy,
    transforms_of,
)
from ohl_accel.errors import UserError
from ohl_accel.operations.space import PAPER, Space
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators import RECORDS, Estimator, FinishedStep, open_estimator
from ohl_accel.policy.protocol import BatchDraw, NoPolicy
from ohl_accel.rng import keyed_generator

GEOMETRY_REMOVED, ONLY_GEOMETRY = 3.7, -12.5
"""Points above uniform (52.6) of the two static policies that were measured on reduced CIFAR-10: 56.3 and 40."""
EFFECTS = {
    "HorizontalShear": -0.1, "VerticalShear": -0.3, "HorizontalTranslate": -0.5, "VerticalTranslate": -0.7,
    "Rotate": -1.2, "ColorAdjust": 1.2, "Posterize": 0.1, "Solarize": 1.3, "Contrast": 0.0, "Sharpness": -0.3,
    "Brightness": 1.2, "AutoContrast": 0.2, "Equalize": 1.2, "Invert": 0.0,
}  # fmt: skip
"""Main effects on final accuracy, in points, of 16 runs with half of the transforms each (a Hadamard design)."""
_WITHIN = 3.0
"""beta per point of a main effect's difference from its family: half of 1 / 0.16, the probability that a transform
gains from being among the half; the other half of the differences is taken for the noise of 16 runs."""
_IDENTITY = -0.8
_IMAGES = 1000
"""Held out of reduced CIFAR-10, and as many to train on."""
_FINAL_LOSS, _LOSS_OF_A_POINT = 1.35, 0.02
"""Held-out loss of the uniform policy in the end, and what a point of accuracy is worth: 0.01 to 0.03 between the
static policies that were measured."""
_FINAL_TRAINING_LOSS, _TRAINING_LOSS_NOISE, _SLOPE = 0.6, 0.01, 0.4
"""Loss on training images in the end, the standard deviation of its noise, and held-out over training loss along the
learning curve."""
_OF_IMAGES = 2 / 3
"""Part of a score's noise that is that of single images, measured between networks trained alike."""
RECORDED = RECORDS.keys() - {"heldout_outcomes"}
"""What a simulation has."""
SURFACES = ("families", "scrambled", "flat")
"""`families`: calibrated, whole families act alike; `scrambled`: the same effects, each dealt to a transform by the
seed, so that families mean nothing; `flat`: no effects, diversity alone counts and nothing can be learned."""


@dataclass(frozen=True, eq=False)
class Surface:
    """What training with a policy throughout is worth."""

    beta_E: Tensor
    """float64, points per unit of probability; its mean under the uniform policy is 0."""
    uniform_E: Tensor
    """float64, the shares of the uniform policy."""
    diversity: float
    """C: points lost per nat of KL divergence from the uniform policy's shares."""
    known: Known
    """The elements with a negative beta, which must become less probable; on a flat surface those of geometry."""

    def value(self, share_NE: Tensor) -> Tensor:
        """V, in points above the uniform policy: float64 [N] (or a scalar), from shares that sum to 1."""
        ratio = (share_NE / self.uniform_E).clamp_min(torch.finfo(torch.float64).tiny)
        return share_NE @ self.beta_E - self.diversity * (share_NE * ratio.log()).sum(-1)

    @property
    def best_E(self) -> Tensor:
        """The shares of the greatest V, in closed form: u exp(beta / C), normalized."""
        return torch.softmax(self.uniform_E.log() + self.beta_E / self.diversity, 0)

    @property
    def best(self) -> float:
        """The greatest V, in points: C log sum u exp(beta / C)."""
        return float(self.diversity * torch.logsumexp(self.uniform_E.log() + self.beta_E / self.diversity, 0))


def make_surface(kind: str, seed: int, space: Space = PAPER, threshold: float = 2.0) -> Surface:
    """A surface of `SURFACES`.

    Two measured numbers give the effects of the families and C: without geometry KL = log 36/21 and V = 3.7, with
    geometry alone KL = log 36/15 and V = -12.5; the two beta have mean 0. Within a family beta differs by
    the main effects.

    Args:
        kind: of `SURFACES`.
        seed: deals the effects of a scrambled surface.
        space: its transforms must be those of Table 1, or Identity.
        threshold: of the known answer.

    Raises:
        UserError: for another kind, or another transform.
    """
    if kind not in SURFACES:
        raise UserError(f"--surface {kind}: must be one of {', '.join(SURFACES)}")
    foreign = sorted({element.transform.name for element in space.elements} - EFFECTS.keys() - {"Identity"})
    if foreign:
        raise UserError(
            f"space {space.name} has {foreign[0]}, whose effect is not known: use one with Table 1's transforms"
        )
    geometry = transforms_of("geometry")
    counts = {name: len(elements_of({name})) for name in EFFECTS}
    of_geometry = sum(counts[name] for name in geometry) / sum(counts.values())
    removed, alone = -math.log(1 - of_geometry), -math.log(of_geometry)
    odds = (1 - of_geometry) / of_geometry
    # beta_colour = 3.7 + C removed, and beta_geometry = -odds beta_colour = -12.5 + C alone
    diversity = -(ONLY_GEOMETRY + odds * GEOMETRY_REMOVED) / (alone + odds * removed)
    colour_beta = GEOMETRY_REMOVED + diversity * removed
    beta = {"Identity": _IDENTITY}
    for members, family_beta in ((geometry, -odds * colour_beta), (EFFECTS.keys() - geometry, colour_beta)):
        mean = sum(EFFECTS[name] * counts[name] for name in members) / sum(counts[name] for name in members)
        beta |= {name: family_beta + _WITHIN * (EFFECTS[name] - mean) for name in sorted(members)}
    if kind == "scrambled":
        order = torch.randperm(len(EFFECTS), generator=keyed_generator(seed, "scrambled effects")).tolist()
        beta |= dict(zip(EFFECTS, [beta[list(EFFECTS)[index]] for index in order], strict=True))
    uniform_E = space.uniform_marginals.mean(0)
    beta_E = torch.tensor([beta[element.transform.name] for element in space.elements], dtype=torch.float64)
    beta_E = beta_E - beta_E @ uniform_E
    bad = tuple((beta_E < 0).nonzero().flatten().tolist())
    name = "geometry" if kind == "families" else "elements that harm"
    if kind == "flat":
        beta_E, bad, name = (
            torch.zeros_like(beta_E),
            tuple(elements_of(geometry, space)),
            "geometry (of no effect)",
        )
    return Surface(beta_E, uniform_E, diversity, Known(name, bad, more=False, threshold=threshold))


@dataclass(frozen=True)
class Settings:
    """The simulated run; the defaults are reduced CIFAR-10's (calibration in the results page)."""

    outer_steps: int = 240
    trajectories: int = 4
    batches: int = 8
    """I."""
    batch_size: int = 125
    """B."""
    delay: float = 24.0
    """Outer steps in which 63 % of an exposure has matured; 0: at once."""
    recent: float = 3.0
    """Outer steps that early scores look back."""
    early: float = 0.2
    """How strongly early scores have the wrong sign; 0: not at all."""
    shown: float = 1.0
    """Part of the early deficit that shows in the loss on training images; a supposition, not calibrated."""
    uniform: float = 52.6
    """Final accuracy of the uniform policy."""
    noise: tuple[float, float] = (0.7, 1.0)
    """Standard deviation of the noise of a score, in points: in the end, and how much more at the highest learning
    rate."""
    averaged_noise: tuple[float, float] = (0.5, 0.2)
    """The same for averaged weights (`outer.average` > 0)."""
    luck: float = 0.9
    """Standard deviation of the final accuracy of equal trainings that share weights and data order, in points."""
    between_seeds: float = 1.0
    """Standard deviation of what differs between seeds for all trajectories alike, in points."""

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be simulated."""
        for name in ("outer_steps", "trajectories", "batches", "batch_size", "recent"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.delay < 0:
            raise ValueError(f"delay must not be negative, got {self.delay}")

    @cached_property
    def learning_rate_T(self) -> Tensor:
        """w: the cosine from 1 to 0, float64."""
        steps_T = torch.arange(self.outer_steps, dtype=torch.float64) / self.outer_steps
        return (1 + (math.pi * steps_T).cos()) / 2

    @property
    def keep(self) -> float:
        """The part of what is pending that does not mature in an outer step."""
        return math.exp(-1 / self.delay) if self.delay > 0 else 0.0

    @cached_property
    def matured_T(self) -> Tensor:
        """m: total of the matured exposure after each outer step, float64."""
        pending, matured, totals = 0.0, 0.0, []
        for weight in self.learning_rate_T.tolist():
            pending += weight
            matured += (1 - self.keep) * pending
            pending *= self.keep
            totals.append(matured)
        return torch.tensor(totals, dtype=torch.float64)


class Networks:
    """N simulated networks in training.

    Args:
        settings: of the run.
        surface: what exposure is worth.
        seed: of the run.
        number: N.
        purpose: keys their luck; a search and a training differ.
    """

    def __init__(self, settings: Settings, surface: Surface, seed: int, number: int, purpose: str) -> None:
        self._settings, self._surface, self._seed, self._purpose = settings, surface, seed, purpose
        shape = (number, len(surface.uniform_E))
        self.pending_NE = torch.zeros(shape, dtype=torch.float64)
        self.matured_NE = torch.zeros(shape, dtype=torch.float64)
        self.recent_NE = surface.uniform_E.repeat(number, 1)
        self.luck_N = torch.zeros(number, dtype=torch.float64)
        self._done = 0
        shared = torch.randn((), generator=keyed_generator(seed, "simulated seed"), dtype=torch.float64)
        self._base = settings.uniform + settings.between_seeds * float(shared)

    def train(self, share_NE: Tensor) -> None:
        """One outer step with these shares of elements, float64, each row summing to 1."""
        settings, step = self._settings, self._done
        self.pending_NE += settings.learning_rate_T[step] * share_NE
        self.matured_NE += (1 - settings.keep) * self.pending_NE
        self.pending_NE *= settings.keep
        self.recent_NE += (share_NE - self.recent_NE) / settings.recent
        generator = keyed_generator(self._seed, f"simulated luck, {self._purpose}", step)
        walk_N = torch.randn(len(share_NE), generator=generator, dtype=torch.float64)
        self.luck_N += settings.luck / math.sqrt(settings.outer_steps) * walk_N
        self._done += 1

    def quality(self) -> Tensor:
        """The true accuracy of each, in points: float64 [N]."""
        settings, last = self._settings, self._done - 1
        matured_NE, total = self.matured_NE, settings.matured_T[last]
        value_N = total / settings.matured_T[-1] * self._surface.value(matured_NE / total)
        return self._base - self._unlearned() + value_N - self._early() + self.luck_N

    def score(self, averaged: bool) -> Tensor:
        """Held-out accuracy as it is measured, in 0..1: float64 [N]."""
        generator = keyed_generator(self._seed, "simulated scores", self._done - 1)
        noise_N = torch.randn(len(self.luck_N), generator=generator, dtype=torch.float64)
        return (self.quality() + self._score_noise(averaged) * noise_N).clamp(0, 100) / 100

    def _score_noise(self, averaged: bool) -> float:
        """Its standard deviation at this time, in points."""
        low, more = self._settings.averaged_noise if averaged else self._settings.noise
        return low + more * float(self._settings.learning_rate_T[self._done - 1])

    def _unlearned(self) -> float:
        """Points that every network still lacks at this time."""
        return 0.5 * self._base * math.exp(-6 * self._done / self._settings.outer_steps)

    def _early(self) -> Tensor:
        """Points by which early scores have the wrong sign; 0 in the end. float64 [N]."""
        rate = (
            self._settings.learning_rate_T[self._done - 1] if self._done < self._settings.outer_steps else 0.0
        )
        return self._settings.early * rate * (self.recent_NE @ self._surface.beta_E)

    def losses(self, averaged: bool) -> tuple[Tensor, Tensor]:
        """Held-out loss, with the noise of `score`, and loss on training images without augmentation: float64 [N]."""
        heldout_N = _FINAL_LOSS - _LOSS_OF_A_POINT * (100 * self.score(averaged) - self._base)
        lacking_N = self._unlearned() + self._settings.shown * self._early()
        generator = keyed_generator(self._seed, "simulated training losses", self._done - 1)
        noise_N = torch.randn(len(self.luck_N), generator=generator, dtype=torch.float64)
        training_N = _FINAL_TRAINING_LOSS + _LOSS_OF_A_POINT / _SLOPE * lacking_N
        return heldout_N, training_N + _TRAINING_LOSS_NOISE * noise_N

    def loss_noise(self, averaged: bool) -> float:
        """The standard deviation of the noise of the held-out loss at this time."""
        return _LOSS_OF_A_POINT * self._score_noise(averaged)

    def on_images(self, mean_N: Tensor, noise: float) -> Tensor:
        """Losses of single images, so different that they explain their part of this noise of the mean: [N, n]."""
        generator = keyed_generator(self._seed, "simulated images", self._done - 1)
        normal_Nn = torch.randn(len(mean_N), _IMAGES, generator=generator, dtype=torch.float64)
        losses_Nn: Tensor = mean_N[:, None] + _OF_IMAGES * noise * _IMAGES**0.5 * (
            normal_Nn - normal_Nn.mean(1, keepdim=True)
        )
        return losses_Nn

    def adopt(self, parents: Sequence[int]) -> None:
        """Every trajectory continues with the state of its parent."""
        chosen = torch.tensor(parents)
        for tensor in (self.pending_NE, self.matured_NE, self.recent_NE, self.luck_N):
            tensor.copy_(tensor[chosen])


@dataclass(frozen=True)
class Simulated:
    """A simulated search."""

    estimator: Estimator
    """As it is in the end; `estimator.policy` is what was learned."""
    factors: list[float]
    """`Known.factor` of the policy after each outer step."""
    network: float
    """True accuracy of the search's network, in 0..1."""


def simulate_search(
    one: Contestant, settings: Settings, surface: Surface, seed: int, space: Space = PAPER
) -> Simulated:
    """Algorithm 1 as `ohl_accel.engine.search` executes it, with simulated networks.

    Raises:
        UserError: for an estimator or settings that do not exist, records that a simulation does not have, or parents
            that the engine would refuse.
    """
    number, last = settings.trajectories, settings.outer_steps - 1
    outer: dict[str, Any] = {"lr": 0.05, "betas": (0.5, 0.999), **one.outer}
    averaged = bool(outer.pop("average", 0.0))
    estimator = open_estimator(
        one.estimator,
        Policy(space=space),
        one.args,
        **{**outer, "betas": tuple(outer["betas"])},
        trajectories=number,
        outer_steps=settings.outer_steps,
        seed=seed,
    )
    missing = sorted(estimator.records - RECORDED)
    if missing:
        raise UserError(f"--estimator {one.label}: needs {missing[0]}, and a simulation has no images")
    networks = Networks(settings, surface, seed, number, "search")
    factors: list[float] = []
    for step in range(settings.outer_steps):
        policies = [estimator.policy_of(trajectory) for trajectory in range(number)]
        operations = torch.stack(
            [
                sampled(
                    Policy(space=space) if isinstance(policy, NoPolicy) else policy,
                    settings,
                    seed,
                    step,
                    trajectory,
                )
                for trajectory, policy in enumerate(policies)
            ]
        )
        counts_NK = torch.stack(
            [torch.bincount(each.flatten(), minlength=space.num_operations) for each in operations]
        )
        networks.train(shares_of(counts_NK, space))
        if step == last or estimator.is_scored(step):
            heldout_loss_N, training_loss_N = networks.losses(averaged)
            recorded = {
                "counts": counts_NK,
                "operations": operations,
                "heldout_loss": heldout_loss_N,
                "heldout_losses": networks.on_images(heldout_loss_N, networks.loss_noise(averaged)),
                "training_loss": training_loss_N,
                "training_losses": networks.on_images(training_loss_N, _TRAINING_LOSS_NOISE),
            }
            finished = FinishedStep(
                outer_step=step,
                reward_N=networks.score(averaged),
                finite_N=torch.ones(number, dtype=torch.bool),
                recorded={name: recorded[name] for name in estimator.records},
            )
            estimator.step(finished)
            parents = [finished.winner] * number if step == last else list(estimator.parents(finished))
            if len(parents) != number or any(parents[each] != each for each in parents):
                raise UserError(f"--estimator {one.label}: parents {parents} after outer step {step + 1}")
            networks.adopt(parents)
        factors.append(surface.known.factor(estimator.policy.element_probabilities))
    return Simulated(estimator, factors, float(networks.quality()[0]) / 100)


def simulate_training(policy: Policy, settings: Settings, surface: Surface, seed: int) -> float:
    """True final accuracy, in 0..1, of one network trained from the beginning with a fixed policy."""
    networks = Networks(settings, surface, seed, 1, "training")
    for step in range(settings.outer_steps):
        operations = sampled(policy, settings, seed, step, 0)
        counts_K = torch.bincount(operations.flatten(), minlength=policy.space.num_operations)
        networks.train(shares_of(counts_K[None], policy.space))
    return float(networks.quality()[0]) / 100


def sampled(policy: object, settings: Settings, seed: int, step: int, trajectory: int) -> Tensor:
    """The operations of an outer step's images, sampled by the policy itself: int64 [I, B].

    Training without operations, at the end of a run, is simulated by uniform ones.

    Raises:
        UserError: for what is not a `Policy`, as the engine does.
    """
    if not isinstance(policy, Policy):
        raise UserError(f"policy_of({trajectory}) must be a Policy, got {policy!r}")
    size = settings.batches * settings.batch_size
    draw = BatchDraw(seed, step, trajectory, size, slice(0, size))
    return policy.sample(size, draw.generator("operations")).view(settings.batches, settings.batch_size)


def shares_of(counts_NK: Tensor, space: Space) -> Tensor:
    """Shares of the elements in exposure, both positions together: float64 [N, E], from counts of operations."""
    return torch.stack(
        [space.marginals(counts_K.double()).mean(0) for counts_K in counts_NK]
    ) / counts_NK.sum(1, keepdim=True)


def trials_of(
    contestants: Sequence[Contestant],
    settings: Settings,
    kind: str,
    seeds: Sequence[int],
    space: Space = PAPER,
) -> tuple[Known, dict[str, list[Trial]]]:
    """Every contestant and the references with every seed, paired by seed.

    Args:
        contestants: besides the references (frozen search, uniform policy, and the best there is as `oracle`).
        settings: of all runs.
        kind: of `SURFACES`.
        seeds: of the runs, and of a scrambled surface.
        space: of the policies.
    """
    frozen = Contestant(BEST_OF_N, "reinforce", {"lr": 0.0})
    trials: dict[str, list[Trial]] = {UNIFORM: [], "oracle": []}
    for seed in seeds:
        surface = make_surface(kind, seed, space)
        for name, share_E in ((UNIFORM, surface.uniform_E), ("oracle", surface.best_E)):
            policy = independent_policy(share_E, space)
            factor = surface.known.factor(policy.element_probabilities)
            fresh = simulate_training(policy, settings, surface, seed)
            trials[name].append(Trial(seed, factor, fresh=fresh))
        for one in (frozen, *contestants):
            run = simulate_search(one, settings, surface, seed, space)
            steps = surface.known.first_found(run.factors)
            images = settings.trajectories * settings.batches * settings.batch_size
            fresh = simulate_training(run.estimator.policy, settings, surface, seed)
            trials.setdefault(one.label, []).append(
                Trial(seed, run.factors[-1], steps, steps and steps * images, run.network, fresh)
            )
    return surface.known, trials
