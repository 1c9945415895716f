"""Policies with few degrees of freedom: a log-weight for each element of the space.

The policy draws the elements of an operation independently, each in proportion to exp(its log-weight); equal weights
are the uniform policy. Every such policy is one of Eq 7's, since its theta are free.

Shapes: E elements, A elements of an operation, K operations.
"""

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
    operations_KA = space.elements_of(torch.arange(space.num_operations))
    return (log_weight_E - log_weight_E.max())[operations_KA].sum(1).exp()


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


def _same(names: list[str]) -> Tensor:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    number_E = torch.tensor([numbers[name] for name in names])
    return (number_E[:, None] == number_E).double()
