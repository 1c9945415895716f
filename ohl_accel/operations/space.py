"""The search space: elements, and operations as sequences of them.

Shapes: E elements, A elements of an operation (the arity), K operations, B images of a batch, n operations,
C channels (1 grey, 3 RGB), H rows, W columns.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Self, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ohl_accel.extensions import import_extension
from ohl_accel.operations.kernels import BatchedElements
from ohl_accel.operations.kernels.around import RawBatch
from ohl_accel.operations.table_1 import IDENTITY, TABLE_1
from ohl_accel.operations.transforms import Element, transform_named

MAX_ARITY = 3
MAX_OPERATIONS = 100_000
"""A policy has a parameter for each, and samples from all of them for every batch."""
COMBINATIONS = ("ordered", "distinct")
"""`ordered`: every sequence of A elements, E^A of them, as in the paper (section 3.3). `distinct`: only those whose
transforms all differ."""

_NAME = re.compile(r"[\w.-]{1,60}")


class Space:
    """A set of operations, each a sequence of elements that are applied one after the other. Immutable.

    Operations are numbered in lexicographic order of their elements' indices; with `ordered` and two elements this
    is the paper's `E * first + second`. Spaces are equal if they have the same operations; the name is a label.

    Args:
        name: letters, digits, `_`, `.` and `-`.
        elements: in order; names must be unique.
        arity: A, how many elements an operation has: 1, 2 or 3.
        combine: one of `COMBINATIONS`.
        imported: the Python file that registered the elements' transforms, if any; processes that receive a
            pickled copy import it as well.

    Raises:
        ValueError: for invalid arguments, or more than `MAX_OPERATIONS` operations.
    """

    def __init__(
        self,
        name: str,
        elements: Iterable[Element],
        *,
        arity: int = 2,
        combine: str = "ordered",
        imported: str | None = None,
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"name must be letters, digits, _, . or - (at most 60), got {_short(name)}")
        if type(arity) is not int or not 1 <= arity <= MAX_ARITY:
            raise ValueError(f"arity must be 1..{MAX_ARITY} (elements of an operation), got {_short(arity)}")
        if combine not in COMBINATIONS:
            raise ValueError(f"combine must be one of {', '.join(COMBINATIONS)}, got {_short(combine)}")
        self.name, self.arity, self.combine, self.imported = name, arity, combine, imported
        self.elements = tuple(elements)
        self._operations = _operations(self.elements, arity, combine)

    @property
    def num_elements(self) -> int:
        """E."""
        return len(self.elements)

    @property
    def num_operations(self) -> int:
        """K; 36^2 = 1296 in the paper."""
        return len(self._operations)

    @property
    def max_entropy(self) -> float:
        """Entropy of the uniform policy in nats, log K."""
        return math.log(self.num_operations)

    def operation_of(self, *elements: int) -> int:
        """The number of the operation that applies these elements, in this order.

        Raises:
            ValueError: if the space has no such operation.
        """
        try:
            return self._number_of[elements]
        except KeyError:
            raise ValueError(f"space {self.name} has no operation with the elements {elements}") from None

    @overload
    def elements_of(self, operation: int) -> tuple[int, ...]: ...
    @overload
    def elements_of(self, operation: Tensor) -> Tensor: ...
    def elements_of(self, operation: int | Tensor) -> tuple[int, ...] | Tensor:
        """The elements of an operation, in the order in which they are applied: the inverse of `operation_of`.

        Args:
            operation: in [0, K); or int64 [n] on the CPU.

        Returns:
            A indices of elements; or int64 [n, A].
        """
        return self._elements_KA[operation] if isinstance(operation, Tensor) else self._operations[operation]

    def operation_name(self, operation: int) -> str:
        """Such as `Rotate 10 > Invert`."""
        return " > ".join(self.elements[index].name for index in self._operations[operation])

    def marginals(self, weight_K: Tensor) -> Tensor:
        """The weight of each element at each position of an operation: float64 [A, E], from float64 [K]."""
        if self.combine == "ordered":
            grid = weight_K.view([self.num_elements] * self.arity)
            positions = range(self.arity)
            if self.arity == 1:
                return grid[None]
            return torch.stack([grid.sum([j for j in positions if j != i]) for i in positions])
        return torch.stack(
            [
                torch.bincount(element_K, weight_K, minlength=self.num_elements)
                for element_K in self._elements_KA.T
            ]
        )

    @property
    def uniform_marginals(self) -> Tensor:
        """`marginals` of the uniform policy: float64 [A, E]; 1 / E if all sequences are allowed."""
        if self.combine == "ordered":
            return torch.full((self.arity, self.num_elements), 1 / self.num_elements, dtype=torch.float64)
        return self.marginals(
            torch.full((self.num_operations,), 1 / self.num_operations, dtype=torch.float64)
        )

    def apply(self, images_BCHW: Tensor, operation_B: Tensor, negative_BA: Tensor) -> Tensor:
        """Apply to each image the elements of its operation, one after the other (section 3.3).

        Args:
            images_BCHW: uint8, C = 1 or 3, on any device; left unchanged.
            operation_B: int64 in [0, K), on the CPU.
            negative_BA: bool on the CPU; for each element, whether its magnitude is negated (no effect on elements
                that are not signed).

        Returns:
            uint8 [B, C, H, W] on the device of the images, a new tensor.

        Raises:
            ValueError: for images of a wrong dtype or shape, or an operation that is not in the space.
        """
        _check_images(images_BCHW)
        _check_range("operations", operation_B, self.num_operations)
        return self._batched(images_BCHW, self._elements_KA[operation_B], negative_BA)

    def augment(self, batch: RawBatch, operation_B: Tensor, negative_BA: Tensor) -> Tensor:
        """`apply` with what is done before and after it: `batch.finish(apply(batch.basic, ...))`, bit for bit.

        On a GPU it is one launch, where the kernel for GPUs can be used.

        Args:
            batch: images, and what was drawn for them.
            operation_B, negative_BA: as in `apply`.

        Returns:
            float32 [B, C, H, W] on the device of the images.

        Raises:
            ValueError: as `apply`.
        """
        _check_images(batch.images_BCHW)
        _check_range("operations", operation_B, self.num_operations)
        return self._batched.augment(batch, self._elements_KA[operation_B], negative_BA)

    def apply_elements(self, images_BCHW: Tensor, element_B: Tensor, negative_B: Tensor) -> Tensor:
        """Apply one element to each image: like `apply`, with int64 elements in [0, E) and bool signs [B]."""
        _check_images(images_BCHW)
        _check_range("elements", element_B, self.num_elements)
        return self._batched(images_BCHW, element_B[:, None], negative_B[:, None])

    def apply_to_pil(self, image: Image.Image, operation: int, negative: Sequence[bool]) -> Image.Image:
        """`apply` for a single PIL image, with Pillow: the same result, bit for bit.

        Args:
            image: of mode L or RGB; left unchanged.
            operation: in [0, K).
            negative: the signs of the elements.

        Returns:
            An image of the same mode and size.
        """
        for element, sign in zip(self._operations[operation], negative, strict=True):
            image = self.apply_element_to_pil(image, element, sign)
        return image

    def apply_to_image(self, image: Image.Image, operation: int, negative: Sequence[bool]) -> Image.Image:
        """The same as `apply_to_pil`, by the compiled kernels where there are any."""
        if self._batched.compiled:
            channels, layout = ((3,), "RGBX") if image.mode == "RGB" else ((), image.mode)
            levels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, *channels)
            changed = self._batched.single(levels, self._operations[operation], negative, padded=True)
            if changed is not None:
                result = Image.new(image.mode, image.size, None)
                result.frombytes(changed, "raw", layout)
                result.info = image.info.copy()
                return result
        return self.apply_to_pil(image, operation, negative)

    def apply_to_array(
        self,
        image: np.ndarray[Any, Any],
        operation: int,
        negative: Sequence[bool],
        channels_first: bool = False,
    ) -> np.ndarray[Any, Any] | None:
        """The same for an array, by the compiled kernels.

        Args:
            image: uint8 [H, W] or [H, W, C], or with channels first [C, H, W], C = 1 or 3; left unchanged.
            operation, negative: as in `apply_to_pil`.
            channels_first: where the channels are.

        Returns:
            A new array of the same shape; None where there are no compiled kernels, or the image is too large for them.
        """
        return self._batched.single(
            image, self._operations[operation], negative, channels_first=channels_first
        )

    def apply_element_to_pil(self, image: Image.Image, element: int, negative: bool) -> Image.Image:
        """Apply one element to one PIL image."""
        row = self.elements[element]
        if row.transform.pillow is not None:
            return row.transform.pillow(image, row.value(negative))
        levels = torch.from_numpy(np.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)
        result = self.apply_elements(levels[None], torch.tensor([element]), torch.tensor([negative]))[0]
        return Image.fromarray(result.permute(1, 2, 0).view(np.array(image).shape).contiguous().numpy())

    def document(self) -> dict[str, Any]:
        """The space as plain data, as in `policy.json`; `from_document` reads it."""
        return {
            "name": self.name,
            "arity": self.arity,
            "combine": self.combine,
            "elements": [
                {"transform": element.transform.name, "magnitude": element.magnitude}
                for element in self.elements
            ],
        }

    @classmethod
    def from_document(cls, document: object, imported: str | None = None) -> Self:
        """The space described by plain data, which may come from an untrusted source.

        Args:
            document: as returned by `document`.
            imported: see `Space`.

        Raises:
            ValueError: if it does not describe a space, or has a transform that is not registered.
        """
        if not isinstance(document, Mapping):
            raise ValueError(f"a space must be an object, got {_short(document)}")
        _check_fields(document, ("name", "arity", "combine", "elements"))
        rows = document["elements"]
        if not isinstance(rows, list) or not 0 < len(rows) <= MAX_OPERATIONS:
            found = f"{len(rows)} of them" if isinstance(rows, list) else _short(rows)
            raise ValueError(f"elements must be a list of 1 to {MAX_OPERATIONS}, got {found}")
        elements = []
        for index, row in enumerate(rows):
            try:
                elements.append(_element_of(row))
            except ValueError as error:
                raise ValueError(f"element {index}: {error}") from None
        combination = {key: document[key] for key in ("arity", "combine")}
        space = cls(document["name"], elements, **combination, imported=imported)
        known = BUILT_IN.get(space.name)
        if known is not None and space != known:
            raise ValueError(f"the name {space.name} is taken by a built-in space with different operations")
        return space

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Space):
            return NotImplemented
        return self is other or self._contents == other._contents

    def __hash__(self) -> int:
        return hash(self._contents)

    def __repr__(self) -> str:
        combine = "" if self.combine == "ordered" else f", {self.combine}"
        return (
            f"Space({self.name}: {self.num_elements} elements, arity {self.arity}{combine}, "
            f"{self.num_operations} operations)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.document(), self.imported)

    @property
    def _contents(self) -> tuple[Any, ...]:
        return self.arity, self.combine, self.elements

    @cached_property
    def _elements_KA(self) -> Tensor:
        return torch.tensor(self._operations)

    @cached_property
    def _number_of(self) -> dict[tuple[int, ...], int]:
        return {elements: number for number, elements in enumerate(self._operations)}

    @cached_property
    def _batched(self) -> BatchedElements:
        return BatchedElements(self.elements)


def _operations(elements: Sequence[Element], arity: int, combine: str) -> tuple[tuple[int, ...], ...]:
    """All operations as indices of elements, in order.

    Raises:
        ValueError: for no elements, duplicate elements, or too many or no operations.
    """
    if not elements:
        raise ValueError("elements: a space needs at least one")
    number = len(elements) ** arity
    if number > MAX_OPERATIONS:
        raise ValueError(
            f"{len(elements)} elements and arity {arity} make {number} operations, more than {MAX_OPERATIONS}: use "
            "fewer elements or a lower arity"
        )
    seen: dict[str, int] = {}
    for index, element in enumerate(elements):
        if element.name in seen:
            raise ValueError(f"element {index} is {element.name}, and so is element {seen[element.name]}")
        seen[element.name] = index
    operations = tuple(itertools.product(range(len(elements)), repeat=arity))
    if combine == "distinct":
        transforms = [element.transform.name for element in elements]
        operations = tuple(
            operation for operation in operations if len({transforms[i] for i in operation}) == arity
        )
    if not operations:
        raise ValueError(
            f"combine=distinct with arity {arity} needs elements of {arity} different transforms"
        )
    return operations


def _element_of(row: object) -> Element:
    if not isinstance(row, Mapping):
        raise ValueError(f"must be an object with a transform and a magnitude, got {_short(row)}")
    _check_fields(row, ("transform", "magnitude"))
    name, magnitude = row["transform"], row["magnitude"]
    if not isinstance(name, str):
        raise ValueError(f"transform must be a name, got {_short(name)}")
    if magnitude is not None:
        if isinstance(magnitude, bool) or not isinstance(magnitude, int | float):
            raise ValueError(f"magnitude must be a number, or null for none, got {_short(magnitude)}")
        if (isinstance(magnitude, int) and abs(magnitude) > 2**53) or not math.isfinite(magnitude):
            raise ValueError(f"magnitude must be a finite number, got {_short(magnitude)}")
        magnitude = float(magnitude)
    return Element(transform_named(name), magnitude)


def _check_fields(document: Mapping[Any, Any], fields: Sequence[str]) -> None:
    for field in fields:
        if field not in document:
            raise ValueError(f"{field} is missing")
    for field in document:
        if field not in fields:
            raise ValueError(f"unknown field {_short(field)}; the fields are {', '.join(fields)}")


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 in 0..255, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be [B, C, H, W] with C = 1 or 3, got {list(images.shape)}")


def _check_range(what: str, number_B: Tensor, below: int) -> None:
    if not bool(((number_B >= 0) & (number_B < below)).all()):
        raise ValueError(f"{what} must lie in 0..{below - 1}, got {number_B.tolist()}")


def _unpickled(document: Mapping[str, Any], imported: str | None) -> Space:
    if imported is not None:
        import_extension("import", imported)
    return Space.from_document(document, imported)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


PAPER = Space("paper", TABLE_1)
"""The paper's space: ordered pairs of the 36 elements of Table 1, 1296 operations."""
PAPER_IDENTITY = Space("paper-identity", [*TABLE_1, Element(IDENTITY)])
"""The paper's elements and Identity, so that a policy can learn to leave images alone: 37^2 = 1369 operations."""

BUILT_IN: dict[str, Space] = {space.name: space for space in (PAPER, PAPER_IDENTITY)}
"""Spaces that a recipe can name."""
