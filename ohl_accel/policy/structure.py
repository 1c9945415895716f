"""Policies with few degrees of freedom: a log-weight for each element of the space.

The policy draws the elements of an operation independently, each in proportion to exp(its log-weight); equal weights
are the uniform policy. Every such policy is one of Eq 7's, since its theta are free.

Shapes: E elements, A elements of an operation (its places), K operations, D features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ohl_accel.operations.space import Space

_MOST = 1.01
"""Eq 7 fixes probabilities only up to a common factor of the sigmoids; with this one, the greatest is 1 / 1.01."""


def theta_of(probability_K: Tensor) -> Tensor:
    """The inverse of Eq 7: theta with these probabilities. float64 [K].

    Args:
        probability_K: float64, at least one positive; need not sum to 1. Zeros become very low theta.
    """
    share_K = probability_K / (_MOST * probability_K.max())
    return torch.logit(share_K.clamp_min(1e-12))


def product_of_elements(log_weight_E: Tensor, space: Space) -> Tensor:
    """The product of the elements' weights for each operation, at most 1. float64 [K]."""
    return product_of_places(log_weight_E.expand(space.arity, -1), space)


def product_of_places(log_weight_AE: Tensor, space: Space) -> Tensor:
    """The same with log-weights of its own for each place of an operation, at most 1. float64 [K]."""
    operations_KA = space.elements_of(torch.arange(space.num_operations))
    relative_AE = log_weight_AE - log_weight_AE.max(1, keepdim=True).values
    return relative_AE.T[operations_KA, torch.arange(space.arity)].sum(1).exp()


KINDS_OF_FEATURES = ("families", "transforms", "magnitudes", "elements")
"""What elements can have in common: `families` and `transforms`, 1 for their members and 0 for the others;
`magnitudes`, for each transform with several the rank from -1 to 1; `elements`, each by itself."""


def features(space: Space, kinds: Sequence[str]) -> Tensor:
    """One row for each feature that elements have in common: float64 [D, E], in the order of `kinds`.

    A policy with few degrees of freedom has a weight w for each: the log-weights of its elements are w @ features.
    Without transforms of several magnitudes there are no `magnitudes`.

    Raises:
        ValueError: for a kind that is not one of `KINDS_OF_FEATURES`.
    """
    rows = [torch.zeros(0, space.num_elements, dtype=torch.float64)]
    for kind in kinds:
        match kind:
            case "families":
                rows.append(_members(same_family(space)))
            case "transforms":
                rows.append(_members(same_transform(space)))
            case "magnitudes":
                slopes_DE = _members(same_transform(space)) * magnitude_ranks(space)
                rows.append(slopes_DE[slopes_DE.any(1)])
            case "elements":
                rows.append(torch.eye(space.num_elements, dtype=torch.float64))
            case _:
                raise ValueError(f"structure has {kind!r}; it must be of {', '.join(KINDS_OF_FEATURES)}")
    return torch.cat(rows)


def same_family(space: Space) -> Tensor:
    """Whether two elements' transforms are of the same family: float64 [E, E] of 0 and 1."""
    families = [element.transform.family or element.transform.name for element in space.elements]
    return _same(families)


def same_transform(space: Space) -> Tensor:
    """Whether two elements have the same transform: float64 [E, E] of 0 and 1."""
    return _same([element.transform.name for element in space.elements])


def magnitude_ranks(space: Space) -> Tensor:
    """The place of each element among those with its transform, by magnitude: -1 lowest to 1 highest. float64 [E].

    0 for transforms with a single element.
    """
    rank_E = torch.zeros(space.num_elements, dtype=torch.float64)
    for row_E in same_transform(space).unique(dim=0).bool():
        members = row_E.nonzero().flatten().tolist()
        ordered = sorted(members, key=lambda member: space.elements[member].magnitude or 0.0)
        if len(ordered) > 1:
            rank_E[ordered] = torch.linspace(-1, 1, len(ordered), dtype=torch.float64)
    return rank_E


def _members(same_EE: Tensor) -> Tensor:
    """A row of 0 and 1 for each group, in the order of their first members. float64 [groups, E]."""
    first_E = same_EE.argmax(1)
    return same_EE[first_E.unique()]


def _same(names: list[str]) -> Tensor:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    number_E = torch.tensor([numbers[name] for name in names])
    return (number_E[:, None] == number_E).double()
