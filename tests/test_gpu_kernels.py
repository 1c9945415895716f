"""The kernel for GPUs without one: Triton's interpreter against the other kernels, and what its compiler makes."""

import os
import re
import warnings
from collections.abc import Collection
from dataclasses import replace
from importlib.util import find_spec
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import Process
from torch import Tensor

from ohl_accel.operations.kernels import BatchedElements
from ohl_accel.operations.kernels.around import RawBatch
from ohl_accel.operations.kernels.optional import compiled_kernels
from ohl_accel.operations.space import PAPER
from ohl_accel.rng import keyed_generator

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: torch without GPUs"
)

CPU = torch.device("cpu")
AROUND = ("flip", "crop", "cutout")


def in_less_time() -> None:
    """The interpreter prepares Triton anew for each call of each function, and looks for overflow: once is enough."""
    from triton.runtime import interpreter

    prepare, prepared = interpreter._patch_lang, set[int]()

    def once(function: Any) -> Any:
        if id(function.__globals__) not in prepared:
            prepared.add(id(function.__globals__))
            prepare(function)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = once
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)


def noise(*shape: int) -> Tensor:
    """Noise of medium contrast, grey in places."""
    generator = keyed_generator(0, "test")
    images = torch.randint(30, 200, shape, dtype=torch.uint8, generator=generator)
    images[::5, :, :2] = 77
    return images


def raw_batch(images: Tensor, transforms: Collection[str] = AROUND) -> RawBatch:
    """Images with some of the transforms around the operations; squares and crops reach beyond all borders."""
    generator = keyed_generator(2, "test")
    B, channels, height, width = images.shape
    draws = torch.randint(2**40, (5, B), generator=generator)
    return RawBatch(
        images_BCHW=images,
        mean_C11=torch.tensor([125.3, 123.0, 113.9])[:channels, None, None],
        std_C11=torch.tensor([63.0, 62.1, 66.7])[:channels, None, None],
        flip_B=draws[0] % 2 if "flip" in transforms else None,
        padding=2 if "crop" in transforms else 0,
        corner_B2=draws[1:3].T % 5 if "crop" in transforms else None,
        side=3 if "cutout" in transforms else 0,
        centre_B2=torch.stack((draws[3] % height, draws[4] % width), 1) if "cutout" in transforms else None,
    )


def on_gpu(images: Tensor | RawBatch, elements: Tensor, negative: Tensor) -> Tensor:
    """By the kernel for GPUs."""
    gpu = compiled_kernels("gpu")
    assert gpu is not None
    assert PAPER._batched._fused is not None
    return PAPER._batched._fused.on_gpu(gpu, images, elements, negative)


def different_operations() -> list[str]:
    """Of all 1,296, those whose results, with all that is around them, differ from those of the kernels on the CPU."""
    operations = torch.arange(1296)
    negative = torch.rand(1296, 2, generator=keyed_generator(1, "test")) < 0.5
    batch = raw_batch(noise(1296, 3, 5, 6))
    got = on_gpu(batch, PAPER.elements_of(operations), negative)
    different = (got != PAPER.augment(batch, operations, negative)).flatten(1).any(1)
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


def differences_around(channels: int, height: int, width: int, arity: int) -> list[str]:
    """Of all combinations of what is around some operations, those whose results differ from the torch code's."""
    elements = torch.arange(8 * arity).view(8, arity) * 5 % 36
    negative, images = elements % 2 == 1, noise(8, channels, height, width)
    different = []
    for number in range(len(AROUND) + 1):
        for transforms in combinations(AROUND, number):
            batch = raw_batch(images, transforms)
            expected = batch.finish_by_torch(
                PAPER._batched.by_torch(batch.basic_by_torch(), elements, negative)
            )
            got = on_gpu(batch, elements, negative)
            if got.dtype != torch.float32 or not torch.equal(got, expected):
                different.append(" ".join(transforms))
    return different


def warning_of_a_wrong_kernel(whole: bool) -> list[str]:
    """The kernel is wrong with what is around the elements, or without."""
    from ohl_accel.operations.kernels import gpu

    right = gpu.apply

    def wrong(*arguments: Any, **options: Any) -> Tensor:
        result = right(*arguments, **options)
        return result.clamp(max=0.2 if whole else 198) if result.is_floating_point() == whole else result

    vars(gpu)["apply"] = wrong
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert BatchedElements(PAPER.elements[::6])._on_gpu_of(CPU, 2) is None
    vars(gpu)["apply"] = right
    assert BatchedElements(PAPER.elements[::6])._on_gpu_of(CPU, 2) is not None
    return [str(each.message) for each in caught]


