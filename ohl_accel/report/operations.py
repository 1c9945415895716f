"""Operations for a report: the most and the least probable, with their probabilities."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ohl_accel.policy import Policy
from ohl_accel.policy.evidence import ORDINALS as POSITIONS

__all__ = [
    "POSITIONS",
    "Operation",
    "both_ends",
    "element_band",
    "least_probable",
    "most_probable",
    "operation_in",
    "ratio_grid",
]
NOISE = {1: "above the noise", -1: "below the noise", 0: "inside the noise"}
"""What is said of an operation if it was measured what noise does (`Evidence.side_of_operation`)."""


@dataclass(frozen=True)
class Operation:
    """An operation in a policy."""

    number: int
    name: str
    """Such as `Rotate 10 > Invert`."""
    probability: float
    ratio: float
    """Probability relative to uniform."""
    noise: str = ""
    """One of `NOISE`; "" if it was not measured."""


def operation_in(policy: Policy, number: int) -> Operation:
    """An operation with its probability, and whether noise explains it."""
    space, probability, evidence = policy.space, float(policy.probabilities[number]), policy.evidence
    ratio = probability * space.num_operations
    noise = "" if evidence is None else NOISE[evidence.side_of_operation(ratio)]
    return Operation(number, space.operation_name(number), probability, ratio, noise)


def most_probable(policy: Policy, count: int) -> list[Operation]:
    """The most probable operations, in descending order; ties by number."""
    order = policy.probabilities.argsort(descending=True, stable=True)
    return [operation_in(policy, number) for number in order[:count].tolist()]


def least_probable(policy: Policy, count: int) -> list[Operation]:
    """The least probable operations, in ascending order; ties by number."""
    order = policy.probabilities.argsort(stable=True)
    return [operation_in(policy, number) for number in order[:count].tolist()]


def both_ends(policy: Policy, count: int) -> list[Operation]:
    """Up to `count` of the most probable operations, and of the least probable ones, in descending order."""
    number = policy.space.num_operations
    most = most_probable(policy, min(count, number))
    return most + least_probable(policy, min(count, number - len(most)))[::-1]


def element_band(policy: Policy) -> tuple[float, float] | None:
    """The smallest and the largest multiple of uniform in which noise alone leaves elements; None if not measured."""
    evidence = policy.evidence
    if evidence is None or evidence.low_AE is None or evidence.high_AE is None:
        return None
    low_AE, high_AE = (
        torch.tensor(rows, dtype=torch.float64) / policy.space.uniform_marginals
        for rows in (evidence.low_AE, evidence.high_AE)
    )
    return float(low_AE.min()), float(high_AE.max())


def ratio_grid(policy: Policy) -> Tensor:
    """Probability relative to uniform for each pair of elements: float64 [E, E], NaN for pairs not in the space.

    Args:
        policy: over a space of arity 2.
    """
    space = policy.space
    grid_EE = torch.full((space.num_elements, space.num_elements), torch.nan, dtype=torch.float64)
    first_K, second_K = space.elements_of(torch.arange(space.num_operations)).T
    grid_EE[first_K, second_K] = policy.probabilities * space.num_operations
    return grid_EE
