"""Populations: who continues from whom, and with which policy, against what can be worked out by hand."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ohl_accel.errors import UserError
from ohl_accel.operations.space import PAPER
from ohl_accel.policy import Policy, effects
from ohl_accel.policy.estimators import Estimator, FinishedStep, open_estimator
from ohl_accel.policy.estimators.population import descend, random_log_weights
from ohl_accel.rng import keyed_generator


def opened(
    name: str, trajectories: int = 4, outer_steps: int = 24, lr: float = 1.0, **args: Any
) -> Estimator:
    settings = {"lr": lr, "betas": (0.5, 0.9), "trajectories": trajectories, "outer_steps": outer_steps}
    return open_estimator(name, Policy(), args, **settings, seed=0)


def finished(
    outer_step: int,
    reward: Sequence[float],
    diverged: Sequence[int] = (),
    training_loss: Sequence[float] | None = None,
) -> FinishedStep:
    """An outer step whose held-out losses are the rewards with the other sign."""
    reward_N = torch.tensor(reward, dtype=torch.float64)
    finite_N = torch.tensor([n not in diverged for n in range(len(reward))])
    recorded = {
        "heldout_loss": torch.where(finite_N, -reward_N, torch.nan),
        "training_loss": torch.tensor(training_loss or [0.0] * len(reward), dtype=torch.float64),
    }
    return FinishedStep(outer_step=outer_step, reward_N=reward_N, finite_N=finite_N, recorded=recorded)


def thetas(estimator: Estimator) -> list[Tensor]:
    policies = [estimator.policy_of(n) for n in range(estimator.trajectories)]
    assert all(isinstance(policy, Policy) for policy in policies)
    return [policy.theta.clone() for policy in policies if isinstance(policy, Policy)]


def scored(estimator: Estimator) -> list[int]:
    """After how many outer steps it wants scores."""
    return [step + 1 for step in range(estimator.outer_steps) if estimator.is_scored(step)]


def test_log_weights_have_the_covariance_they_are_drawn_with() -> None:
    rows_nE = random_log_weights(PAPER, 20_000, 0.3, keyed_generator(0, "test"))
    assert float(rows_nE.mean(1).abs().max()) < 1e-6
    expected_EE = effects.similarity(PAPER, 0.3)
    torch.testing.assert_close(rows_nE.T @ rows_nE / len(rows_nE), expected_EE, atol=0.06, rtol=0)


def test_every_trajectory_keeps_its_own_policy_and_the_best_is_learned() -> None:
    population = opened("population", checks=3)
    before = thetas(population)
    assert len({tuple(theta.tolist()) for theta in before}) == 4
    assert scored(population) == [8, 16, 24]
    assert population.policy == Policy()
    for step, reward, best in (
        (7, [0.1, 0.4, 0.2, 0.3], 1),
        (15, [0.5, 0.4, 0.2, 0.6], 3),
        (23, [0.9, 0.1, 0.2, 0.3], 0),
    ):
        told = population.step(finished(step, reward))
        assert told["best"] == best
        assert population.policy.theta.equal(before[best])
        if step < 23:
            assert population.parents(finished(step, reward)) == [0, 1, 2, 3]
        assert all(map(torch.equal, thetas(population), before))


def test_policies_are_log_normal_in_the_elements() -> None:
    population = opened("population", trajectories=8, spread=0.5, family_share=0.0)
    rows_NE = population.state()["log_weights"]
    assert 0.35 < float(rows_NE.std()) < 0.65
    policy = population.policy_of(3)
    assert isinstance(policy, Policy)
    marginal_E = policy.element_probabilities[0]
    torch.testing.assert_close(marginal_E, rows_NE[3].softmax(0))


def test_a_diverged_trajectory_becomes_a_copy_of_the_best() -> None:
    population = opened("population")
    before = thetas(population)
    step = finished(1, [0.2, 0.4, 0.2, 0.3], diverged=[2])
    population.step(step)
    assert population.parents(step) == [0, 1, 1, 3]
    assert all(map(torch.equal, thetas(population), [before[n] for n in (0, 1, 1, 3)]))


def test_lineages() -> None:
    inf = math.inf
    assert descend([0, 1, 2, 3], [1, 4, 2, 3], 2) == [1, 1, 3, 3]
    assert descend([0, 1, 2, 3], [4, 1, 2, 3]) == [0, 1, 2, 3]
    # means 2.5 and 2: the best trajectory of all is lost with its policy, the second best is copied
    assert descend([0, 0, 1, 1], [2, 3, 0, 4], 1) == [0, 1, 1, 1]
    # one that diverged does not count for its policy, and copies its sibling
    assert descend([0, 0, 1, 1], [-inf, 3, 0, 4], 1) == [1, 1, 1, 1]
    assert descend([0, 0, 1, 1], [-inf, 3, 0, 4]) == [1, 1, 2, 3]
    assert descend([0, 1, 2], [-inf, -inf, 0], 2) == [2, 2, 2]
    # eight: the worse half goes to the better in turn, from the best on
    assert descend([*range(8)], [8, 1, 7, 2, 6, 3, 5, 4], 4) == [0, 0, 2, 2, 4, 4, 6, 6]


def test_halving_by_hand() -> None:
    halving = opened("halving")
    first = thetas(halving)
    assert scored(halving) == [4, 8, 12, 16]
    for step, reward, parents, left in (
        (3, [0.1, 0.2, 0.3, 0.4], [0, 1, 2, 3], [0, 1, 2, 3]),
        (7, [0.4, 0.2, 0.3, 0.1], [0, 0, 2, 2], [0, 0, 2, 2]),
        (11, [0.4, 0.2, 0.3, 0.1], [0, 1, 2, 3], [0, 0, 2, 2]),
        (15, [0.1, 0.5, 0.4, 0.3], [2, 2, 2, 3], [2, 2, 2, 2]),
    ):
        one = finished(step, reward)
        halving.step(one)
        assert halving.parents(one) == parents
        assert all(map(torch.equal, thetas(halving), [first[n] for n in left]))
    assert halving.policy.theta.equal(first[2])


def test_scores_are_extrapolated_to_training_images_that_are_learned() -> None:
    """Losses fall by 0.2 held out and 0.4 in training from the first scoring to the second: a slope of 1/2."""
    halving = opened("halving", trajectories=2, outer_steps=12)
    told = halving.step(finished(1, [-1.0, -1.2], training_loss=[1.0, 1.2]))
    assert told["score"] == [-1.0, -1.2]
    rung = finished(3, [-0.9, -0.9], training_loss=[0.6, 0.8])
    told = halving.step(rung)
    assert told["learning_curve_slope"] == pytest.approx(0.5)
    assert told["score"] == pytest.approx([-0.6, -0.5])
    assert halving.parents(rung) == [1, 1]


def test_population_based_training_by_hand() -> None:
    pbt = opened("pbt", ready=2, window=2, begin=0.0)
    start_NE = pbt.state()["log_weights"].clone()
    assert scored(pbt) == [*range(2, 25, 2)]
    all_own = [0, 1, 2, 3]
    reward = [0.1, 0.2, 0.3, 0.4]
    pbt.step(finished(1, reward))
    assert pbt.parents(finished(1, reward)) == all_own  # one score says nothing yet
    reward = [0.3, 0.1, 0.3, 0.35]  # means 0.2, 0.15, 0.3, 0.375
    pbt.step(finished(3, reward))
    assert pbt.parents(finished(3, reward)) == [0, 3, 2, 3]
    log_weight_NE = pbt.state()["log_weights"]
    assert log_weight_NE[[0, 2, 3]].equal(start_NE[[0, 2, 3]])
    change_E = log_weight_NE[1] - start_NE[3]
    assert 0.1 < float(change_E.std()) < 0.5
    assert pbt.policy.theta.equal(thetas(pbt)[3])
    # the copy is the worst again, but is not judged before it has two scores of its own
    reward = [0.3, 0.0, 0.1, 0.35]  # means 0.3, -, 0.2, 0.35
    pbt.step(finished(5, reward))
    assert pbt.parents(finished(5, reward)) == [0, 1, 3, 3]


def test_the_slow_half_copies_only_its_own_and_less_often() -> None:
    pbt = opened("pbt", ready=1, window=1, begin=0.5, slow=3, perturbation=0.0)
    reward = [0.1, 0.2, 0.3, 0.4]
    parents = []
    for step in range(11, 15):
        pbt.step(finished(step - 1, reward))
        parents.append(pbt.parents(finished(step - 1, reward)))
    # before the half of the run; fast and slow; fast alone; fast alone
    assert parents == [[0, 1, 2, 3], [3, 1, 3, 3], [3, 1, 2, 3], [3, 1, 2, 3]]
    best_is_fast = [0.4, 0.1, 0.2, 0.3]
    pbt.step(finished(14, best_is_fast))
    assert pbt.parents(finished(14, best_is_fast)) == [0, 0, 3, 3]


@pytest.mark.parametrize("name", ["population", "halving", "pbt"])
def test_states_are_restored(name: str) -> None:
    """After any scoring a fresh estimator that loads the state does the same as the one that wrote it."""
    one = opened(name)
    generator = keyed_generator(0, "rewards")
    for step in range(24):
        if not one.is_scored(step):
            continue
        other = opened(name)
        other.load_state({key: value.clone() for key, value in one.state().items()})
        rewards, losses = torch.rand(2, 4, generator=generator).tolist()
        now = finished(step, rewards, diverged=[step % 4] if step > 12 else [], training_loss=losses)
        assert str(one.step(now)) == str(other.step(now))  # NaN is not equal to NaN
        assert one.parents(now) == other.parents(now)
        assert all(map(torch.equal, thetas(one), thetas(other)))
        assert one.policy == other.policy


def test_with_a_learning_rate_of_0_nothing_is_learned() -> None:
    for name in ("population", "halving", "pbt"):
        frozen = opened(name, lr=0.0)
        for step in (7, 15, 23):
            frozen.step(finished(step, [0.1, 0.4, 0.2, 0.3]))
            assert frozen.policy == Policy()
            for theta in thetas(frozen):
                torch.testing.assert_close(Policy(theta).probabilities, Policy().probabilities)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("population", {"trajectories": 1}, "outer.trajectories must be at least 2"),
        ("population", {"spread": 0}, "spread and checks must be positive, got spread=0, checks=10"),
        ("population", {"family_share": 0.95}, r"family_share must be in 0..0.9, got family_share=0.95"),
        ("halving", {"outer_steps": 5}, "need about outer.steps=8, got 5"),
        ("halving", {"share": 1}, "share in \\(0, 1\\), got rungs=None, share=1"),
        ("halving", {"checks": 3}, "checks is not an option of halving"),
        ("pbt", {"checks": 3}, "checks is not an option of pbt: give ready"),
        ("pbt", {"ready": 0}, "ready, window and slow must be at least 1, got ready=0"),
        ("pbt", {"fraction": 0.6}, "fraction in \\(0, 0.5\\] and perturbation at least 0, got .*0.6"),
    ],
)
def test_mistakes(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"outer.estimator={name}, .*{message}"):
        opened(name, **options)