@pytest.fixture(scope="module")
def interpreter() -> Any:
    with Process({**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}) as process:
        process(in_less_time)
        yield process


@pytest.mark.slow
def test_operations_equal_those_on_the_cpu(interpreter: Any) -> None:
    """All of them, both elements, flipped, cropped, normalized and with Cutout, in one launch."""
    assert interpreter(different_operations) == []


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (1, 33, 40)])
def test_elements_equal_the_torch_code(interpreter: Any, shape: tuple[int, int, int]) -> None:
    """One pixel, no interior, and more pixels than a block has."""
    assert interpreter(different_elements, *shape) == []


@pytest.mark.parametrize(
    ("shape", "arity"), [((3, 5, 6), 2), ((1, 7, 3), 2), ((3, 23, 29), 2), ((3, 4, 4), 1), ((1, 4, 5), 3)]
)
def test_what_is_around_the_operations_equals_the_torch_code(
    interpreter: Any, shape: tuple[int, int, int], arity: int
) -> None:
    """Each of flip, crop and Cutout, or not, in grey and in colour, in one block and in two, for 1 to 3 elements."""
    assert interpreter(differences_around, *shape, arity) == []


@pytest.mark.parametrize("whole", [False, True])
def test_kernels_that_are_wrong_on_a_device_are_not_used(interpreter: Any, whole: bool) -> None:
    (message,) = interpreter(warning_of_a_wrong_kernel, whole)
    assert message == (
        "the compiled kernel cannot be used on cpu, so operations take longer: its results on images of 1 channels "
        "differ from the torch code's"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 61, 67)])
def test_one_launch_equals_the_cpu(shape: tuple[int, int, int]) -> None:
    """All operations with all that is around them; the launch is used, not the torch code."""
    operations, images = torch.arange(1296), noise(1296, *shape)
    negative = torch.rand(1296, 2, generator=keyed_generator(1, "test")) < 0.5
    batch, device = raw_batch(images), torch.device("cuda", torch.cuda.current_device())
    assert PAPER._batched._on_gpu_of(device, 2) is not None
    there = {name: getattr(batch, name).to(device) for name in ("images_BCHW", "mean_C11", "std_C11")}
    got = PAPER.augment(replace(batch, **there), operations, negative)
    assert torch.equal(got.cpu(), PAPER.augment(batch, operations, negative))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_compiler_fuses_no_products_and_sums(channels: int, whole: bool) -> None:
    """Machine code for an H100, of both elements, with all that is around them and without.

    A fused multiply-add rounds once, and Pillow twice; a quick division rounds otherwise than torch's. Threads wait for
    each other before they read a curve that all have written, of either element.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ohl_accel.operations.kernels import gpu

    types = dict.fromkeys(("images", "curve_S256", "curves_BAR256"), "*u8")
    types |= dict.fromkeys(("drawn_BD", "kind_S", "matrix_S6"), "*i32") | {"factor_S": "*fp32"}
    types |= dict.fromkeys(("side", "height", "width"), "i32") | {"results": "*fp32" if whole else "*u8"}
    sizes = {"arity": 2, "channels": channels, "rows": 4 if channels == 3 else 1, "block": gpu._LARGEST_BLOCK}
    constants: dict[str, Any] = {**sizes, "whole": whole}
    if whole:
        types |= dict.fromkeys(("mean_C", "std_C"), "*fp32")
    else:
        constants |= {"mean_C": None, "std_C": None}
    signature = {name: types.get(name, "constexpr") for name in gpu.transform.arg_names}
    made = triton.compile(
        ASTSource(gpu.transform, signature, constants),
        target=GPUTarget("cuda", 90, 32),
        options={"enable_fp_fusion": False, "num_warps": gpu._WARPS},
    )
    ptx = made.asm["ptx"]
    assert not re.findall(r"\bfma\.", ptx)
    assert not re.findall(r"\bdiv\.(full|approx)", ptx)
    assert bool(re.search(r"\bdiv\.rn\.f32", ptx)) == whole
    assert re.search(r"\bmul\.(rn\.)?f32", ptx)
    assert len(re.findall(r"\w\.barrier\b", made.asm["ttir"])) == 2
    assert len(made.asm["cubin"]) > 1000
