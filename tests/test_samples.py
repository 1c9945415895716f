"""Samples with masks, boxes, key points and clips, and images of every format, against Pillow and torchvision."""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from test_transform import noise, pictures
from torch import Tensor
from torchvision import tv_tensors
from torchvision.datasets import VOCDetection, VOCSegmentation, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ohl_accel import Policy, PolicyTransform
from ohl_accel.operations.annotations import Motion
from ohl_accel.operations.kernels.blend import unchanged
from ohl_accel.operations.kernels.family import EachImage
from ohl_accel.operations.space import PAPER, Space
from ohl_accel.operations.table_1 import IDENTITY
from ohl_accel.operations.transforms import Element, Transform, transform_named

GEOMETRIC = ("HorizontalShear", "VerticalShear", "HorizontalTranslate", "VerticalTranslate", "Rotate")


def single(name: str, magnitude: float | None = None, **options: Any) -> PolicyTransform:
    """A transform that always applies one element, with a positive sign if the seed is 0."""
    space = Space("single", [Element(transform_named(name), magnitude)], arity=1)
    return PolicyTransform(Policy(space=space), **options)


def boxes_of(
    rows: list[list[float]], height: int, width: int, form: str = "XYXY"
) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(torch.tensor(rows), format=form, canvas_size=(height, width))  # type: ignore[call-overload, unused-ignore]


def signs(transform: PolicyTransform, wanted: bool) -> PolicyTransform:
    """The transform, whose next sign is the wanted one."""
    for seed in range(100):
        torch.manual_seed(seed)
        if bool(transform.draw(1)[1][0, 0]) == wanted:
            torch.manual_seed(seed)
            return transform
    raise AssertionError


# --- a sample ---


def test_one_operation_per_sample() -> None:
    """Images of a call, of a dict and of an item of a list share an operation; items do not."""
    left, right = map(tv_tensors.Image, noise(2, 3, 12, 10))
    for _ in range(20):
        transform = PolicyTransform(Policy())
        torch.manual_seed(7)
        wanted = transform(left)
        for sample in (
            (left, left),
            {"a": left, "b": {"c": left}},
            [(left, left)],
            {"a": [left], "b": [left]},
        ):
            torch.manual_seed(7)
            found = [leaf for leaf in torch.utils._pytree.tree_leaves(transform(sample)) if leaf is not None]
            assert len(found) == 2
            assert all(torch.equal(one, wanted) for one in found)
    torch.manual_seed(0)
    rows = PolicyTransform(Policy())({"left": [left] * 50, "right": [right] * 50})
    torch.manual_seed(0)
    alone = PolicyTransform(Policy())([left] * 50)
    assert all(torch.equal(a, b) for a, b in zip(rows["left"], alone, strict=True))
    assert len({image.numpy().tobytes() for image in rows["right"]}) > 40


def test_a_second_picture_must_be_said_to_be_a_mask_or_none() -> None:
    image, other = pictures(2)
    with pytest.raises(
        ValueError, match=r"2 images of one sample .* masks=\[1\] .* masks=\['mask'\] .* masks=\[\]"
    ):
        PolicyTransform(Policy())(image, other)
    with pytest.raises(ValueError, match="2 images of one sample"):
        PolicyTransform(Policy())({"image": [image], "annotation": [other]})
    inverted, both = single("Invert", masks=[])(image, other)
    assert (inverted.tobytes(), both.tobytes()) == tuple(
        ImageOps.invert(one).tobytes() for one in (image, other)
    )
    inverted, untouched = single("Invert", masks=[1])(image, other)
    assert inverted.tobytes() == ImageOps.invert(image).tobytes()
    assert untouched.tobytes() == other.tobytes()


