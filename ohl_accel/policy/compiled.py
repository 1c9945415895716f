"""`PolicyTransform` in `torch.compile`: one operation that the compiler does not look into.

Operations are drawn on the host, by generators that a compiler cannot trace. So a whole batch is one call from the
compiled program; what stands before and after it is compiled.
"""

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ohl_accel.operations.formats import in_format_of

if TYPE_CHECKING:
    from ohl_accel.policy.transform import PolicyTransform

_transforms: "WeakValueDictionary[int, PolicyTransform]" = WeakValueDictionary()
"""A compiled program knows a transform by its number."""


def number_of(transform: "PolicyTransform") -> int:
    """A number by which `transform_tensor` finds a transform, as long as it exists."""
    number = id(transform)
    _transforms[number] = transform
    return number


# the tag keeps compilers from merging two calls into one
@torch.library.custom_op(
    "ohl_accel::transform_tensor", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def transform_tensor(images: Tensor, number: int) -> Tensor:
    """Call a transform with a plain tensor, [C, H, W] or [B, C, H, W]; returns uint8 of the same shape and format."""
    result: Tensor = _transforms[number](images)
    return result


@transform_tensor.register_fake
def _(images: Tensor, number: int) -> Tensor:
    return in_format_of(images, torch.empty(images.shape, dtype=torch.uint8, device=images.device))
