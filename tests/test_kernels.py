"""Every element against Pillow, the reference: bit for bit, on real photographs and hard cases.

Both the torch code and the compiled kernels are tested, and the latter on every operation.
"""

import io
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from benchmarks import kernels as benchmark
from ohl_accel.operations.kernels import BatchedElements, tone
from ohl_accel.operations.kernels.family import EachImage
from ohl_accel.operations.kernels.geometry import MAX_SIDE
from ohl_accel.operations.kernels.optional import compiled_kernels
from ohl_accel.operations.kernels.tone import Curve
from ohl_accel.operations.space import PAPER, PAPER_IDENTITY, Space
from ohl_accel.operations.transforms import Element, Magnitude, Transform
from ohl_accel.rng import keyed_generator


def to_tensor(image: Image.Image) -> Tensor:
    levels = torch.from_numpy(np.array(image))
    return levels[None] if levels.ndim == 2 else levels.permute(2, 0, 1).contiguous()


def assert_equals_pillow(images: list[Image.Image], space: Space = PAPER) -> None:
    """All elements and both signs, on a batch of images of one size."""
    batch = torch.stack([to_tensor(image) for image in images])
    for index, element in enumerate(space.elements):
        for negative in (False, True) if element.signed else (False,):
            wanted = torch.stack(
                [to_tensor(space.apply_element_to_pil(image, index, negative)) for image in images]
            )
            chosen, sign = torch.full((len(images), 1), index), torch.full((len(images), 1), negative)
            for apply in (space._batched, space._batched.by_torch):
                got = apply(batch, chosen, sign)
                assert torch.equal(got, wanted), (
                    f"{element.name}, negative={negative}: {different(got, wanted)}"
                )


def different(got: Tensor, wanted: Tensor) -> str:
    difference = (got.int() - wanted.int()).abs()
    return f"{int((difference > 0).sum())} levels differ, by at most {int(difference.max())}"


def photographs(folder: Path, pattern: str, column: str, count: int) -> list[Image.Image]:
    rows = pq.read_table(sorted(folder.glob(pattern))[0], columns=[column]).slice(0, count).to_pylist()
    return [Image.open(io.BytesIO(row[column]["bytes"])).convert("RGB") for row in rows]


@pytest.fixture(scope="module")
def sample_photographs() -> list[Image.Image]:
    """The two photographs that come with scikit-learn (CC BY 2.0), 640 x 427: these tests never skip."""
    return [Image.fromarray(levels) for levels in load_sample_images().images]


def crops(photographs: list[Image.Image], side: int, count: int) -> list[Image.Image]:
    """Squares of the photographs, spread over them."""
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        left = int(rng.integers(photograph.width - side + 1))
        top = int(rng.integers(photograph.height - side + 1))
        pictures.append(photograph.crop((left, top, left + side, top + side)))
    return pictures


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_sample_photographs_equal_pillow(sample_photographs: list[Image.Image], mode: str) -> None:
    """At the sizes of CIFAR and ImageNet, and one that is not square."""
    photographs = [photograph.convert(mode) for photograph in sample_photographs]
    assert_equals_pillow(crops(photographs, 32, 120), PAPER_IDENTITY)
    assert_equals_pillow(crops(photographs, 224, 2))
    assert_equals_pillow([photographs[0].resize((200, 133))])


def any_magnitudes() -> Space:
    """Every built-in transform with both ends of its range, and arbitrary magnitudes in between."""
    rng = np.random.default_rng(0)
    elements = []
    for transform in dict.fromkeys(element.transform for element in PAPER.elements):
        legal = transform.magnitude
        if legal is not None:
            between = rng.uniform(legal.least, legal.greatest, 9).round(3).tolist()
            round_ones = [legal.greatest / 2, legal.greatest / 4, min(1.0, legal.greatest)]
            magnitudes = dict.fromkeys([legal.least, *between, *round_ones, legal.greatest])
            elements += [Element(transform, float(magnitude)) for magnitude in magnitudes]
    return Space("any", elements, arity=1)


def test_any_legal_magnitude_equals_pillow(sample_photographs: list[Image.Image]) -> None:
    """User-defined spaces choose magnitudes freely: shears of 45 degrees, right angles, factors of 0 and 10."""
    space = any_magnitudes()
    assert_equals_pillow(crops(sample_photographs, 32, 8), space)
    for width, height in ((1, 1), (40, 17), (101, 64)):
        assert_equals_pillow(
            [photo.crop((200, 200, 200 + width, 200 + height)) for photo in sample_photographs], space
        )
        assert_equals_pillow([sample_photographs[0].crop((0, 0, width, height)).convert("L")], space)