@pytest.mark.parametrize("mode", ["L", "P", "1", "I", "I;16", "RGB"])
def test_a_pil_mask_moves_as_pillow_moves_it(mode: str) -> None:
    """In a call, a tuple, a dict, and a dict of lists; the palette is kept; fill is 0 or as chosen."""
    image = pictures(1)[0]
    mask = Image.new(mode, image.size)
    content = noise(1, 3 if mode == "RGB" else 1, 12, 10)[0] % 2
    for y in range(12):
        for x in range(10):
            pixel = tuple(content[:, y, x].tolist())
            mask.putpixel((x, y), pixel if mode == "RGB" else pixel[0])
    if mode == "P":
        mask.putpalette([0, 0, 0, 128, 0, 0])
    for fill in (0, 1):
        transform = signs(single("Rotate", 30.0, masks=[1, "annotation"], mask_fill=fill), False)
        state = torch.get_rng_state()
        wanted = mask.rotate(30, fillcolor=(fill,) * 3 if mode == "RGB" else fill)
        assert np.array(wanted).any() or mode == "1"
        grey = image.rotate(30, fillcolor=(128, 128, 128))
        for sample in (
            (image, mask),
            {"image": image, "annotation": mask},
            {"image": [image], "annotation": [mask]},
        ):
            torch.set_rng_state(state)
            got = transform(*sample) if isinstance(sample, tuple) else transform(sample)
            leaves = torch.utils._pytree.tree_leaves(got)
            assert [leaf.mode for leaf in leaves] == ["RGB", mode]
            assert [leaf.tobytes() for leaf in leaves] == [grey.tobytes(), wanted.tobytes()]
            if mode == "P":
                assert leaves[1].getpalette() == mask.getpalette()


def test_masks_beside_every_kind_of_image() -> None:
    """Tensor masks of any dtype, of instances and of batches, and arrays, move as Pillow moves a mask."""
    image = noise(3, 12, 10)
    labels = noise(12, 10) % 5
    transform = signs(single("HorizontalShear", 0.3, masks=["mask"]), True)
    state = torch.get_rng_state()
    matrix = (1, -0.3, 0, 0, 1, 0)
    moved = Image.fromarray(labels.numpy()).transform((10, 12), Image.Transform.AFFINE, matrix, fillcolor=0)
    wanted = torch.from_numpy(np.array(moved))
    for dtype in (torch.uint8, torch.bool, torch.int64, torch.float32):
        for shape in ((12, 10), (1, 12, 10), (2, 12, 10)):
            torch.set_rng_state(state)
            mask = tv_tensors.Mask(labels.to(dtype).expand(shape))
            got = transform(tv_tensors.Image(image), {"masks": mask})[1]["masks"]
            assert (type(got), got.dtype, got.shape) == (tv_tensors.Mask, dtype, shape)
            assert torch.equal(got.as_subclass(Tensor), wanted.to(dtype).expand(shape))
    arrays = {"image": image.permute(1, 2, 0).numpy(), "mask": labels.numpy(), "bboxes": np.zeros((2, 4))}
    torch.set_rng_state(state)
    got = transform(arrays)
    assert np.array_equal(got["mask"], wanted.numpy())
    assert got["bboxes"] is arrays["bboxes"]
    torch.set_rng_state(state)
    as_channels = transform({**arrays, "mask": labels[..., None].expand(12, 10, 2).numpy()})["mask"]
    assert np.array_equal(as_channels, np.stack([wanted.numpy()] * 2, -1))
    with pytest.raises(ValueError, match=r"torch.uint8 cannot be filled with -1: change mask_fill"):
        single("Rotate", 30.0, mask_fill=-1)(tv_tensors.Image(image), tv_tensors.Mask(labels))


