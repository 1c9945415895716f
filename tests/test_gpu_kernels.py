"""The kernels for GPUs without one: Triton's interpreter against the other kernels, and what its compiler makes."""

import os
import re
import warnings
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from processes import Process
from torch import Tensor

from ohl_accel.operations.kernels import BatchedElements
from ohl_accel.operations.space import PAPER
from ohl_accel.rng import keyed_generator

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: torch without GPUs"
)

CPU = torch.device("cpu")


def noise(*shape: int) -> Tensor:
    """Noise of medium contrast, grey in places."""
    generator = keyed_generator(0, "test")
    images = torch.randint(30, 200, shape, dtype=torch.uint8, generator=generator)
    images[::5, :, :2] = 77
    return images


def on_gpu(images: Tensor, elements: Tensor, negative: Tensor) -> Tensor:
    apply = PAPER._batched._on_gpu_of(CPU)
    assert apply is not None
    return apply(images, elements, negative)


def different_operations(apart: int) -> list[str]:
    """Of all 1,296, or some that lie apart, those whose results differ from those of the kernels on the CPU."""
    operations = torch.arange(0, 1296, apart)
    negative = torch.rand(len(operations), 2, generator=keyed_generator(1, "test")) < 0.5
    images = noise(len(operations), 3, 5, 6)
    got = on_gpu(images, PAPER.elements_of(operations), negative)
    different = (got != PAPER.apply(images, operations, negative)).flatten(1).any(1)
    return [PAPER.operation_name(operation) for operation in operations[different].tolist()]


def different_elements(channels: int, height: int, width: int) -> list[str]:
    """Of all elements with both signs, those whose results differ from those of the torch code."""
    elements = torch.arange(72)[:, None] // 2
    negative = torch.arange(72)[:, None] % 2 == 1
    images = noise(72, channels, height, width)
    before = images.clone()
    different = on_gpu(images, elements, negative) != PAPER._batched.by_torch(images, elements, negative)
    assert torch.equal(images, before)
    return [PAPER.elements[i // 2].name for i in different.flatten(1).any(1).nonzero().flatten().tolist()]


def warning_of_a_wrong_kernel() -> list[str]:
    from ohl_accel.operations.kernels import gpu

    right = gpu.apply

    def wrong(*arguments: Any) -> Tensor:
        return right(*arguments).clamp(max=198)

    vars(gpu)["apply"] = wrong
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert BatchedElements(PAPER.elements)._on_gpu_of(CPU) is None
    vars(gpu)["apply"] = right
    return [str(each.message) for each in caught]


@pytest.fixture(scope="module")
def interpreter() -> Any:
    with Process({**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}) as process:
        yield process


@pytest.mark.parametrize("apart", [71, pytest.param(1, marks=pytest.mark.long)])
def test_operations_equal_those_on_the_cpu(interpreter: Any, apart: int) -> None:
    """Both elements, each in a launch of its own."""
    assert interpreter(different_operations, apart) == []


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (1, 33, 40)])
def test_elements_equal_the_torch_code(interpreter: Any, shape: tuple[int, int, int]) -> None:
    """One pixel, no interior, and more pixels than a block has."""
    assert interpreter(different_elements, *shape) == []


def test_kernels_that_are_wrong_on_a_device_are_not_used(interpreter: Any) -> None:
    (message,) = interpreter(warning_of_a_wrong_kernel)
    assert message == (
        "the compiled kernels cannot be used on cpu, so operations take longer: their results on images of 1 channels "
        "differ from the torch code's"
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_the_compiler_fuses_no_products_and_sums(channels: int) -> None:
    """Machine code for an H100; a fused multiply-add rounds once, and Pillow twice."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ohl_accel.operations.kernels import gpu

    pointers = dict.fromkeys(("images", "results", "curve_S256"), "*u8")
    pointers |= dict.fromkeys(("step_B", "kind_S", "matrix_S6"), "*i32") | {"factor_S": "*fp32"}
    sizes = {"height": "i32", "width": "i32", "channels": "constexpr", "block": "constexpr"}
    order = gpu.transform.arg_names
    signature = {name: (pointers | sizes)[name] for name in order}
    source = ASTSource(gpu.transform, signature, {"channels": channels, "block": 1024})
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
    assert not re.findall(r"\bfma\.", made.asm["ptx"])
    assert re.search(r"\bmul\.(rn\.)?f32", made.asm["ptx"])
    assert len(made.asm["cubin"]) > 1000