def test_cifar10_photographs_equal_pillow(cifar10_folder: Path) -> None:
    assert_equals_pillow(photographs(cifar10_folder, "train*", "img", 400))


def test_imagenet_photographs_equal_pillow(imagenet_folder: Path) -> None:
    for image in photographs(imagenet_folder, "train*", "image", 16):
        assert_equals_pillow([image])
        assert_equals_pillow([ImageOps.fit(image, (224, 224))])


def test_grey_photographs_equal_pillow(cifar10_folder: Path, imagenet_folder: Path) -> None:
    assert_equals_pillow([image.convert("L") for image in photographs(cifar10_folder, "train*", "img", 200)])
    for image in photographs(imagenet_folder, "train*", "image", 8):
        assert_equals_pillow([image.convert("L")])


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (2, 5), (3, 3), (17, 40), (33, 31), (100, 60)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_hard_images_equal_pillow(mode: str, size: tuple[int, int]) -> None:
    """Needs no data: noise, gradients, flat images and images of two levels, in odd sizes."""
    width, height = size
    rng = np.random.default_rng(0)
    shape = (height, width, 3)
    ramp = np.broadcast_to(np.linspace(3, 250, width)[None, :, None], shape)
    arrays = [
        rng.integers(0, 256, shape),
        rng.integers(90, 120, shape),
        ramp,
        np.full(shape, 77),
        np.zeros(shape),
        np.full(shape, 255),
        rng.choice([10, 240], shape),
        np.where(rng.random(shape) < 0.01, 255, 4),
    ]
    assert_equals_pillow([Image.fromarray(array.astype(np.uint8)).convert(mode) for array in arrays])


def test_each_image_of_a_batch_gets_its_own_operation() -> None:
    images = torch.randint(0, 256, (1296, 3, 32, 32), dtype=torch.uint8, generator=keyed_generator(0, "test"))
    operations = torch.arange(1296)
    negative = torch.rand(1296, 2, generator=keyed_generator(1, "test")) < 0.5
    got = PAPER.apply(images, operations, negative)
    for i, operation in enumerate(operations.tolist()):
        image = Image.fromarray(images[i].permute(1, 2, 0).numpy())
        image = PAPER.apply_to_pil(image, operation, negative[i].tolist())
        assert torch.equal(got[i], to_tensor(image)), operation


def every_operation(images_BCHW: Tensor, space: Space = PAPER) -> Iterator[tuple[Tensor, Tensor]]:
    """What the compiled kernels and the torch code make of all operations, for each pair of signs."""
    operations, count = torch.arange(space.num_operations), space.num_operations
    batch = images_BCHW[operations % len(images_BCHW)]
    for signs in itertools.product((False, True), repeat=space.arity):
        negative = torch.tensor(signs).expand(count, -1)
        by_torch = space._batched.by_torch(batch, space.elements_of(operations), negative)
        yield space.apply(batch, operations, negative), by_torch


