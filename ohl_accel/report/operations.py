"""Operations as a report names them: the most and the least probable, with their probabilities."""

from dataclasses import dataclass

from ohl_accel.operations.elements import NUM_OPERATIONS, operation_name
from ohl_accel.policy import Policy


@dataclass(frozen=True)
class Operation:
    """One of the 1,296, in a policy."""

    number: int
    name: str
    """Such as `Rotate 10 > Invert`."""
    probability: float

    @property
    def ratio(self) -> float:
        """Probability over the uniform one: 1 where nothing was learned, above it where gained."""
        return self.probability * NUM_OPERATIONS


def operation_in(policy: Policy, number: int) -> Operation:
    """An operation with its probability."""
    return Operation(number, operation_name(number), float(policy.probabilities[number]))


def most_probable(policy: Policy, count: int) -> list[Operation]:
    """The most probable operations, the first of equals first."""
    order = policy.probabilities.argsort(descending=True, stable=True)
    return [operation_in(policy, number) for number in order[:count].tolist()]


def least_probable(policy: Policy, count: int) -> list[Operation]:
    """The least probable operations, the least first, the first of equals first."""
    order = policy.probabilities.argsort(stable=True)
    return [operation_in(policy, number) for number in order[:count].tolist()]
