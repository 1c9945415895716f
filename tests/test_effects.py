"""Policies with few degrees of freedom, and the regression of scores on their elements."""

import itertools
from typing import Any

import pytest
import torch

from ohl_accel.operations.space import BUILT_IN, PAPER
from ohl_accel.policy import Policy, effects
from ohl_accel.policy.policy import probabilities_of
from ohl_accel.policy.structure import magnitude_ranks, product_of_elements, same_family, theta_of

GEOMETRY = torch.tensor([element.transform.family == "geometry" for element in PAPER.elements])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_theta_of_is_the_inverse_of_eq_7() -> None:
    probability_K = torch.rand(1296, generator=generator(), dtype=torch.float64)
    expected = probability_K / probability_K.sum()
    torch.testing.assert_close(probabilities_of(theta_of(probability_K)), expected, rtol=1e-12, atol=0)
    assert probabilities_of(theta_of(torch.tensor([1.0, 0.0], dtype=torch.float64)))[1] < 1e-11


@pytest.mark.parametrize("space", BUILT_IN.values(), ids=lambda space: space.name)
def test_elements_are_drawn_by_their_weights(space: Any) -> None:
    log_weight_E = torch.randn(space.num_elements, generator=generator(), dtype=torch.float64)
    policy = Policy(theta_of(product_of_elements(log_weight_E, space)), space=space)
    expected = log_weight_E.softmax(0).expand(space.arity, -1)
    torch.testing.assert_close(policy.element_probabilities, expected, rtol=1e-10, atol=1e-12)


def test_what_acts_alike() -> None:
    assert same_family(PAPER).sum() == 15**2 + 12**2 + 9**2
    assert magnitude_ranks(PAPER)[[0, 1, 2, 3, 33, 34, 35]].tolist() == [-1, 0, 1, -1, 0, 0, 0]
    similarity_EE = effects.similarity(PAPER, 0.6)
    torch.testing.assert_close(similarity_EE, similarity_EE.T)
    torch.testing.assert_close(similarity_EE.sum(0), torch.zeros(36, dtype=torch.float64))
    assert float(similarity_EE.diagonal().mean()) == pytest.approx(1)
    assert torch.linalg.eigvalsh(similarity_EE).min() > -1e-12
    same_transform, same_family_only, other = similarity_EE[0, 1], similarity_EE[0, 3], similarity_EE[0, 15]
    assert same_transform > same_family_only > 0 > other


@pytest.mark.parametrize("pairs", [1, 2, 4, 6])
def test_the_first_round_is_a_factorial_design(pairs: int) -> None:
    rows = effects.factorial_design(PAPER, pairs, generator())
    assert torch.equal(rows[0::2], -rows[1::2])
    torch.testing.assert_close(rows.std(1, correction=0), torch.ones(2 * pairs, dtype=torch.float64))
    _, vector_EE = effects.leading_directions(PAPER)
    leading = pairs.bit_length()
    signs = (rows @ vector_EE[:, :leading]).sign().tolist()
    wanted = set(itertools.product((1.0, -1.0), repeat=leading))
    assert set(map(tuple, signs)) <= wanted
    assert len(set(map(tuple, signs))) == min(2 * pairs, len(wanted))