def test_numba_is_used() -> None:
    """Otherwise the tests below compare torch with torch."""
    images = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    assert PAPER._batched._fused is not None
    assert (
        PAPER._batched._fused(images, torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2).bool())
        is not None
    )


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(64, 45), (7, 9), (2, 5), (1, 1)])
def test_compiled_operations_equal_torch(
    sample_photographs: list[Image.Image], mode: str, size: tuple[int, int]
) -> None:
    """All 1,296 and both signs of each element, on photographs, shrunken ones, noise and flat images."""
    width, height = size
    photograph = sample_photographs[0].convert(mode)
    pictures = [photograph.resize(size), photograph.crop((300, 200, 300 + width, 200 + height))]
    images = [to_tensor(picture) for picture in pictures]
    noise = torch.randint(0, 256, images[0].shape, dtype=torch.uint8, generator=keyed_generator(5, "test"))
    for got, wanted in every_operation(
        torch.stack([*images, noise, noise // 8 + 90, noise // 255 * 70, images[1]])
    ):
        different_B = (got != wanted).flatten(1).any(1).nonzero().flatten().tolist()
        assert not different_B, [PAPER.operation_name(operation) for operation in different_B]


def test_compiled_operations_of_three_elements_equal_torch(sample_photographs: list[Image.Image]) -> None:
    """One element of each transform and Identity: curves between two maps, three maps, pixels needed in the middle."""
    elements = {element.transform: element for element in PAPER_IDENTITY.elements}
    space = Space("three", elements.values(), arity=3)
    images = torch.stack([to_tensor(image) for image in crops(sample_photographs, 13, 4)])
    for got, wanted in every_operation(images[:, :, :, :11], space):
        different_B = (got != wanted).flatten(1).any(1).nonzero().flatten().tolist()
        assert not different_B, [space.operation_name(operation) for operation in different_B]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_single_images_equal_pillow(sample_photographs: list[Image.Image], mode: str) -> None:
    """All operations of a PIL image, an array with channels last or first, and a part of a larger one."""
    picture = sample_photographs[1].convert(mode).resize((18, 13))
    picture.info["comment"] = "kept"
    array = np.array(picture)
    wide = np.concatenate([array, array], 1)[:, :18]
    first = np.ascontiguousarray(np.moveaxis(np.atleast_3d(array), 2, 0))
    for operation in range(1296):
        chosen = operation, [operation % 2 == 0, operation % 3 == 0]
        wanted = np.asarray(PAPER.apply_to_pil(picture, *chosen))
        got = PAPER.apply_to_image(picture, *chosen)
        assert (got.mode, got.info, got.size) == (mode, {"comment": "kept"}, (18, 13))
        results: list[Any] = [
            np.asarray(got),
            PAPER.apply_to_array(array, *chosen),
            PAPER.apply_to_array(wide, *chosen),
        ]
        planes = PAPER.apply_to_array(first, *chosen, channels_first=True)
        assert planes is not None
        results.append(np.moveaxis(planes, 0, 2).reshape(array.shape))
        assert all(np.array_equal(result, wanted) for result in results), PAPER.operation_name(operation)
    assert np.array_equal(array, np.array(picture))


def test_large_images_and_kernels_that_are_not_kept_go_through_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = Image.new("L", (MAX_SIDE + 1, 1), 7)
    assert PAPER.apply_to_array(np.asarray(long), 0, [False, False]) is None
    assert PAPER.apply_to_image(long, 1295, [False, False]) == PAPER.apply_to_pil(long, 1295, [False, False])
    small = Image.new("L", (5, 4), 7)
    assert PAPER.apply_to_array(np.asarray(small), 0, [False, False]) is not None
    monkeypatch.setattr(compiled_kernels("compiled"), "kept", False)
    assert PAPER.apply_to_array(np.asarray(small), 0, [False, False]) is None
    assert PAPER.apply_to_image(small, 7, [False, True]) == PAPER.apply_to_pil(small, 7, [False, True])


@pytest.mark.parametrize("magnitude", [-1.0, 0.0, 0.4, 3.5, 8.0, 9.0, 256.0, 300.0])
@pytest.mark.parametrize("curve", [tone.solarize, tone.posterize, tone.invert, tone.brighten])
def test_curves_by_formulas(curve: Callable[[float], Tensor], magnitude: float) -> None:
    """Whatever the magnitude of a user's own transform, the table of its curve is what counts."""
    if curve is tone.posterize and not 0 <= magnitude <= 8:
        return
    transform = Transform("Own", kernel=Curve(curve), magnitude=Magnitude("any", -1, 300))
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    elements = BatchedElements([Element(transform, magnitude)])
    zero, no = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.bool)
    assert torch.equal(elements(levels, zero, no).flatten(), curve(magnitude))


def test_without_numba_results_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (1296, 3, 8, 9), dtype=torch.uint8, generator=keyed_generator(6, "test"))
    negative = torch.rand(1296, 2, generator=keyed_generator(7, "test")) < 0.5
    compiled = PAPER.apply(images, torch.arange(1296), negative)
    picture = to_pil_image(images[5])
    single = PAPER.apply_to_image(picture, 5, negative[5].tolist())
    compiled_kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "ohl_accel.operations.kernels.compiled", None)
    try:
        assert compiled_kernels("compiled") is None
        assert torch.equal(PAPER.apply(images, torch.arange(1296), negative), compiled)
        assert PAPER.apply_to_image(picture, 5, negative[5].tolist()) == single
    finally:
        compiled_kernels.cache_clear()


def test_a_space_with_a_kernel_of_the_users_own_is_not_compiled() -> None:
    own = Transform("Wrap", kernel=EachImage(lambda images_nCHW, magnitude_n: images_nCHW.roll(1, 3)))
    assert BatchedElements([Element(own), *PAPER.elements])._fused is None
    assert BatchedElements(PAPER_IDENTITY.elements)._fused is not None


