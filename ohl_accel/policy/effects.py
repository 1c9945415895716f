"""What the scores of several policies say about the elements: Bayesian linear regression on the elements' theta.

In a round every trajectory n has a policy of its own, with a theta X_ne for each of the E elements, and gets a score
y_n. To first order the score is linear in theta,

    y_n = c + sum_e a_e X_ne + noise,    a ~ N(0, signal P),    noise ~ N(0, 1),

with a constant c for each round. P says which elements act alike: those of a family of transforms, those of a
transform, and along its magnitudes. How much each of these counts, and how noisy scores are, is unknown: every
combination on a grid is weighted by its marginal likelihood (the common scale of signal and noise is integrated out),
so that families matter only as far as the scores support it (Rasmussen and Williams, 2006, chapters 2.3 and 5.2).

Shapes: E elements, m contrasts of scores, N trajectories of a round, G combinations of variances, S sets of changes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from ohl_accel.operations.space import Space
from ohl_accel.policy.structure import magnitude_ranks, same_family, same_transform

FAMILY_SHARES = (0.0, 0.3, 0.6, 0.9)
"""Shares of an effect's variance that elements of a family have in common."""
MAGNITUDE_SHARE = 0.1
"""Share of an effect's variance that is linear in the magnitude."""
OTHER_DIRECTIONS = 0.35
"""Scale of the directions of a design that are not its factors, relative to their prior deviation: what an element does
by itself cannot be told from the factors by few scores, so it is kept small."""
NOISE_SHARES = {0.03: 0.2, 0.1: 0.3, 0.3: 0.3, 0.7: 0.1, 1.0: 0.1}
"""Share of noise in the variance of scores -> prior probability; 1: elements make no difference."""


@dataclass(frozen=True)
class Posterior:
    """What scores say about the effects, for every combination of variances."""

    family_share_G: Tensor
    noise_share_G: Tensor
    probability_G: Tensor
    """Of each combination, after seeing the scores; sums to 1."""
    mean_GE: Tensor
    """Posterior means of the effects, in units of their prior deviation."""
    covariance_GEE: Tensor
    """Posterior covariances, in the same units."""
    slope_GEm: Tensor
    """By how much the means follow each contrast of the scores, their scale and the combination given."""

    @property
    def effect_E(self) -> Tensor:
        """Posterior means of the effects, over all combinations."""
        return self.probability_G @ self.mean_GE

    @property
    def family_share(self) -> float:
        """Posterior mean."""
        return float(self.probability_G @ self.family_share_G)

    @property
    def noise_share(self) -> float:
        """Posterior mean."""
        return float(self.probability_G @ self.noise_share_G)

    def effects_of(self, changes: Sequence[Tensor]) -> Tensor:
        """What changes of the scores do to `effect_E`, all else equal.

        Args:
            changes: of each round's scores, float64 [N, S] for S sets of changes.

        Returns:
            float64 [S, E].
        """
        slope_Em = torch.einsum("g,gem->em", self.probability_G, self.slope_GEm)
        return (slope_Em @ torch.cat([contrasts(change_NS) for change_NS in changes])).T

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A draw from the posterior (Thompson, 1933), and its mirror image about the combination's mean."""
        chosen = int(torch.multinomial(self.probability_G, 1, generator=generator))
        covariance_EE = self.covariance_GEE[chosen]
        normal_E = torch.randn(len(covariance_EE), generator=generator, dtype=torch.float64)
        deviation_E = root_of(covariance_EE) @ normal_E
        mean_E = self.mean_GE[chosen]
        return mean_E + deviation_E, mean_E - deviation_E


@lru_cache(maxsize=64)
def similarity(space: Space, family_share: float) -> Tensor:
    """P: the prior covariance of the effects relative to the mean effect, mean variance 1. float64 [E, E]."""
    rank_E = magnitude_ranks(space)
    transform_EE = same_transform(space)
    covariance_EE = (
        family_share * same_family(space)
        + (1 - family_share - MAGNITUDE_SHARE) * transform_EE
        + MAGNITUDE_SHARE * transform_EE * torch.outer(rank_E, rank_E) / rank_E.square().mean().clamp_min(0.1)
    )
    centred_EE = _centred(_centred(covariance_EE).T)
    return centred_EE / centred_EE.diagonal().mean().clamp_min(1e-12)


def root_of(covariance_EE: Tensor) -> Tensor:
    """The symmetric square root of a covariance, which does not depend on the signs of eigenvectors. float64 [E, E]."""
    value_E, vector_EE = torch.linalg.eigh(covariance_EE)
    root_EE: Tensor = (vector_EE * value_E.clamp_min(0).sqrt()) @ vector_EE.T
    return root_EE


