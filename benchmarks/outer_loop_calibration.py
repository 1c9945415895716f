"""The simulator beside what was measured on reduced CIFAR-10: how its numbers were set, and how well they fit."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.outer_loop_shared import BEST_OF_N, UNIFORM, Trials, elements_of, interval_of, transforms_of
from benchmarks.outer_loop_simulator import EFFECTS, Networks, Settings, Surface, make_surface
from ohl_accel.rng import keyed_generator

EPOCHS = (10, 20, 40, 80, 120, 160, 240)
MEASURED = {
    False: (-0.40, -0.31, -0.16, 0.55, 0.86, 0.86, 0.95),
    True: (-0.48, -0.29, 0.04, 0.75, 0.95, 0.91, 0.94),
}
"""Correlation over 16 runs between held-out accuracy after `EPOCHS` of 240 and final accuracy on other images; of the
weights themselves, and of averaged weights."""


def only(transforms: frozenset[str] | set[str], surface: Surface) -> Tensor:
    """The shares of the policy that is uniform over the elements of these transforms. float64 [E]."""
    share_E = torch.zeros_like(surface.uniform_E)
    share_E[elements_of(transforms)] = 1.0
    return share_E / share_E.sum()


def halves(surface: Surface, pairs: int) -> Tensor:
    """Shares of policies with half of the transforms each, and of those with the other half: float64 [2 pairs, E]."""
    names, shares = sorted(EFFECTS), []
    for pair in range(pairs):
        order = torch.randperm(len(names), generator=keyed_generator(pair, "simulated halves")).tolist()
        for half in (order[: len(names) // 2], order[len(names) // 2 :]):
            shares.append(only({names[index] for index in half}, surface))
    return torch.stack(shares)


def correlations(
    settings: Settings, epochs: Sequence[int], pairs: int, averaged: bool
) -> Mapping[int, float]:
    """Correlation between early scores and the final accuracy, over simulated runs with half of the transforms each.

    Args:
        settings: of all runs.
        epochs: outer steps after which to score.
        pairs: half as many as runs.
        averaged: whether averaged weights are scored.
    """
    surface = make_surface("families", 0)
    share_NE = halves(surface, pairs)
    networks = Networks(settings, surface, 0, len(share_NE), "halves")
    scores: dict[int, Tensor] = {}
    for step in range(1, settings.outer_steps + 1):
        networks.train(share_NE)
        if step in epochs:
            scores[step] = networks.score(averaged)
    final_N = networks.quality()
    return {
        step: float(torch.corrcoef(torch.stack([score_N, final_N]))[0, 1]) for step, score_N in scores.items()
    }


def random_policies(surface: Surface, number: int) -> float:
    """Mean V of policies with a log-normal weight of sigma 1 for each transform, in points above uniform."""
    values = []
    for index in range(number):
        normal = torch.randn(
            len(EFFECTS), generator=keyed_generator(index, "simulated policies"), dtype=torch.float64
        )
        share_E = torch.zeros_like(surface.uniform_E)
        for name, log_weight in zip(EFFECTS, normal, strict=True):
            share_E[elements_of({name})] = log_weight.exp() / len(elements_of({name}))
        values.append(float(surface.value(share_E / share_E.sum())))
    return sum(values) / number


def calibration(settings: Settings, trials: Trials) -> list[str]:
    """Markdown: what was measured, and the same in the simulation.

    Args:
        settings: of the simulation.
        trials: of the surface `families`, for the gain of best-of-N.
    """
    surface = make_surface("families", 0)
    geometry = transforms_of("geometry")
    other = frozenset(EFFECTS) - geometry
    frozen, plain = ({trial.seed: trial for trial in trials[name]} for name in (BEST_OF_N, UNIFORM))
    gain = [
        network - fresh
        for seed in sorted(frozen)
        if (network := frozen[seed].network) is not None and (fresh := plain[seed].fresh) is not None
    ]
    rows = [
        (
            "colour elements only, minus uniform, points",
            "+3.8",
            f"{surface.value(only(other, surface)):+.2f} (set)",
        ),
        (
            "geometry only, minus uniform, points",
            "about -12.5",
            f"{surface.value(only(geometry, surface)):+.2f} (set)",
        ),
        (
            "random log-normal policies, minus uniform, points",
            "-3.0 (5 policies, one seed)",
            f"{random_policies(surface, 400):+.2f}",
        ),
        (
            f"best of {settings.trajectories}, minus uniform, points",
            "+0.74 (+0.14 to +1.33), N = 4",
            f"{interval_of(gain, 100, '+')}{' (luck set to it)' if settings.trajectories == 4 else ''}",
        ),
    ]
    for averaged in (False, True):
        found = correlations(settings, EPOCHS, 100, averaged) if settings.outer_steps == EPOCHS[-1] else {}
        what = "averaged weights" if averaged else "raw"
        rows += [
            (
                f"correlation of the {what} score at epoch {epoch} with the end",
                f"{measured:+.2f}",
                f"{found[epoch]:+.2f}",
            )
            for epoch, measured in zip(EPOCHS, MEASURED[averaged], strict=True)
            if found
        ]
    lines = ["| quantity | measured on reduced CIFAR-10 | simulated |", "|---|---|---|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]
