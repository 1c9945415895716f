"""A stratified part of a split, with the class frequencies of the whole: held-out or training images.

Shapes: n images of the split, C classes.
"""

import numpy as np
import torch
from torch import Tensor

from ohl_accel.errors import UserError
from ohl_accel.rng import keyed_generator


def choose_stratified(
    labels: Tensor, asked: int | float, field: str, does: str, seed: int, order: Tensor | None = None
) -> list[int]:
    """Rows of a stratified part of a split: exactly as many as requested, ascending.

    With one label per image, the number of rows of each class is rounded by largest remainder; which ones are taken is
    keyed by the seed. Multi-label images are chosen by iterative stratification.

    Args:
        labels: int64 [n], indices into the list of classes; or uint8 [n, C], multi-hot.
        asked: number of rows, or a fraction of them.
        field: of the recipe; its last part is the purpose that keys the choice.
        does: what the part is for, as a verb for messages.
        seed: of the run.
        order: int64 [n], in which the rows of a class are taken; None: keyed by the seed.

    Raises:
        UserError: if none, or all, of the rows would be taken.
    """
    total = len(labels)
    count = round(asked * total) if isinstance(asked, float) else asked
    if not 0 < count < total:
        raise UserError(
            f"{field}={asked} {does} {count} of the {total} images: it must leave some on both sides"
        )
    shuffled = order
    if shuffled is None:
        shuffled = torch.randperm(total, generator=keyed_generator(seed, field.removeprefix("data.")))
    if labels.ndim == 2:
        return _iterative(labels, count, shuffled)
    sizes = torch.bincount(labels)
    exact = sizes.double() * count / total
    quota = exact.floor().long()
    by_remainder = (quota - exact).argsort(stable=True)
    quota[by_remainder[: count - int(quota.sum())]] += 1
    of_class = [shuffled[labels[shuffled] == label][: int(quota[label])] for label in range(len(sizes))]
    return torch.cat(of_class).sort().values.tolist()


def _iterative(labels_nC: Tensor, count: int, order_n: Tensor) -> list[int]:
    """Iterative stratification (Sechidis et al., ECML PKDD 2011, Algorithm 1) into a part of `count` rows and the rest.

    The class with the fewest rows left is distributed first, each row to the side that needs more of that class,
    or else more rows. Ties, which the paper breaks at random, go to the part: the order of rows is random.
    """
    labels, order = labels_nC.numpy().astype(bool), order_n.numpy()
    total = len(labels)
    needs = np.array([count, total - count])
    left_C = labels.sum(0)
    needs_2C = np.outer(needs / total, left_C)
    undecided, chosen = np.ones(total, dtype=bool), np.zeros(total, dtype=bool)

    def decide(row: int, preferred: int) -> None:
        side = preferred if needs[preferred] else 1 - preferred
        undecided[row], chosen[row] = False, side == 0
        needs[side] -= 1
        needs_2C[side] -= labels[row]
        left_C[:] -= labels[row]

    while left_C.any():
        rarest = int(np.where(left_C > 0, left_C, total + 1).argmin())
        for row in order[undecided[order] & labels[order, rarest]]:
            in_part, outside = needs_2C[:, rarest]
            decide(row, int(outside > in_part or (outside == in_part and needs[1] > needs[0])))
    for row in order[undecided[order]]:  # images without a class
        decide(row, int(needs[1] > needs[0]))
    return np.flatnonzero(chosen).tolist()
