"""The estimators beside the paper's, against closed forms and autograd; and a search with each, stopped and resumed.

Shapes: K operations, N trajectories, E elements, A elements of an operation, D directions or features, n images.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, final_state, rewind
from torch import Tensor

from ohl_accel.engine.search import search
from ohl_accel.errors import UserError
from ohl_accel.extensions import why_refused
from ohl_accel.operations.space import PAPER, PAPER_IDENTITY, Space
from ohl_accel.operations.table_1 import TABLE_1
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators import Estimator, FinishedStep, open_estimator, outer_gradient
from ohl_accel.policy.estimators.evolution import (
    centred_ranks,
    directions,
    draw_signs,
    evolution_gradient,
)
from ohl_accel.policy.estimators.factorised import factorised_gradient
from ohl_accel.policy.estimators.trust import clipped_counts, flattened, kl_gradient, paired_z
from ohl_accel.policy.policy import probabilities_of
from ohl_accel.policy.structure import features, product_of_elements, product_of_places, theta_of
from ohl_accel.rng import keyed_generator

DISTINCT = Space("distinct", TABLE_1[:9], combine="distinct")
FAMILY = {"families": 1.0}


def opened(name: str, trajectories: int = 4, lr: float = 0.1, outer_steps: int = 20, **options: Any) -> Any:
    """An estimator of a uniform policy over the paper's space."""
    return open_estimator(
        name, Policy(), options, lr=lr, betas=(0.5, 0.999),
        trajectories=trajectories, outer_steps=outer_steps, seed=3,
    )  # fmt: skip


