"""Screening: the schedule of its rounds, what they teach, and whether that is more than noise."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ohl_accel.errors import UserError
from ohl_accel.operations.space import PAPER
from ohl_accel.policy import Policy
from ohl_accel.policy.estimators import FinishedStep, Screening, open_estimator
from ohl_accel.policy.estimators.screening import learning_curve_slope, noise_of_means
from ohl_accel.policy.protocol import NoPolicy

N, ROUNDS, STEPS = 4, 3, 24
GEOMETRY = torch.tensor([element.transform.family == "geometry" for element in PAPER.elements])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def screening(seed: int = 0, **options: Any) -> Screening:
    settings = {"lr": 0.05, "betas": (0.5, 0.999), "trajectories": N, "outer_steps": STEPS, "seed": seed}
    made = open_estimator(
        "screening", Policy(), {"rounds": ROUNDS, "share": 0.5, "finish": 0} | options, **settings
    )
    assert isinstance(made, Screening)
    return made


def finished(
    outer_step: int,
    heldout: Tensor,
    training: Tensor,
    finite_N: Tensor | None = None,
    noise: float = 0.0,
    training_noise: float = 0.0,
) -> FinishedStep:
    """With losses of 4 images whose means are `heldout`, and which explain two thirds of the noise."""
    signs = torch.tensor([1.0, -1, 1, -1])
    pattern_Nn = torch.outer(signs, signs)  # its rows and columns have no mean
    scale, scale_training = (each / 1.5 * ((N - 1) * (4 - 1) / N) ** 0.5 for each in (noise, training_noise))
    return FinishedStep(
        outer_step=outer_step,
        reward_N=-heldout,
        finite_N=torch.ones(len(heldout), dtype=torch.bool) if finite_N is None else finite_N,
        recorded={
            "heldout_loss": heldout,
            "heldout_losses": heldout[:, None] + scale * pattern_Nn[: len(heldout)],
            "training_loss": training,
            "training_losses": training[:, None] + scale_training * pattern_Nn[: len(heldout)],
        },
    )


def learn(estimator: Screening, outer_steps: range, noise: float = 0.0, effect: float = -0.01) -> None:
    """Outer steps in which the score falls with the log-weights of geometric elements, if `effect` is negative."""
    draws = generator(7)
    for outer_step in outer_steps:
        if not estimator.is_scored(outer_step):
            continue
        log_weight_NE = torch.stack([log_weights(policy_of(estimator, n)) for n in range(N)])
        gain_N = effect * log_weight_NE[:, GEOMETRY].sum(1)
        progress = 1 / (1 + outer_step)
        heldout = 1.0 + progress - gain_N + noise * torch.randn(N, generator=draws, dtype=torch.float64)
        made = finished(outer_step, heldout, torch.full((N,), 1.0 + 2 * progress, dtype=torch.float64))
        estimator.step(made)


def policy_of(estimator: Screening, trajectory: int) -> Policy:
    policy = estimator.policy_of(trajectory)
    assert isinstance(policy, Policy)
    return policy


def log_weights(policy: Policy) -> Tensor:
    log_E = policy.element_probabilities[0].log()
    return log_E - log_E.mean()


def test_the_noise_of_means_is_that_of_blocks() -> None:
    """Against its definition on losses that have parts of trajectories, of images, and of both."""
    draws, (trajectories, images) = generator(2), (6, 4000)
    part_N = torch.randn(trajectories, 1, generator=draws, dtype=torch.float64)
    part_n = 3 * torch.randn(images, generator=draws, dtype=torch.float64)
    both_Nn = 0.5 * torch.randn(trajectories, images, generator=draws, dtype=torch.float64)
    assert noise_of_means(part_N + part_n + both_Nn) == pytest.approx(0.5 / images**0.5, rel=0.03)
    assert noise_of_means(part_N + part_n) == pytest.approx(0, abs=1e-9)
    assert noise_of_means(both_Nn[:1]) == noise_of_means(both_Nn[:, :1]) == 0


def test_the_noise_is_that_of_losses_averaged_over_the_round() -> None:
    """0.03 of held-out losses, 0.08 of training losses, which count with the slope of the learning curve, 0.5."""
    estimator = screening(rounds=1, share=1.0)
    heldout, training = torch.tensor(FAR).double(), torch.ones(N).double()
    times = [step for step in range(STEPS) if estimator.is_scored(step)]
    for step, noise, loss in zip(times, (9.0, 0.01, 0.02, 0.04, 0.05), (2.0, 1, 1, 1, 1), strict=True):
        if step == times[2]:
            saved, estimator = estimator.state(), screening(rounds=1, share=1.0)
            estimator.load_state(saved)
        made = finished(step, heldout + loss / 2, loss * training, noise=noise, training_noise=noise / 3 * 8)
        told = estimator.step(made)
    assert told["learning_curve_slope"] == pytest.approx(0.5)
    assert told["score_noise"] == pytest.approx(0.05)


def test_the_slope_of_a_learning_curve() -> None:
    def slope(before: tuple[float, float], after: tuple[float, float]) -> float:
        return learning_curve_slope(torch.tensor(before).double(), torch.tensor(after).double())

    assert slope((2.0, 1.5), (1.8, 1.0)) == pytest.approx(0.4)
    assert slope((2.0, 1.5), (2.1, 1.0)) == 0
    assert slope((2.0, 1.5), (1.0, 1.4)) == 1
    assert slope((2.0, 1.5), (1.9, 1.6)) == 0


def test_scores_come_in_the_second_half_of_rounds() -> None:
    estimator = screening()
    assert [step for step in range(16) if estimator.is_scored(step)] == [
        1,
        2,
        3,
        5,
        6,
        7,
        9,
        10,
        11,
        12,
        13,
        14,
        15,
    ]
    policies = [policy_of(estimator, n) for n in range(N)]
    assert len({policy.theta.sum().item() for policy in policies}) == N


def test_trajectories_keep_their_weights_within_a_round() -> None:
    estimator = screening()
    heldout = torch.tensor([1.2, 1.1, 1.4, 1.3], dtype=torch.float64)
    middle = finished(1, heldout + 0.4, torch.full((N,), 1.5).double())
    estimator.step(middle)
    assert estimator.parents(middle) == [0, 1, 2, 3]
    # slope 0.4 / 0.5: the third has learned least of the training images, so it gains most
    end = finished(3, heldout, torch.tensor([0.8, 0.8, 1.6, 0.8]).double())
    told = estimator.step(end)
    assert told["learning_curve_slope"] == pytest.approx(0.8)
    assert told["score"] == pytest.approx([0.64 - 1.2, 0.64 - 1.1, 1.28 - 1.4, 0.64 - 1.3])
    assert estimator.parents(end) == [2] * N


def test_a_diverged_trajectory_is_replaced_and_left_out() -> None:
    estimator, healthy = screening(), screening()
    finite_N = torch.tensor([True, False, True, True])
    heldout = torch.tensor([1.2, float("nan"), 1.4, 1.3], dtype=torch.float64)
    for outer_step in (1, 3):
        made = finished(outer_step, heldout, heldout / 2, finite_N)
        estimator.step(made)
        healthy.step(
            finished(outer_step, torch.tensor([1.2, 1.2, 1.4, 1.3]).double(), torch.full((N,), 0.6).double())
        )
        assert estimator.parents(made) == ([0, 0, 2, 3] if outer_step == 1 else [0] * N)
    assert bool(estimator.policy.theta.isfinite().all())


def test_losses_are_averaged_over_the_second_half_of_a_round() -> None:
    estimator = screening(rounds=1, share=1.0)  # measured after 12, 15, 18, 21 and 24 outer steps
    heldout_TN = 1.5 + torch.randn(5, N, generator=generator(), dtype=torch.float64) / 10
    training_TN = (
        torch.linspace(1.5, 0.5, 5).double()[:, None] + torch.rand(5, N, generator=generator()).double()
    )
    heldout_TN[0] += 0.5
    times = [step for step in range(STEPS) if estimator.is_scored(step)]
    for step, heldout_N, training_N in zip(times, heldout_TN, training_TN, strict=True):
        told = estimator.step(finished(step, heldout_N, training_N))
    slope = float((heldout_TN[0] - heldout_TN[-1]).mean() / (training_TN[0] - training_TN[-1]).mean())
    assert told["learning_curve_slope"] == pytest.approx(slope)
    assert told["score"] == pytest.approx((slope * training_TN[1:] - heldout_TN[1:]).mean(0).tolist())


def test_a_policy_is_not_narrower_than_the_family_that_helps() -> None:
    """What helps is at most doubled, however strong its effect is."""
    estimator = screening(rounds=4, share=0.8)
    learn(estimator, range(STEPS), effect=0.05)
    probability_E = estimator.policy.element_probabilities[0]
    assert probability_E[GEOMETRY].sum() > 0.8
    assert estimator.policy.entropy > 2 * math.log(int(GEOMETRY.sum()))


def learn_from(estimator: Screening, *rounds: list[float], size: float = 0.01) -> list[float]:
    """Rounds with these held-out losses; returns what was told of the probability of each by noise alone."""
    told = []
    for number, losses in enumerate(rounds):
        begin = number * estimator.round_length
        for step in range(begin, begin + estimator.round_length):
            if estimator.is_scored(step):
                heldout = torch.tensor(losses, dtype=torch.float64)
                line = estimator.step(finished(step, heldout, torch.ones(N), noise=size))
        told.append(line["probability_by_noise"])
    return told


NEAR, FAR = [1.0, 1.01, 0.99, 1.0], [1.0, 1.06, 0.97, 0.97]


def test_differences_that_noise_explains_teach_nothing() -> None:
    """Noise of 0.01: a chi-square test, over all rounds together."""
    estimator = screening(rounds=3)
    expected = [
        stats.chi2.sf(sum(np.var(losses) * N / 0.01**2 for losses in rounds), (N - 1) * len(rounds))
        for rounds in ([NEAR], [NEAR, NEAR], [NEAR, NEAR, FAR])
    ]
    first = policy_of(estimator, 0).theta
    told = learn_from(estimator, NEAR, NEAR, FAR)
    assert told == pytest.approx(expected)
    assert told[1] > 0.05 > told[2]
    assert estimator.policy.element_probabilities[0].std() > 0.01
    still = screening(rounds=3)
    learn_from(still, NEAR, NEAR)
    torch.testing.assert_close(still.policy.probabilities, Policy().probabilities)
    designs = still.state()["element_theta"]  # and the next round explores as much as the first
    torch.testing.assert_close(designs[2].std(1), designs[0].std(1), rtol=0.05, atol=0)
    evidence = still.evidence()
    assert evidence is not None
    assert evidence.p_value == pytest.approx(told[1])
    assert not evidence.distinguishable
    assert not torch.equal(designs[2], designs[0])
    assert policy_of(still, 0).theta.tolist() != first.tolist()


def test_a_round_without_a_comparison_does_not_count() -> None:
    """Of one finite trajectory; it says nothing of the noise, and the other rounds are tested as before."""
    estimator, whole = screening(rounds=2), screening(rounds=2)
    near, far = torch.tensor([NEAR, FAR], dtype=torch.float64)
    for step in filter(estimator.is_scored, range(estimator.round_length)):
        alone = torch.tensor([True, False, False, False])
        told = estimator.step(finished(step, far, torch.ones(N), alone, noise=0.01))
    assert told["probability_by_noise"] == 1
    assert estimator.evidence() is None
    for step in filter(estimator.is_scored, range(estimator.round_length, 2 * estimator.round_length)):
        told = estimator.step(finished(step, near, torch.ones(N), noise=0.01))
    (expected,) = learn_from(whole, NEAR)
    assert told["probability_by_noise"] == pytest.approx(expected)
    assert estimator.evidence() is not None


def test_at_level_1_every_difference_is_believed() -> None:
    estimator = screening(rounds=1, level=1.0)
    learn_from(estimator, NEAR)
    assert estimator.policy.element_probabilities[0].std() > 0.01


def test_a_checkpoint_of_a_version_without_the_test_is_resumed() -> None:
    first, second = screening(), screening()
    learn(first, range(4))
    saved = first.state()
    del saved["noise"], saved["heldout_losses"], saved["training_losses"]
    second.load_state(saved)
    assert torch.equal(policy_of(second, 1).theta, policy_of(first, 1).theta)


@pytest.mark.parametrize("effect", [-0.01, 0.01])
def test_it_finds_which_family_helps(effect: float) -> None:
    estimator = screening()
    learn(estimator, range(STEPS), noise=0.03, effect=effect)
    share = float(estimator.policy.element_probabilities[0][GEOMETRY].sum())
    uniform = 15 / 36
    assert share < uniform / 2 if effect < 0 else share > 1.5 * uniform


def test_one_round_tells_what_is_more_than_noise() -> None:
    """Of 4 trajectories: families that differ by ten times the noise, and by no more than it."""
    told, noise_only = screening(rounds=1), screening(rounds=1)
    assert told.evidence() is None
    geometry_N = told.state()["element_theta"][0][:, GEOMETRY].mean(1)
    learn_from(told, (1.0 + 0.1 * geometry_N / geometry_N.abs().mean()).tolist())
    found = told.evidence()
    assert found is not None
    assert found.p_value < 1e-10
    assert not found.advice
    sides_AE = found.sides(told.policy.element_probabilities)
    assert (sides_AE[:, GEOMETRY] == -1).all()
    assert found.side_of_operation(float(told.policy.probabilities[0]) * 1296) == -1
    learn_from(noise_only, NEAR)
    nothing = noise_only.evidence()
    assert nothing is not None
    assert nothing.p_value > 0.05
    assert nothing.advice
    assert not nothing.sides(noise_only.policy.element_probabilities).any()


def test_the_band_holds_what_noise_adds_to_what_is_learned() -> None:
    """Repeating a round with other noise moves theta no more than the sets do.

    Less along what is learned, since effects are in units of the scores' own scale.
    """
    start = screening(rounds=1, bound=100.0)
    design_E = start.state()["element_theta"][0][:, GEOMETRY].mean(1)
    truth_N = 1.0 + 0.2 * design_E / design_E.abs().mean()
    draws, learned = generator(5), []
    for _ in range(120):
        again = screening(rounds=1, bound=100.0)
        learn_from(again, (truth_N + 0.01 * torch.randn(N, generator=draws, dtype=torch.float64)).tolist())
        learned.append(again.state()["learned"])
    learned_SE = torch.stack(learned)
    exact = screening(rounds=1, bound=100.0)
    learn_from(exact, truth_N.tolist())
    assert exact.evidence() is not None
    ratio_E = exact.null_thetas().std(0) / learned_SE.std(0)
    assert 0.8 < ratio_E.min() < 1.1
    assert ratio_E.max() < 3


def test_without_the_size_of_the_noise_nothing_is_said() -> None:
    estimator = screening()
    learn(estimator, range(STEPS))
    assert estimator.evidence() is None


@pytest.mark.parametrize("without_is_better", [True, False])
def test_the_end_of_the_run_tries_training_without_operations(without_is_better: bool) -> None:
    """A finish of 6 of 24 outer steps, whose trial takes 2; in between the estimator is saved and restored."""
    estimator = screening(finish=0.25)
    # the best of all, the second, is not of the better kind where its kind has the lower mean
    rewards = [0.5, 0.6, 0.45, 0.55] if without_is_better else [0.5, 0.7, 0.65, 0.3]
    heldout_N = -torch.tensor(rewards, dtype=torch.float64)
    without, parents = [], {}
    for outer_step in range(STEPS):
        if outer_step == 19:
            saved, estimator = estimator.state(), screening(finish=0.25)
            estimator.load_state(saved)
        without.append([isinstance(estimator.policy_of(n), NoPolicy) for n in range(N)])
        if estimator.is_scored(outer_step):
            made = finished(outer_step, heldout_N, torch.ones(N, dtype=torch.float64))
            estimator.step(made)
            parents[outer_step] = estimator.parents(made)
    assert not any(map(any, without[:18]))
    assert without[18:20] == [[False, True, False, True]] * 2
    assert without[20:] == [[without_is_better] * N] * 4
    assert 18 not in parents
    assert parents[19] == ([1] if without_is_better else [2]) * N
    assert estimator.policy.provenance.get("used_until_outer_step") == (18 if without_is_better else None)


def test_without_learning_all_keep_the_policy() -> None:
    estimator = screening()
    still = open_estimator(
        "screening", Policy(), {}, lr=0.0, betas=(0.5, 0.9), trajectories=N, outer_steps=STEPS, seed=0
    )
    learn(estimator, range(STEPS))
    assert isinstance(still, Screening)
    learn(still, range(STEPS), noise=0.1)
    assert still.policy == Policy() != estimator.policy
    torch.testing.assert_close(policy_of(still, 2).probabilities, Policy().probabilities)


@pytest.mark.parametrize("stop", [2, 4, 6, 13])
def test_a_restored_estimator_continues_as_if_nothing_had_happened(stop: int) -> None:
    whole, first, second = screening(), screening(), screening()
    learn(whole, range(STEPS), noise=0.02)
    learn(first, range(stop), noise=0.02)
    saved = {name: value.clone() for name, value in first.state().items()}
    second.load_state(saved)
    for n in range(N):
        assert torch.equal(policy_of(first, n).theta, policy_of(second, n).theta)
    learn(first, range(stop, STEPS), noise=0.02)
    learn(second, range(stop, STEPS), noise=0.02)
    assert torch.equal(first.policy.theta, second.policy.theta)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"share": 1.5}, r"share in \(0, 1\]"),
        ({"spread": -1.0}, "must be positive"),
        ({"level": 0.0}, r"level must be in \(0, 1\]"),
        ({"rounds": 9}, "9 rounds in 0.5 of the run need outer.steps=36 or more, got 24"),
        ({"depth": 3}, "there is no option depth; it has: rounds, share"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        screening(**options)
