"""What the scores of several policies say about the elements: Bayesian linear regression on log-weights.

In a round every trajectory n has a policy of its own, with log-weights X_n for the E elements, and gets a score y_n. To
first order the score is linear in the log-weights,

    y_n = c + sum_e a_e X_ne + noise,    a ~ N(0, signal P),    noise ~ N(0, 1),

with a constant c for each round. P says which elements act alike: those of a family of transforms, those of a
transform, and along its magnitudes. How much each of these counts, and how noisy scores are, is unknown: every
combination on a grid is weighted by its marginal likelihood (the common scale of signal and noise is integrated out),
so that families matter only as far as the scores support it (Rasmussen and Williams, 2006, chapters 2.3 and 5.2).

Shapes: E elements, m scores, N trajectories of a round, G hypotheses.
"""

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
NOISE_SHARES = {0.03: 0.2, 0.1: 0.3, 0.3: 0.3, 0.7: 0.1, 1.0: 0.1}
"""Share of noise in the variance of scores -> prior probability; 1: elements make no difference."""


@dataclass(frozen=True)
class Hypothesis:
    """One combination of unknown variances."""

    family_share: float
    noise_share: float
    probability: float
    """After seeing the scores."""
    mean_E: Tensor
    """Posterior mean of the effects, in units of their prior deviation."""
    covariance_EE: Tensor
    """Posterior covariance of the effects, in the same units."""


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
    return centred_EE / centred_EE.diagonal().mean()


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
    """Log-weights of mirrored pairs of policies that differ along the directions in which elements act alike.

    Along the first directions, the leading eigenvectors of P, signs are a two-level factorial design: with 2 pairs all
    four combinations of two directions occur, with 4 pairs all eight of three. Along the others, signs are random.

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
        sign_E = 2.0 * torch.randint(2, (len(scale_E),), generator=generator).double() - 1
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
    return rows @ values_mX


def hypotheses(space: Space, rounds: Sequence[tuple[Tensor, Tensor]]) -> list[Hypothesis]:
    """What the scores of all rounds say, for every combination of variances.

    Args:
        space: of the policies.
        rounds: log-weights float64 [N, E] and scores float64 [N] of each round, N at least 2.

    Returns:
        Hypotheses whose probabilities sum to 1.
    """
    design_mE = torch.cat([contrasts(log_weight_NE) for log_weight_NE, _ in rounds])
    score_m = torch.cat([contrasts(score_N) for _, score_N in rounds])
    m = len(score_m)
    found: list[tuple[float, float, Tensor, Tensor]] = []
    logs = []
    for family_share, (noise_share, prior) in product(FAMILY_SHARES, NOISE_SHARES.items()):
        prior_EE = similarity(space, family_share)
        signal_mm = design_mE @ prior_EE @ design_mE.T
        unit = (1 - noise_share) / signal_mm.diagonal().mean().clamp_min(1e-12)  # variance of an effect
        variance_mm = unit * signal_mm + noise_share * torch.eye(m, dtype=torch.float64)
        factor_mm = torch.linalg.cholesky(variance_mm)
        solved_m = torch.cholesky_solve(score_m[:, None], factor_mm)[:, 0]
        squares = float(score_m @ solved_m)
        logs.append(
            float(torch.log(torch.tensor(prior / len(FAMILY_SHARES))))
            - float(factor_mm.diagonal().log().sum())
            - 0.5 * m * float(torch.log(torch.tensor(max(squares, 1e-300))))
        )
        cross_Em = prior_EE @ design_mE.T
        scale = (max(squares, 1e-300) / m) ** 0.5  # of signal and noise together
        mean_E = unit**0.5 * (cross_Em @ solved_m) / scale
        covariance_EE = prior_EE - unit * cross_Em @ torch.cholesky_solve(cross_Em.T, factor_mm)
        found.append((family_share, noise_share, mean_E, covariance_EE))
    probabilities = torch.tensor(logs, dtype=torch.float64).softmax(0).tolist()
    return [
        Hypothesis(family, noise, probability, mean_E, covariance_EE)
        for probability, (family, noise, mean_E, covariance_EE) in zip(probabilities, found, strict=True)
    ]


def expected_effects(known: Sequence[Hypothesis]) -> Tensor:
    """Posterior mean of the effects, in units of their prior deviation. float64 [E]."""
    return torch.stack([each.probability * each.mean_E for each in known]).sum(0)


def draw_effects(known: Sequence[Hypothesis], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A draw from the posterior (Thompson, 1933), and its mirror image about the mean of its hypothesis."""
    probability_G = torch.tensor([each.probability for each in known], dtype=torch.float64)
    chosen = known[int(torch.multinomial(probability_G, 1, generator=generator))]
    value_E, vector_EE = torch.linalg.eigh(chosen.covariance_EE)
    normal_E = torch.randn(len(value_E), generator=generator, dtype=torch.float64)
    deviation_E = vector_EE @ (value_E.clamp_min(0).sqrt() * normal_E)
    return chosen.mean_E + deviation_E, chosen.mean_E - deviation_E


def _centred(values_EX: Tensor) -> Tensor:
    return values_EX - values_EX.mean(0, keepdim=True)