def test_masks_of_a_batch() -> None:
    images, masks = noise(8, 3, 12, 10), noise(8, 12, 10)
    got, moved = PolicyTransform(Policy(), seed=1, mask_fill=9)(images, tv_tensors.Mask(masks))
    operations, negative = PolicyTransform(Policy(), seed=1).draw(8)
    assert torch.equal(got, PAPER.apply(images, operations, negative))
    for operation, sign, mask, one in zip(operations.tolist(), negative.tolist(), masks, moved, strict=True):
        wanted = Image.fromarray(mask.numpy())
        for index, minus in zip(PAPER.elements_of(operation), sign, strict=True):
            element = PAPER.elements[index]
            if element.transform.name in GEOMETRIC:
                matrix = element.transform.kernel.matrix(element.value(minus), 12, 10)
                wanted = wanted.transform(wanted.size, Image.Transform.AFFINE, matrix, fillcolor=9)
        assert np.array_equal(np.array(wanted), one.numpy())
    arrays = {"image": images.permute(0, 2, 3, 1).numpy(), "mask": masks.numpy()}
    again = PolicyTransform(Policy(), seed=1, mask_fill=9, masks=["mask"])(arrays)
    assert np.array_equal(again["image"], got.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(again["mask"], moved.numpy())


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ((noise(2, 3, 8, 8), tv_tensors.Mask(noise(8, 8))), r"must be \[2, ..., H, W\], got \[8, 8\]"),
        ((noise(2, 3, 8, 8), boxes_of([[0, 0, 2, 2]], 8, 8)), "boxes beside a batch .* give a list of samples"),
        ((tv_tensors.Image(noise(2, 3, 8, 8)), tv_tensors.Image(noise(3, 3, 8, 8))), "batches of one length, or none"),
        ({"image": pictures(2), "mask": tv_tensors.Mask(noise(2, 8, 8))}, "mask .* in no list, but the images are"),
        ({"image": pictures(1), "boxes": [None, boxes_of([[0, 0, 2, 2]], 8, 8)]}, "boxes .* index 1 of its list"),
    ],
)  # fmt: skip
def test_what_cannot_be_assigned_is_refused(sample: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyTransform(Policy())(sample)


# --- boxes and key points ---


@pytest.mark.parametrize(
    ("name", "magnitude", "negative", "by_hand"),
    [
        # content moves by -0.3 * 20 = -6 columns, and the part that leaves the image is cut off
        ("HorizontalTranslate", 0.3, False, [[0.0, 2.0, 4.0, 8.0], [6.0, 0.0, 14.0, 10.0]]),
        # by 0.15 * 10 = 1.5 rows, which Pillow rounds to -floor(-1.5 + 0.5) = 1
        ("VerticalTranslate", 0.15, True, [[4.0, 3.0, 10.0, 9.0], [12.0, 1.0, 20.0, 10.0]]),
        # x' = x - 0.3 y at the corners: 4 - 0.3 * 8 and 10 - 0.3 * 2; 12 - 3 and 20 - 0
        ("HorizontalShear", 0.3, False, [[1.6, 2.0, 9.4, 8.0], [9.0, 0.0, 20.0, 10.0]]),
        # y' = y + 0.1 x: 2 + 0.4 and 8 + 1; 0 + 1.2 and 10 + 2 -> 10
        ("VerticalShear", 0.1, True, [[4.0, 2.4, 10.0, 9.0], [12.0, 1.2, 20.0, 10.0]]),
        # a quarter turn counter-clockwise about (10, 5): (x, y) -> (y + 5, 15 - x), then clamped to 20 x 10
        ("Rotate", 90.0, False, [[7.0, 5.0, 13.0, 10.0], [5.0, 0.0, 15.0, 3.0]]),
        ("Invert", None, False, [[4.0, 2.0, 10.0, 8.0], [12.0, 0.0, 20.0, 10.0]]),
    ],
)  # fmt: skip
def test_boxes_computed_by_hand(
    name: str, magnitude: float | None, negative: bool, by_hand: list[list[float]]
) -> None:
    image = tv_tensors.Image(noise(3, 10, 20))
    boxes = boxes_of([[4.0, 2.0, 10.0, 8.0], [12.0, 0.0, 20.0, 10.0]], 10, 20)
    _, moved = signs(single(name, magnitude), negative)(image, boxes)
    assert (moved.format, moved.canvas_size) == (boxes.format, (10, 20))
    torch.testing.assert_close(moved.as_subclass(Tensor), torch.tensor(by_hand))


@pytest.mark.parametrize("form", ["XYXY", "XYWH", "CXCYWH"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_boxes_and_points_equal_torchvision(form: str, dtype: torch.dtype) -> None:
    """Rotations and shears of every magnitude, and two of them one after the other."""
    boxes = boxes_of([[4, 2, 10, 8], [12, 0, 7, 9], [0, 0, 0, 0]], 40, 60, form).to(dtype)
    boxes = tv_tensors.wrap(boxes.as_subclass(Tensor), like=boxes_of([[0, 0, 1, 1]], 40, 60, form))
    points = tv_tensors.KeyPoints(torch.tensor([[3.0, 4.0], [59.0, 39.0]]), canvas_size=(40, 60))
    checked = 0
    for operation in range(PAPER.num_operations):
        geometric = sum(PAPER.elements[i].transform.name != "Invert" for i in PAPER.elements_of(operation))
        if geometric == 2 and not dtype.is_floating_point:  # torchvision truncates after each
            continue
        for negative in ([False, False], [True, False]):
            steps = [
                (PAPER.elements[index].transform.name, PAPER.elements[index].value(sign))
                for index, sign in zip(PAPER.elements_of(operation), negative, strict=True)
            ]
            if not all(name in ("Rotate", "HorizontalShear", "Invert") for name, _ in steps):
                continue
            wanted, wanted_points = boxes, cast(Any, points)
            for name, value in steps:
                none = {"angle": 0.0, "translate": [0, 0], "scale": 1.0}
                if name == "Rotate":
                    wanted, wanted_points = (F.rotate(one, value) for one in (wanted, wanted_points))
                elif name == "HorizontalShear":  # torchvision's shear is in degrees, of the content
                    shear: dict[str, Any] = {
                        **none,
                        "shear": [math.degrees(math.atan(value)), 0.0],
                        "center": [0, 0],
                    }
                    wanted, wanted_points = (F.affine(one, **shear) for one in (wanted, wanted_points))
            motion = Motion(PAPER, operation, negative)
            tolerance = {"atol": 1e-4, "rtol": 1e-5} if dtype.is_floating_point else {"atol": 1, "rtol": 0}
            torch.testing.assert_close(motion.boxes(boxes), wanted, **tolerance)
            torch.testing.assert_close(motion.key_points(points), wanted_points, atol=1e-4, rtol=1e-5)
            checked += 1
    assert checked == 2 * (7 * 7 if dtype.is_floating_point else 13)


def test_points_follow_their_pixels() -> None:
    """A bright pixel and the key point at its centre stay together, whichever elements move them."""
    image = torch.zeros(1, 41, 41, dtype=torch.uint8)
    image[0, 23, 18] = 255
    mask = tv_tensors.Mask(image[0])
    points = tv_tensors.KeyPoints(torch.tensor([[18.5, 23.5]]), canvas_size=(41, 41))
    transform = PolicyTransform(Policy(), seed=2)
    found = 0
    for _ in range(60):
        _, moved, point = transform(tv_tensors.Image(image), mask, points)
        where = moved.nonzero()
        if len(where):  # nearest neighbour may lose a pixel in a rotation
            x, y = point[0].tolist()
            assert min(math.hypot(column + 0.5 - x, row + 0.5 - y) for row, column in where.tolist()) < 1.5
            found += 1
    assert found > 30


def test_rotated_boxes_and_unknown_transforms_are_refused() -> None:
    image = tv_tensors.Image(noise(3, 8, 8))
    with pytest.raises(ValueError, match=r"format CXCYWHR cannot be moved: .*ConvertBoundingBoxFormat"):
        PolicyTransform(Policy())(image, boxes_of([[3.0, 3.0, 2.0, 2.0, 10.0]], 8, 8, "CXCYWHR"))
    own = Transform("Own", kernel=EachImage(unchanged))
    toned = Transform("Toned", kernel=EachImage(unchanged), family="tone")
    mask = tv_tensors.Mask(noise(8, 8))
    unknown = PolicyTransform(Policy(space=Space("own", [Element(own)], arity=1)))
    assert torch.equal(unknown(image), image)
    with pytest.raises(
        ValueError, match=r"Own is a transform of your own, .* Affine\(matrix\) .* family='tone'"
    ):
        unknown(image, mask)
    for transform in (toned, IDENTITY):
        known = PolicyTransform(Policy(space=Space("own", [Element(transform)], arity=1)))
        assert torch.equal(known(image, mask)[1], mask)


# --- clips ---


def test_a_clip_gets_one_operation() -> None:
    clip = noise(1, 3, 12, 10).expand(5, 3, 12, 10)
    transform = PolicyTransform(Policy(), seed=0)
    for _ in range(20):
        got = transform(tv_tensors.Video(clip))
        assert (type(got), got.shape) == (tv_tensors.Video, clip.shape)
        assert all(torch.equal(frame, got[0]) for frame in got)
    torch.manual_seed(0)
    clips = PolicyTransform(Policy())(tv_tensors.Video(clip[None].expand(6, 5, 3, 12, 10)))
    torch.manual_seed(0)
    assert torch.equal(clips[:, 0], PolicyTransform(Policy())(clip[:1].expand(6, 3, 12, 10)))
    assert torch.equal(clips[:, 4], clips[:, 0])


# --- formats ---


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("name", ["Rotate", "Contrast", "Invert"])
def test_alpha_equals_pillow(mode: str, name: str) -> None:
    """Pillow's own functions of images with alpha: it moves, opaque where the image is filled, and is not toned."""
    image = F.to_pil_image(noise(4, 12, 10)).convert(mode)
    magnitude = {"Rotate": 30.0, "Contrast": 1.6, "Invert": None}[name]
    got = signs(single(name, magnitude), False)(image)
    grey = {"RGBA": (128, 128, 128, 255), "LA": (128, 255)}[mode]
    if name == "Rotate":
        wanted = image.rotate(30, fillcolor=grey)
    elif name == "Contrast":
        wanted = ImageEnhance.Contrast(image).enhance(1.6)
    else:
        plain = ImageOps.invert(image.convert(mode[:-1]))
        wanted = Image.merge(mode, (*plain.split(), image.getchannel("A")))
    assert (got.mode, got.tobytes()) == (mode, wanted.tobytes())


def test_alpha_of_tensors_and_arrays() -> None:
    """As of PIL images: alone, in a batch, and as arrays."""
    images = noise(40, 4, 12, 10)
    torch.manual_seed(0)
    transform = PolicyTransform(Policy())
    wanted = torch.stack([F.pil_to_tensor(transform(F.to_pil_image(image))) for image in images])
    assert (wanted[:, 3] != images[:, 3]).any()
    torch.manual_seed(0)
    assert torch.equal(transform(images), wanted)
    torch.manual_seed(0)
    assert torch.equal(torch.stack([transform(image) for image in images]), wanted)
    torch.manual_seed(0)
    arrays = [transform(image) for image in images.permute(0, 2, 3, 1).numpy()]
    assert np.array_equal(np.stack(arrays), wanted.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("mode", ["P", "PA", "CMYK", "YCbCr", "HSV", "1"])
def test_other_modes_are_converted_as_in_a_search(mode: str) -> None:
    picture = pictures(1)[0]
    image = picture.convert("P").convert(mode) if mode == "PA" else picture.convert(mode)
    result = {"1": "L", "PA": "RGBA"}.get(mode, "RGB")
    got, wanted = (PolicyTransform(Policy(), seed=3)(one) for one in (image, image.convert(result)))
    assert (got.mode, got.tobytes()) == (result, wanted.tobytes())


def test_16_bits_are_scaled_by_their_range() -> None:
    """0..65535 becomes 0..255, as in torchvision: of PIL images, tensors and arrays."""
    levels = np.arange(0, 65536, 512, dtype=np.uint16).reshape(8, 16)
    wanted = F.to_dtype(torch.from_numpy(levels)[None], torch.uint8, scale=True)
    identity = single("Identity")
    assert np.array_equal(np.array(identity(Image.fromarray(levels))), wanted[0].numpy())
    with pytest.raises(ValueError, match="32 bits per pixel"):  # whose range nothing says
        identity(Image.fromarray(levels.astype(np.int32)))
    assert torch.equal(identity(torch.from_numpy(levels)[None]), wanted)
    assert torch.equal(identity(torch.from_numpy(levels)[None, None]), wanted[None])
    assert np.array_equal(identity(levels), wanted[0].numpy())
    assert np.array_equal(identity(levels[None, ..., None]), wanted.permute(1, 2, 0)[None].numpy())


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 1), (12, 10, 3), (6, 12, 10, 1), (6, 12, 10, 3)])
def test_arrays(shape: tuple[int, ...]) -> None:
    """Also read-only ones, as from JAX; the result is the tensors', of the same shape, and new."""
    array = noise(*shape).numpy()
    array.flags.writeable = False
    before = array.copy()
    got = PolicyTransform(Policy(), seed=5)({"image": array, "label": np.int64(3)})["image"]
    images = torch.from_numpy(before)
    images = images[None] if len(shape) == 2 else images.movedim(-1, -3)
    wanted = PolicyTransform(Policy(), seed=5)(images)
    wanted = wanted[0] if len(shape) == 2 else wanted.movedim(-3, -1)
    assert np.array_equal(got, wanted.numpy())
    assert (got.dtype, got.shape, got.flags.c_contiguous, got.flags.writeable) == (
        np.uint8,
        shape,
        True,
        True,
    )
    assert np.array_equal(array, before)


# --- torchvision's datasets ---

VOC = """<annotation><filename>{name}.png</filename><size><width>20</width><height>10</height><depth>3</depth></size>
<object><name>cat</name><bndbox><xmin>4</xmin><ymin>2</ymin><xmax>10</xmax><ymax>8</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>12</xmin><ymin>0</ymin><xmax>20</xmax><ymax>10</ymax></bndbox></object></annotation>"""


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two images of Pascal VOC 2012, with boxes and class masks."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in (
        "JPEGImages",
        "Annotations",
        "SegmentationClass",
        "ImageSets/Main",
        "ImageSets/Segmentation",
    ):
        (root / folder).mkdir(parents=True)
    for name, image in zip("ab", noise(2, 3, 10, 20), strict=True):
        F.to_pil_image(image).save(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(VOC.format(name=name))
        mask = Image.fromarray((image[0] % 21).numpy()).convert("P")
        mask.putpalette(list(range(63)))
        mask.save(root / "SegmentationClass" / f"{name}.png")
    for kind in ("Main", "Segmentation"):
        (root / "ImageSets" / kind / "train.txt").write_text("a\nb\n")
    return tmp_path


def test_detection_samples_of_torchvision(voc: Path) -> None:
    """The image against Pillow, boxes against those above computed by hand; labels stay."""
    plain = VOCDetection(str(voc), image_set="train")
    dataset = VOCDetection(str(voc), image_set="train", transforms=single("HorizontalTranslate", 0.3))
    wrapped = wrap_dataset_for_transforms_v2(dataset)
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = wrapped[0]
        sign = 1 if target["boxes"][0, 0] == 0 else -1
        seen.add(sign)
        matrix = (1, 0, sign * 6, 0, 1, 0)
        wanted = plain[0][0].transform((20, 10), Image.Transform.AFFINE, matrix, fillcolor=(128, 128, 128))
        assert image.tobytes() == wanted.tobytes()
        by_hand = {1: [[0, 2, 4, 8], [6, 0, 14, 10]], -1: [[10, 2, 16, 8], [18, 0, 20, 10]]}[sign]
        assert target["boxes"].tolist() == by_hand
        assert target["labels"].tolist() == [8, 12]
    assert seen == {1, -1}


def test_segmentation_samples_of_torchvision(voc: Path) -> None:
    """Wrapped, masks are known as such; as PIL images they must be said to be."""
    torch.manual_seed(0)
    for masks, wrap in (([1], lambda dataset: dataset), (None, wrap_dataset_for_transforms_v2)):
        transform = v2.Compose([signs(single("VerticalShear", 0.2, masks=masks, mask_fill=255), False)])
        picture, palette = VOCSegmentation(str(voc), image_set="train")[0]
        image, mask = wrap(VOCSegmentation(str(voc), image_set="train", transforms=transform))[0]
        mask = mask.numpy()[0] if isinstance(mask, Tensor) else np.array(mask)
        matrix = (1, 0, 0, 0.2, 1, 0)
        affine = Image.Transform.AFFINE
        assert image.tobytes() == picture.transform((20, 10), affine, matrix, fillcolor=(128,) * 3).tobytes()
        wanted = np.array(palette.transform((20, 10), affine, matrix, fillcolor=255))
        assert (wanted == 255).any()
        assert np.array_equal(mask, wanted)