def normal(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(*shape, generator=keyed_generator(0, "test", key), dtype=torch.float64)


def finished_step(estimator: Estimator, outer_step: int, images: int = 500) -> FinishedStep:
    """What an outer step gives: operations drawn by the trajectories' policies, and scores that depend on them."""
    counts, rewards = [], []
    for trajectory in range(estimator.trajectories):
        policy = estimator.policy_of(trajectory)
        assert isinstance(policy, Policy)
        operations = policy.sample(images, keyed_generator(1, "operations", outer_step, trajectory))
        counts.append(torch.bincount(operations, minlength=policy.space.num_operations))
        rewards.append((operations > 700).double().mean())
    reward_N = torch.stack(rewards)
    outcomes_NnM = (torch.rand(len(counts), images, 1, generator=keyed_generator(1, "o")) < 0.5).double()
    return FinishedStep(
        outer_step=outer_step,
        reward_N=outcomes_NnM.mean(1)[:, 0] if "heldout_outcomes" in estimator.records else reward_N,
        finite_N=torch.ones(len(counts), dtype=torch.bool),
        recorded={
            "counts": torch.stack(counts),
            "heldout_loss": -reward_N.square(),
            "heldout_outcomes": outcomes_NnM,
        },
    )


# --- structure


def test_features_are_what_elements_have_in_common() -> None:
    families, transforms = features(PAPER, ["families"]), features(PAPER, ["transforms"])
    assert families.shape == (3, 36)
    assert transforms.shape == (14, 36)
    assert torch.equal(families.sum(0), torch.ones(36, dtype=torch.float64))
    assert families.sum(1).tolist() == [15, 12, 9]
    slopes = features(PAPER, ["magnitudes"])
    assert slopes.shape == (11, 36)
    torch.testing.assert_close(slopes.sum(1), torch.zeros(11, dtype=torch.float64))
    assert torch.equal(features(PAPER, ["elements", "families"])[36:], families)
    without = Space("without", [element for element in TABLE_1 if element.magnitude is None])
    assert features(without, ["magnitudes"]).shape == (0, without.num_elements)


def test_places_can_have_weights_of_their_own() -> None:
    weight_AE = normal(2, 36)
    policy = Policy(theta_of(product_of_places(weight_AE, PAPER)))
    expected_AE = weight_AE.softmax(1)
    torch.testing.assert_close(policy.element_probabilities, expected_AE, rtol=1e-9, atol=0)
    torch.testing.assert_close(policy.probabilities, torch.outer(*expected_AE).flatten(), rtol=1e-9, atol=0)
    assert torch.equal(product_of_elements(weight_AE[0], PAPER), product_of_places(weight_AE[[0, 0]], PAPER))


# --- evolution


def test_directions_have_their_shares_of_the_variance() -> None:
    shares = {"families": 0.6, "transforms": 0.3, "magnitudes": 0.1}
    for space in (PAPER, PAPER_IDENTITY):
        rows_DE = directions(space, shares)
        assert rows_DE.mean(1).abs().max() < 1e-12
        start = 0
        for kind, share in shares.items():
            number = len(features(space, [kind])) - (kind == "transforms" and space is PAPER_IDENTITY)
            assert float(rows_DE[start : start + number].square().sum(0).mean()) == pytest.approx(share)
            start += number  # the family of Identity is its transform: not counted twice
        assert start == len(rows_DE)
    two = Space("two", [element for element in TABLE_1 if element.name.startswith(("Rotate", "Invert"))])
    assert len(directions(two, FAMILY)) == 1  # more of the one is less of the other


@pytest.mark.parametrize(
    ("trajectories", "mirrored"), [(2, True), (5, True), (8, True), (2, False), (5, False)]
)
def test_the_expected_gradient_is_the_true_one(trajectories: int, mirrored: bool) -> None:
    """On scores that are linear in the log-weights: V times the slope. Mean of 2,000 draws, by a z-test."""
    slope_E, spread = normal(36), 0.4
    true_D = directions(PAPER, FAMILY) @ slope_E
    generator = keyed_generator(0, "signs", trajectories, mirrored)
    estimates = []
    for noise_N in 0.5 * normal(2000, trajectories, key=1):
        sign_ND = draw_signs(trajectories, 3, mirrored, generator)
        score_N = 7.0 + spread * sign_ND @ true_D + noise_N
        estimates.append(evolution_gradient(score_N, sign_ND, spread, mirrored))
    estimate_mD = torch.stack(estimates)
    z_D = (estimate_mD.mean(0) - true_D) / (estimate_mD.std(0) / len(estimate_mD) ** 0.5)
    assert z_D.abs().max() < 3.5
    assert (estimate_mD.mean(0) - true_D).norm() < 0.2 * true_D.norm()  # and the test can tell it from 0


def test_the_baseline_of_mirrored_pairs_cancels() -> None:
    sign_ND = draw_signs(5, 3, True, keyed_generator(0, "signs"))
    assert torch.equal(sign_ND[0::2][:2], -sign_ND[1::2])
    assert sign_ND[4].tolist() == [0, 0, 0]
    score_N = normal(5)
    pairs = [(score_N[i] - score_N[i + 1]) * sign_ND[i] for i in (0, 2)]
    expected_D = (pairs[0] + pairs[1]) / (4 * 0.5)
    torch.testing.assert_close(evolution_gradient(score_N, sign_ND, 0.5, True), expected_D)
    torch.testing.assert_close(evolution_gradient(score_N + 100, sign_ND, 0.5, True), expected_D)


def test_ranks_know_the_order_alone() -> None:
    """Their bias: with one direction and N = 2 the gradient has the slope's sign, and the length 1 / (2 spread)."""
    assert centred_ranks(torch.tensor([3.0, 1.0, 2.0, 9.0])).tolist() == pytest.approx(
        [1 / 6, -0.5, -1 / 6, 0.5]
    )
    assert centred_ranks(torch.tensor([1.0, 1.0, 0.0])).tolist() == [0.25, 0.25, -0.5]
    assert centred_ranks(torch.zeros(3)).tolist() == [0, 0, 0]
    for slope in (1e-6, 1.0, -40.0):
        sign_ND = draw_signs(2, 1, True, keyed_generator(0, "signs", 0))
        gradient_D = evolution_gradient(centred_ranks(slope * sign_ND[:, 0]), sign_ND, 0.4, True)
        assert gradient_D.tolist() == pytest.approx([math.copysign(1 / 0.8, slope)])


def test_a_generation_is_held_and_then_its_best_is_adopted() -> None:
    estimator = opened("evolution", trajectories=5, outer_steps=8, hold=3, share=1, spread=0.5, score="loss")
    assert [estimator.is_scored(step) for step in range(8)] == [
        False,
        False,
        True,
        False,
        False,
        True,
        True,
        True,
    ]
    logs = [estimator.policy_of(n).element_probabilities[0].log() for n in range(5)]
    for pair in (0, 2):
        middle_E = (logs[pair] + logs[pair + 1]) / 2  # mirrored log-weights, up to normalization
        torch.testing.assert_close(middle_E - middle_E.mean(), torch.zeros(36, dtype=torch.float64))
        assert 0.4 < float(logs[pair].std()) < 0.6
    assert estimator.policy_of(4) == Policy(theta_of(torch.ones(1296, dtype=torch.float64)))
    finished = finished_step(estimator, 2)
    told = estimator.step(finished)
    assert told["phase"] == "generation 1 of 2"
    best = int(finished.reward_N.square().argmax())
    assert estimator.parents(finished) == [best] * 5
    assert estimator.policy.entropy < PAPER.max_entropy
    estimator.step(finished_step(estimator, 5))
    assert {estimator.policy_of(n) is estimator.policy for n in range(5)} == {True}
    assert estimator.step(finished_step(estimator, 6)) == {"phase": "using the policy learned"}


def test_evolution_learns_what_pays() -> None:
    """The reward is the probability of the first family, geometry; noise as large as what a perturbation changes."""
    estimator = opened("evolution", outer_steps=60, hold=2, share=1.0, structure=FAMILY)
    geometry_E = features(PAPER, ["families"])[0]
    for generation, noise_N in enumerate(0.1 * normal(30, 4, key=2)):
        shares = [estimator.policy_of(n).element_probabilities.mean(0) @ geometry_E for n in range(4)]
        finite_N = torch.tensor([True, True, True, generation > 0])
        score_N = torch.stack(shares) + noise_N
        estimator.step(
            FinishedStep(
                outer_step=2 * generation + 1,
                reward_N=score_N,
                finite_N=finite_N,
                recorded={"heldout_loss": -score_N},
            )
        )
    assert float(estimator.policy.element_probabilities.mean(0) @ geometry_E) > 0.6  # from 15 of 36


@pytest.mark.parametrize(
    "name", ["evolution", "reinforce-trust", "reinforce-significant", "reinforce-factorised"]
)
def test_without_a_learning_rate_nothing_changes(name: str) -> None:
    estimator = opened(name, lr=0.0, **({"hold": 1} if name == "evolution" else {}))
    for step in range(2):
        estimator.step(finished_step(estimator, step))
    for trajectory in range(4):
        torch.testing.assert_close(estimator.policy_of(trajectory).probabilities, Policy().probabilities)
    assert torch.equal(estimator.policy.theta, torch.zeros_like(estimator.policy.theta))


# --- Eq 6 on a leash


@pytest.mark.parametrize("options", [{}, {"clip": 0.1}])
def test_without_options_it_is_the_papers_to_the_last_bit(options: dict[str, Any]) -> None:
    """Also with a clip: in the first epoch the ratio is 1."""
    ours, papers = opened("reinforce-trust", **options), opened("reinforce")
    for step in range(4):
        finished = finished_step(papers, step)
        told = ours.step(finished)
        assert papers.step(finished).items() <= told.items()
        assert torch.equal(ours.policy.theta, papers.policy.theta)
        assert ours.parents(finished) == papers.parents(finished)
    assert not torch.equal(ours.policy.theta, torch.zeros(1296, dtype=torch.float64))


def test_the_clipped_gradient_is_autograds() -> None:
    theta_K, counts_NK = normal(50).requires_grad_(), (3 * normal(4, 50, key=1)).abs().floor()
    sampled_K = probabilities_of(theta_K.detach() + 0.3 * normal(50, key=2))
    advantage_N = normal(4, key=3)
    ratio_K, advantage_N1 = probabilities_of(theta_K) / sampled_K, advantage_N[:, None]
    surrogate_NK = torch.minimum(ratio_K * advantage_N1, ratio_K.clamp(0.8, 1.2) * advantage_N1)
    (expected_K,) = torch.autograd.grad((counts_NK * surrogate_NK).sum() / 4, theta_K)
    with torch.no_grad():
        weighted_NK = clipped_counts(probabilities_of(theta_K), sampled_K, counts_NK, advantage_N, 0.2)
        torch.testing.assert_close(outer_gradient(theta_K, weighted_NK, advantage_N), expected_K)
    assert ((weighted_NK == 0) & (counts_NK > 0)).any()  # some were clipped


def test_a_clip_keeps_several_epochs_close() -> None:
    steps = {}
    for clip in (None, 0.05):
        estimator = opened("reinforce-trust", epochs=30, clip=clip)
        steps[clip] = estimator.step(finished_step(estimator, 0))["divergence_of_step"]
    assert 0 < steps[0.05] < 0.2 * steps[None]


def test_the_gradient_of_the_anchor_is_autograds() -> None:
    theta_K, start_K = normal(50).requires_grad_(), normal(50, key=1).softmax(0)
    probability_K = probabilities_of(theta_K)
    divergence = (probability_K * (probability_K / start_K).log()).sum()
    (expected_K,) = torch.autograd.grad(divergence, theta_K)
    torch.testing.assert_close(kl_gradient(theta_K.detach(), start_K), expected_K)
    assert kl_gradient(torch.tensor([-900.0, 0.0], dtype=torch.float64), start_K[:2]).isfinite().all()


def test_the_anchor_holds_the_policy() -> None:
    free, held = (opened("reinforce-trust", kl=kl) for kl in (0.0, 100.0))
    for step in range(20):
        for estimator in (free, held):
            estimator.step(finished_step(estimator, step))
    uniform = PAPER.max_entropy
    assert uniform - held.policy.entropy < 0.5 * (uniform - free.policy.entropy)


def test_flattening_raises_probabilities_to_a_power() -> None:
    theta_K = 3 * normal(200)
    floor = 0.98 * math.log(200)
    flat_K = flattened(theta_K, floor)
    before_K, after_K = probabilities_of(theta_K).log(), probabilities_of(flat_K).log()
    assert float(torch.special.entr(after_K.exp()).sum()) == pytest.approx(floor, abs=1e-9)
    power_K = (after_K - after_K[0])[1:] / (before_K - before_K[0])[1:]
    torch.testing.assert_close(power_K, power_K[:1].expand(199))
    assert flat_K.sigmoid().max() == pytest.approx(theta_K.sigmoid().max())
    assert flattened(theta_K, 0.1) is theta_K
    extreme_K = torch.tensor([900.0, 0.0, -900.0], dtype=torch.float64)
    assert flattened(extreme_K, 1.0).isfinite().all()


def test_the_entropy_is_never_below_the_floor() -> None:
    estimator, floor = opened("reinforce-trust", lr=2.0, entropy_floor=0.97), 0.97 * PAPER.max_entropy
    entropies = []
    for step in range(8):
        estimator.step(finished_step(estimator, step))
        entropies.append(estimator.policy.entropy)
    assert floor <= min(entropies) < floor + 1e-9


def test_learning_can_begin_late_and_end_early_with_the_average() -> None:
    """The average of what the same estimator learns without averaging, in closed form."""
    window: dict[str, Any] = {"learn_from": 0.2, "learn_until": 0.5}
    plain, ours = (
        opened("reinforce-trust", outer_steps=10, average=average, **window) for average in (0.0, 0.75)
    )
    thetas = []
    for step in range(10):
        finished = finished_step(plain, step)
        told = plain.step(finished)
        ours.step(finished)
        assert told["theta_learning_rate"] == (0.1 if 2 <= step < 5 else 0)
        thetas.append(plain.policy.theta.clone())
        if step < 4:
            assert torch.equal(ours.policy.theta, thetas[-1])
    assert torch.equal(thetas[1], torch.zeros_like(thetas[1]))
    assert torch.equal(thetas[4], thetas[9])
    expected_K = 0.25 * (0.75**2 * thetas[2] + 0.75 * thetas[3] + thetas[4])  # from theta_0 = 0
    torch.testing.assert_close(ours.policy.theta, expected_K)


def outcomes(reward_N: Tensor, outcome_NnM: Tensor, finite: tuple[bool, ...]) -> FinishedStep:
    return FinishedStep(
        outer_step=0,
        reward_N=reward_N,
        finite_N=torch.tensor(finite),
        recorded={"heldout_outcomes": outcome_NnM},
    )


def test_only_those_that_are_worse_beyond_chance_are_replaced() -> None:
    """100 images. The second is right on 12 fewer than the first, the third on 2 fewer; the fourth diverged."""
    right_Nn = torch.ones(4, 100, dtype=torch.float64)
    right_Nn[1, :12] = right_Nn[2, :2] = 0
    right_Nn[3] = math.nan
    z_N = paired_z(right_Nn[0] - right_Nn)
    assert z_N[:3].tolist() == pytest.approx([0, 12 / math.sqrt(12), 2 / math.sqrt(2)])  # McNemar's
    filler_Nn = torch.full_like(right_Nn, 3.0)
    outcome_NnM = torch.stack([filler_Nn, right_Nn], 2)
    finite = (True, True, True, False)
    reward_N = torch.tensor([1.0, 0.88, 0.98, 0.88], dtype=torch.float64)
    estimator = opened("reinforce-significant", level=0.05)
    assert estimator.parents(outcomes(reward_N, outcome_NnM, finite)) == [0, 0, 2, 0]
    assert (
        estimator.parents(outcomes(-reward_N, outcome_NnM, finite))[1] == 1
    )  # lower is better: it is the best
    with pytest.raises(
        UserError, match="not the mean of a number that it keeps per image: use reinforce-trust"
    ):
        estimator.parents(outcomes(reward_N + 0.01, outcome_NnM, finite))


def test_equal_networks_are_seldom_replaced() -> None:
    """Any of 4 equally good ones in at most 20 % of outer steps, at that level; and the test is not idle."""
    estimator = opened("reinforce-significant", level=0.2)
    replaced = 0
    for number in range(600):
        right_Nn = (torch.rand(4, 300, generator=keyed_generator(0, "equal", number)) < 0.6).double()
        step = outcomes(right_Nn.mean(1), right_Nn[:, :, None], (True,) * 4)
        replaced += len(set(estimator.parents(step))) < 4
    assert 0.1 < replaced / 600 < 0.2


# --- Eq 6 factorised


@pytest.mark.parametrize("space", [PAPER, DISTINCT], ids=["ordered", "distinct"])
@pytest.mark.parametrize("structure", [["elements"], ["transforms", "magnitudes"], ["families", "elements"]])
@pytest.mark.parametrize("places", [True, False])
def test_the_factorised_gradient_is_autograds(space: Space, structure: list[str], places: bool) -> None:
    feature_DE = features(space, structure)
    weight_AD = (0.3 * normal(2 if places else 1, len(feature_DE))).requires_grad_()
    product_K = product_of_places((weight_AD @ feature_DE).expand(2, -1), space)
    probability_K = probabilities_of(theta_of(product_K))
    counts_NK = (3 * normal(4, space.num_operations, key=1)).abs().floor()
    advantage_N = normal(4, key=2)
    (expected_AD,) = torch.autograd.grad(advantage_N @ counts_NK @ probability_K.log() / 4, weight_AD)
    with torch.no_grad():
        gradient_AE = factorised_gradient(probability_K, counts_NK, advantage_N, space)
        gradient_AD = gradient_AE @ feature_DE.T
        torch.testing.assert_close(
            gradient_AD if places else gradient_AD.sum(0, keepdim=True), expected_AD, rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("places", [True, False])
def test_the_factorised_policy_is_a_product(places: bool) -> None:
    """After steps, each operation's probability is the product of its elements' at their places."""
    estimator = opened("reinforce-factorised", structure=["transforms", "magnitudes"], places=places)
    for step in range(5):
        estimator.step(finished_step(estimator, step))
    first_E, second_E = estimator.policy.element_probabilities
    torch.testing.assert_close(
        estimator.policy.probabilities, torch.outer(first_E, second_E).flatten(), rtol=1e-9, atol=0
    )
    assert torch.allclose(first_E, second_E) is not places
    assert estimator.policy.entropy < PAPER.max_entropy - 0.01


# --- all of them


CHOSEN: dict[str, dict[str, Any]] = {
    "evolution": {"hold": 2, "share": 0.7, "structure": FAMILY},
    "reinforce-trust": {
        "kl": 0.1, "clip": 0.2, "epochs": 2, "entropy_floor": 0.9, "learn_until": 0.75, "average": 0.5
    },
    "reinforce-significant": {"level": 0.2},
    "reinforce-factorised": {"structure": ["transforms", "magnitudes"]},
}  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
def test_the_state_is_everything(name: str) -> None:
    """Restored after each of seven outer steps, also in the middle of a generation, it goes on to the same bits."""
    whole, again = (opened(name, outer_steps=8, **CHOSEN[name]) for _ in range(2))
    for step in range(8):
        scored = [each for each in (whole, again) if each.is_scored(step)]
        for estimator in scored:
            estimator.step(finished_step(estimator, step))
        state, again = again.state(), opened(name, outer_steps=8, **CHOSEN[name])
        again.load_state({key: value.clone() for key, value in state.items()})
        assert whole.state().keys() == again.state().keys()
        for key, value in whole.state().items():
            assert torch.equal(value, again.state()[key]), key
        assert all(whole.policy_of(n) == again.policy_of(n) for n in range(4))
    assert whole.policy != Policy()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("evolution", {"trajectories": 1}, "outer.trajectories must be at least 2"),
        ("evolution", {"hold": 0}, "hold must be a whole number"),
        ("evolution", {"hold": 2.5}, "hold must be a whole number"),
        ("evolution", {"hold": 15, "share": 0.5}, "share=0.5 of 20 outer steps is less than a generation of hold=15"),
        ("evolution", {"structure": ["families"]}, "structure must be kinds of features with their shares"),
        ("evolution", {"structure": {"family": 1}}, "'family'; it must be of families, transforms, magnitudes"),
        ("evolution", {"structure": {"families": 0}}, "the share of families must be positive, got 0"),
        ("evolution", {"structure": {}}, "have no such differences"),
        ("evolution", {"score": "f1"}, "score must be reward or loss, got f1"),
        ("evolution", {"holt": 3}, "there is no option holt; did you mean hold? it has: hold, spread, share"),
        ("reinforce-trust", {"kl": -1}, "kl must not be negative"),
        ("reinforce-trust", {"clip": 0}, "clip must be positive or null"),
        ("reinforce-trust", {"epochs": 0}, "epochs must be a whole number from 1, got 0"),
        ("reinforce-trust", {"entropy_floor": 1}, "must lie in [0, 1), got entropy_floor=1"),
        ("reinforce-trust", {"average": 1.5}, "average=1.5"),
        ("reinforce-trust", {"learn_from": 0.6, "learn_until": 0.4}, "0 <= learn_from < learn_until <= 1"),
        ("reinforce-trust", {"learn_from": 0.51, "learn_until": 0.54}, "of 20 outer steps"),
        ("reinforce-significant", {"level": 0.7}, "level must lie in (0, 0.5), got 0.7"),
        ("reinforce-factorised", {"structure": "elements"}, "must be a list of kinds of features, as in [elements]"),
        ("reinforce-factorised", {"structure": ["element"]}, "'element'; it must be of families"),
        ("reinforce-factorised", {"structure": []}, "has no features"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        opened(name, **options)
    told = str(raised.value)
    assert told.startswith(f"outer.estimator={name}, outer.estimator_args={{")
    assert message in told
    assert "\n" not in told


def test_an_option_that_is_read_from_others_is_no_unknown_one() -> None:
    class Own:
        def __init__(self, **options: Any) -> None:
            raise ValueError(f"depth must be positive, got {options['depth']}")

    with pytest.raises(ValueError, match="depth") as raised:
        Own(depth=-1)
    assert why_refused(Own, {"depth": -1}, (), raised.value) == "depth must be positive, got -1"


@pytest.mark.parametrize("name", CHOSEN)
def test_a_search_is_resumed_to_the_last_bit(name: str, tmp_path: Path) -> None:
    """Killed after outer step 3 of 6, in the middle of a generation; each line of the metrics says what was learned."""
    overrides = [
        *SMALL, "outer.steps=6", "outer.inner_steps=1", "inner.batch_size=50", "data.heldout=100",
        "data.test_split=null", "outer.trajectories=3", "run.keep_checkpoints=9", f"run.dir={tmp_path}",
        f"outer.estimator={name}", f"outer.estimator_args={CHOSEN[name]}",
    ]  # fmt: skip
    result = search("digits", overrides)
    assert result.policy != Policy()
    whole = final_state(tmp_path)
    rewind(tmp_path, "step-000003")
    search("digits", [*overrides, "run.resume=auto"])
    again = final_state(tmp_path)
    assert again == whole
    told = {"evolution": "gradient", "reinforce-factorised": "log_weights"}.get(name, "divergence_of_step")
    assert sum(told in line for line in whole["metrics"]) == {"evolution": 2, "reinforce-trust": 5}.get(
        name, 6
    )