def test_translation_by_pillows_float_path_is_a_whole_shift() -> None:
    """Pillow adds 1.0 per pixel to a float and truncates; a shift fixed once must give the same."""
    for element in PAPER.elements:
        if "Translate" not in element.transform.name:
            continue
        assert element.magnitude is not None
        for size in range(1, 3000):
            for magnitude in (element.magnitude, -element.magnitude):
                start = magnitude * size + 0.5
                steps = np.add.accumulate(np.concatenate([[start], np.ones(size - 1)]))
                pillows = np.where(steps < 0, -1, np.trunc(steps))
                ours = np.maximum(np.arange(size) + math.floor(start), -1)
                assert np.array_equal(pillows, ours), (element, size)


def test_input_is_left_unchanged_and_layout_does_not_matter() -> None:
    images = torch.randint(0, 256, (36, 3, 20, 24), dtype=torch.uint8, generator=keyed_generator(2, "test"))
    before = images.clone()
    elements, negative = torch.arange(36), torch.zeros(36, dtype=torch.bool)
    got = PAPER.apply_elements(images, elements, negative)
    assert torch.equal(images, before)
    channels_last = images.to(memory_format=torch.channels_last)
    assert torch.equal(PAPER.apply_elements(channels_last, elements, negative), got)
    assert PAPER.apply_elements(images[:0], elements[:0], negative[:0]).shape == (0, 3, 20, 24)


def test_wrong_images_and_elements_are_refused() -> None:
    one, no = torch.tensor([0]), torch.tensor([False])
    with pytest.raises(ValueError, match=r"uint8.*float32"):
        PAPER.apply_elements(torch.zeros(1, 3, 8, 8), one, no)
    with pytest.raises(ValueError, match=r"C = 1 or 3, got \[1, 4, 8, 8\]"):
        PAPER.apply_elements(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), one, no)
    with pytest.raises(ValueError, match=r"0\.\.35, got \[36\]"):
        PAPER.apply_elements(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([36]), no)
    with pytest.raises(ValueError, match=r"2 images need as many elements and signs, got \[1, 1\]"):
        PAPER.apply_elements(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), one, no)
    with pytest.raises(ValueError, match="too large"):
        PAPER.apply_elements(torch.zeros(1, 1, 1, MAX_SIDE + 1, dtype=torch.uint8), one, no)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu() -> None:
    images = torch.randint(0, 256, (1296, 3, 32, 32), dtype=torch.uint8, generator=keyed_generator(3, "test"))
    negative = torch.rand(1296, 2, generator=keyed_generator(4, "test")) < 0.5
    on_cpu = PAPER.apply(images, torch.arange(1296), negative)
    on_cuda = PAPER.apply(images.cuda(), torch.arange(1296), negative)
    assert torch.equal(on_cuda.cpu(), on_cpu)


def test_pillow_by_hand() -> None:
    """Sign, fill and order of the reference itself, which AutoAugment shares: grey comes in from one side."""
    white = Image.new("L", (20, 4), 255)
    names = [element.name for element in PAPER.elements]
    element = names.index("HorizontalTranslate 0.15")
    for negative, grey in ((False, slice(17, 20)), (True, slice(0, 3))):
        moved = np.array(PAPER.apply_element_to_pil(white, element, negative))
        assert (moved[:, grey] == 128).all()
        assert (moved == 255).sum() == 4 * 17
    inverted_after, inverted_before = (
        PAPER.apply_to_pil(
            Image.new("L", (1, 1), 17), PAPER.operation_of(*map(names.index, pair)), (True, True)
        )
        for pair in (("Posterize 4.4", "Invert"), ("Invert", "Posterize 4.4"))
    )
    assert (inverted_after.getpixel((0, 0)), inverted_before.getpixel((0, 0))) == (255 - 16, 224)


def test_the_benchmark(tmp_path: Path) -> None:
    """Small: every library is called, and the page keeps its text around the tables."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{benchmark.BEGIN}old{benchmark.END}after\n")
    small = ["--sides", "16", "--pixels", "1024", "--single", "2", "--rounds", "1"]
    benchmark.main([*small, "--result", str(tmp_path / "result.md"), "--page", str(page)])
    result = (tmp_path / "result.md").read_text()
    assert result.count("\n| ") >= 10 + 14
    assert "| ohl_accel, compiled | " in result
    assert re.search(
        r"\nA whole augmentation reads and writes [\d.]+ GB/s, [\d.]+% of what a copy does", result
    )
    tables = result.partition("\n")[2]
    assert page.read_text() == f"before\n{benchmark.BEGIN}{tables}{benchmark.END}after\n"