def test_contrasts_are_orthonormal_and_free_of_the_constant() -> None:
    rows = effects.contrasts(torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(rows @ rows.T, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(
        effects.contrasts(torch.ones(5, 1, dtype=torch.float64)), torch.zeros(4, 1).double()
    )


def test_the_posterior_equals_bayesian_regression_in_weight_space() -> None:
    log_weight_NE = effects.factorial_design(PAPER, 3, generator())
    score_N = torch.randn(6, generator=generator(1), dtype=torch.float64)
    known = effects.posterior(PAPER, [log_weight_NE], [score_N])
    assert float(known.probability_G.sum()) == pytest.approx(1)
    (one,) = ((known.family_share_G == 0.6) & (known.noise_share_G == 0.3)).nonzero().flatten().tolist()
    design_mE, score_m = effects.contrasts(log_weight_NE), effects.contrasts(score_N)
    prior_EE = effects.similarity(PAPER, 0.6) + 1e-9 * torch.eye(36, dtype=torch.float64)
    unit = 0.7 / float((design_mE @ prior_EE @ design_mE.T).diagonal().mean())
    precision_EE = torch.linalg.inv(unit * prior_EE) + design_mE.T @ design_mE / 0.3
    mean_E = torch.linalg.solve(precision_EE, design_mE.T @ score_m / 0.3)
    covariance_mm = unit * design_mE @ prior_EE @ design_mE.T + 0.3 * torch.eye(5, dtype=torch.float64)
    scale = float(score_m @ torch.linalg.solve(covariance_mm, score_m) / 5) ** 0.5
    torch.testing.assert_close(known.mean_GE[one], mean_E / (scale * unit**0.5), rtol=1e-4, atol=1e-4)
    expected_EE = torch.linalg.inv(precision_EE) / unit
    torch.testing.assert_close(known.covariance_GEE[one], expected_EE, rtol=1e-3, atol=1e-3)


def test_combinations_are_weighted_by_their_marginal_likelihood() -> None:
    """Against the integral over the scale, by quadrature, for one round of scores."""
    log_weight_NE = effects.factorial_design(PAPER, 2, generator())
    score_N = torch.tensor([0.05, -0.06, 0.03, -0.02], dtype=torch.float64)
    known = effects.posterior(PAPER, [log_weight_NE], [score_N])
    design_mE, score_m = effects.contrasts(log_weight_NE), effects.contrasts(score_N)
    weights = []
    log_scale = torch.linspace(-8, 3, 4001, dtype=torch.float64)
    for family_share, noise_share in zip(known.family_share_G, known.noise_share_G, strict=True):
        signal_mm = design_mE @ effects.similarity(PAPER, float(family_share)) @ design_mE.T
        unit = (1 - noise_share) / signal_mm.diagonal().mean()
        variance_mm = unit * signal_mm + noise_share * torch.eye(3, dtype=torch.float64)
        square = score_m @ torch.linalg.solve(variance_mm, score_m)
        density = (-3 * log_scale - 0.5 * square / (2 * log_scale).exp()).exp() / variance_mm.det().sqrt()
        prior = effects.NOISE_SHARES[round(float(noise_share), 2)]
        weights.append(prior * torch.trapezoid(density, log_scale))
    expected_G = torch.stack(weights) / torch.stack(weights).sum()
    torch.testing.assert_close(known.probability_G, expected_G, rtol=1e-5, atol=1e-8)


def test_neither_the_level_nor_the_unit_of_scores_matters() -> None:
    design_NE = effects.factorial_design(PAPER, 2, generator())
    score_N = torch.tensor([0.05, -0.06, 0.03, -0.02], dtype=torch.float64)
    one_E, other_E = (
        effects.posterior(PAPER, [design_NE], [each_N]).effect_E for each_N in (score_N, 50 + 100 * score_N)
    )
    torch.testing.assert_close(one_E, other_E)
    assert one_E[GEOMETRY].max() < 0 < one_E[~GEOMETRY].mean()


def test_what_changes_of_the_scores_do_to_the_effects() -> None:
    """With the scale and the weights of the combinations held, effects are linear in the scores."""
    design_NE = effects.factorial_design(PAPER, 2, generator())
    score_N = torch.tensor([0.05, -0.06, 0.03, -0.02], dtype=torch.float64)
    known = effects.posterior(PAPER, [design_NE], [score_N])
    changes_NS = torch.stack([score_N, 3 * score_N, torch.ones_like(score_N)], 1)
    expected_SE = known.effect_E * torch.tensor([[1.0], [3.0], [0.0]], dtype=torch.float64)
    torch.testing.assert_close(known.effects_of([changes_NS]), expected_SE)


def test_equal_scores_say_nothing() -> None:
    design_NE = effects.factorial_design(PAPER, 2, generator())
    known = effects.posterior(PAPER, [design_NE], [torch.full((4,), 0.7, dtype=torch.float64)])
    assert not known.effect_E.any()
    assert bool(torch.stack(known.draw(generator())).isfinite().all())


def test_without_a_comparison_nothing_is_known() -> None:
    design_NE = effects.factorial_design(PAPER, 1, generator())
    known = effects.posterior(PAPER, [design_NE[:1]], [torch.tensor([0.3], dtype=torch.float64)])
    assert not known.effect_E.any()
    torch.testing.assert_close(
        known.covariance_GEE[0], effects.similarity(PAPER, float(known.family_share_G[0]))
    )


def test_a_draw_and_its_mirror_image_have_the_posterior_mean() -> None:
    design_NE = effects.factorial_design(PAPER, 2, generator())
    known = effects.posterior(PAPER, [design_NE], [torch.tensor([1.0, -1, 0.5, -0.5]).double()])
    draws = generator(3)
    pairs = [known.draw(draws) for _ in range(400)]
    mean_E = torch.stack([(one + other) / 2 for one, other in pairs]).mean(0)
    deviation_E = torch.stack([(one - other) / 2 for one, other in pairs]).std(0)
    assert (mean_E - known.effect_E).abs().max() < 0.15
    variance_E = torch.einsum("g,gee->e", known.probability_G, known.covariance_GEE)
    torch.testing.assert_close(deviation_E, variance_E.sqrt(), rtol=0.15, atol=0.02)