def leading_directions(space: Space) -> tuple[Tensor, Tensor]:
    """In which directions effects vary most: their deviations, float64 [E], and unit vectors, the columns of [E, E].

    The eigenvectors of P for a middling family share, greatest eigenvalue first.
    """
    # many eigenvalues are equal: weights that differ a little, and a rule for the sign, make the vectors unique
    weight_E = torch.linspace(1, 1.01, space.num_elements, dtype=torch.float64)
    middling = sum(FAMILY_SHARES) / len(FAMILY_SHARES)
    value_E, vector_EE = torch.linalg.eigh(similarity(space, middling) * torch.outer(weight_E, weight_E))
    vector_EE = vector_EE.flip(1)
    greatest_E = vector_EE.gather(0, vector_EE.abs().argmax(0, keepdim=True))
    return value_E.flip(0).clamp_min(0).sqrt(), vector_EE * greatest_E.sign()


def factorial_design(space: Space, pairs: int, generator: torch.Generator) -> Tensor:
    """Theta of the elements for mirrored pairs of policies, along the directions in which elements act alike.

    Along the first directions, the leading eigenvectors of P, signs are a two-level factorial design: with 2 pairs all
    four combinations of two directions occur, with 4 pairs all eight of three. Along the others, signs are random and
    distances small.

    Args:
        space: of the policies.
        pairs: at least 1.
        generator: of the random signs.

    Returns:
        float64 [2 pairs, E], each of zero mean and deviation 1; row 2 i + 1 is the negative of row 2 i.
    """
    scale_E, vector_EE = leading_directions(space)
    leading = pairs.bit_length()
    combinations = [(1, *signs) for signs in product((1, -1), repeat=leading - 1)]
    order = torch.randperm(len(combinations), generator=generator).tolist()
    rows = []
    for pair in range(pairs):
        sign_E = OTHER_DIRECTIONS * (
            2.0 * torch.randint(2, (len(scale_E),), generator=generator).double() - 1
        )
        first = combinations[order[pair % len(order)]][: len(scale_E)]
        sign_E[: len(first)] = torch.tensor(first, dtype=torch.float64)
        direction_E = vector_EE @ (scale_E * sign_E)
        direction_E = direction_E / direction_E.std(correction=0)
        rows += [direction_E, -direction_E]
    return torch.stack(rows)


def contrasts(values_mX: Tensor) -> Tensor:
    """The m - 1 orthonormal contrasts (Helmert's) of the rows of a round: free of the round's constant."""
    m = len(values_mX)
    rows = torch.zeros(m - 1, m, dtype=torch.float64)
    for k in range(1, m):
        rows[k - 1, :k], rows[k - 1, k] = 1.0, -float(k)
        rows[k - 1] /= (k * (k + 1)) ** 0.5
    return rows @ (values_mX - values_mX[:1])  # exactly 0 where all are equal


def posterior(space: Space, designs: Sequence[Tensor], scores: Sequence[Tensor]) -> Posterior:
    """What the scores of all rounds say about the elements.

    Args:
        space: of the policies.
        designs: theta of the elements in each round, float64 [N, E], N at least 2 and not the same in every round.
        scores: of each round, float64 [N].
    """
    design_mE = torch.cat([contrasts(theta_NE) for theta_NE in designs])
    score_m = torch.cat([contrasts(score_N[:, None])[:, 0] for score_N in scores])
    m = len(score_m)
    slopes, covariances, logs = [], [], []
    grid = list(product(FAMILY_SHARES, NOISE_SHARES.items()))
    for family_share, (noise_share, prior) in grid:
        prior_EE = similarity(space, family_share)
        cross_Em = prior_EE @ design_mE.T
        signal_mm = design_mE @ cross_Em
        unit = (1 - noise_share) / (signal_mm.diagonal().sum() / max(m, 1)).clamp_min(
            1e-12
        )  # variance of an effect
        variance_mm = unit * signal_mm + noise_share * torch.eye(m, dtype=torch.float64)
        factor_mm = torch.linalg.cholesky(variance_mm)
        # the scale of signal and noise together, integrated out with a prior uniform in its logarithm
        square = (score_m @ torch.cholesky_solve(score_m[:, None], factor_mm)).sum().clamp_min(1e-300)
        logs.append(math.log(prior) - factor_mm.diagonal().log().sum() - 0.5 * m * square.log())
        solved_mE = torch.cholesky_solve(cross_Em.T, factor_mm)
        slopes.append(unit.sqrt() * solved_mE.T / (square / max(m, 1)).sqrt())
        covariances.append(prior_EE - unit * cross_Em @ solved_mE)
    slope_GEm = torch.stack(slopes)
    return Posterior(
        family_share_G=torch.tensor([family for family, _ in grid], dtype=torch.float64),
        noise_share_G=torch.tensor([noise for _, (noise, _) in grid], dtype=torch.float64),
        probability_G=torch.stack(logs).softmax(0),
        mean_GE=slope_GEm @ score_m,
        covariance_GEE=torch.stack(covariances),
        slope_GEm=slope_GEm,
    )


def _centred(values_EX: Tensor) -> Tensor:
    return values_EX - values_EX.mean(0, keepdim=True)
