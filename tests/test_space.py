"""Search spaces: from data, side by side, with transforms of the user's own; and policies over them."""

import itertools
import json
import math
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from ohl_accel import Policy, PolicyTransform
from ohl_accel.errors import UserError
from ohl_accel.operations.kernels.family import EachImage
from ohl_accel.operations.kernels.tone import Curve
from ohl_accel.operations.space import PAPER, PAPER_IDENTITY, Space
from ohl_accel.operations.space_file import open_space
from ohl_accel.operations.transforms import (
    Element,
    Magnitude,
    Transform,
    register_transform,
    transform_named,
)
from ohl_accel.policy.baselines import open_policy, resolve_augment
from ohl_accel.policy.protocol import AugmentationPolicy, BatchDraw, NoPolicy
from ohl_accel.recipe import AugmentSection
from ohl_accel.rng import keyed_generator

INVERT, ROTATE, POSTERIZE = (transform_named(name) for name in ("Invert", "Rotate", "Posterize"))
FOUR = (Element(INVERT), Element(ROTATE, 90), Element(ROTATE, 30.5), Element(POSTERIZE, 3))

OWN_TRANSFORM = '''
"""Adds a constant to every level."""

import torch
from PIL import Image
from ohl_accel.operations.kernels.family import EachImage
from ohl_accel.operations.transforms import Magnitude, Transform, register_transform

def lighten(images_nCHW, levels_n):
    return (images_nCHW + levels_n[:, None, None, None]).clamp(0, 255).to(torch.uint8)

def lighten_pil(image, levels):
    return image.point([min(max(level + int(levels), 0), 255) for level in range(256)] * len(image.getbands()))

register_transform(
    Transform("Lighten", EachImage(lighten), lighten_pil, Magnitude("levels", 0, 255), signed=True)
)
'''
OWN_SPACE = """
arity: 2
import: my_transforms.py
elements:
  - {transform: Lighten, magnitudes: [10, 200]}
  - {transform: Equalize}
  - {transform: Rotate, magnitude: 45}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A YAML file of a space with a custom transform."""
    (tmp_path / "my_transforms.py").write_text(OWN_TRANSFORM)
    (tmp_path / "lighter.yaml").write_text(OWN_SPACE)
    return tmp_path / "lighter.yaml"


def noise(count: int) -> Tensor:
    generator = keyed_generator(0, "test")
    return torch.randint(0, 256, (count, 3, 12, 10), dtype=torch.uint8, generator=generator)


def assert_equals_pil(space: Space, operation_n: Tensor) -> None:
    """The batched kernels of a space on operations and signs of all kinds, against Pillow."""
    images, generator = noise(len(operation_n)), keyed_generator(1, "test")
    negative = torch.rand(len(operation_n), space.arity, generator=generator) < 0.5
    got = space.apply(images, operation_n, negative)
    for i, operation in enumerate(operation_n.tolist()):
        image = space.apply_to_pil(to_pil_image(images[i]), operation, negative[i].tolist())
        assert torch.equal(got[i], pil_to_tensor(image)), space.operation_name(operation)


@pytest.mark.parametrize("combine", ["ordered", "distinct"])
@pytest.mark.parametrize("arity", [1, 2, 3])
def test_numbers_and_elements(arity: int, combine: str) -> None:
    space = Space("four", FOUR, arity=arity, combine=combine) if (arity, combine) != (3, "distinct") else None
    if space is None:
        space = Space("four", [*FOUR, Element(transform_named("Identity"))], arity=3, combine="distinct")
    transforms = [element.transform.name for element in space.elements]
    wanted = [
        picks
        for picks in itertools.product(range(space.num_elements), repeat=arity)
        if combine == "ordered" or len({transforms[pick] for pick in picks}) == arity
    ]
    assert space.num_operations == len(wanted)
    assert [space.elements_of(operation) for operation in range(len(wanted))] == wanted
    assert [space.operation_of(*picks) for picks in wanted] == list(range(len(wanted)))
    all_operations = torch.arange(len(wanted))
    assert space.elements_of(all_operations).tolist() == [list(picks) for picks in wanted]
    assert space.max_entropy == pytest.approx(Policy(space=space).entropy)
    assert_equals_pil(space, all_operations.repeat(4))

    theta = torch.randn(len(wanted), dtype=torch.float64, generator=keyed_generator(2, "test"))
    policy = Policy(theta, space=space)
    marginals = torch.zeros(arity, space.num_elements, dtype=torch.float64)
    for picks, probability in zip(wanted, policy.probabilities, strict=True):
        marginals[range(arity), picks] += probability
    torch.testing.assert_close(policy.element_probabilities, marginals)
    torch.testing.assert_close(space.uniform_marginals, Policy(space=space).element_probabilities)
    assert policy.top(1)[0][0] == space.operation_name(int(theta.argmax()))
    assert policy.bottom(1)[0][0] == space.operation_name(int(theta.argmin()))


def test_two_spaces_side_by_side() -> None:
    """Each has tables of its own: an element's index and magnitudes mean another thing in each."""
    reversed_paper = Space("backwards", PAPER.elements[::-1])
    images, negative = noise(36), torch.zeros(36, dtype=torch.bool)
    forwards = PAPER.apply_elements(images, torch.arange(36), negative)
    backwards = reversed_paper.apply_elements(images, 35 - torch.arange(36), negative)
    assert torch.equal(forwards, backwards)
    assert not torch.equal(forwards, reversed_paper.apply_elements(images, torch.arange(36), negative))
    assert torch.equal(forwards, PAPER.apply_elements(images, torch.arange(36), negative))


def test_the_space_with_identity() -> None:
    assert (PAPER_IDENTITY.num_elements, PAPER_IDENTITY.num_operations) == (37, 37**2)
    unchanged = PAPER_IDENTITY.operation_of(36, 36)
    assert PAPER_IDENTITY.operation_name(unchanged) == "Identity > Identity"
    images = noise(5)
    kept = PAPER_IDENTITY.apply(images, torch.full((5,), unchanged), torch.ones(5, 2, dtype=torch.bool))
    assert torch.equal(kept, images)
    assert kept.data_ptr() != images.data_ptr()
    operations = torch.arange(0, 1369, 3)
    assert_equals_pil(PAPER_IDENTITY, operations)
    firsts = torch.arange(36)  # Identity in the second position leaves what the paper's element made
    alone = PAPER.apply_elements(noise(36), firsts, torch.zeros(36, dtype=torch.bool))
    pairs = torch.tensor([PAPER_IDENTITY.operation_of(first, 36) for first in range(36)])
    assert torch.equal(PAPER_IDENTITY.apply(noise(36), pairs, torch.zeros(36, 2, dtype=torch.bool)), alone)


@pytest.mark.parametrize("arity", [1, 2, 3])
def test_a_policy_samples_from_its_space(arity: int) -> None:
    """Keys: operations by trajectory; signs, one for each position, the same for all trajectories."""
    space = Space("four", FOUR, arity=arity)
    theta = torch.linspace(-1, 1, 4**arity, dtype=torch.float64)
    policy, images = Policy(theta, space=space), noise(8)
    assert isinstance(policy, AugmentationPolicy)
    got, operations = policy.apply(images[2:6], BatchDraw(7, 3, 1, batch_size=8, own=slice(2, 6)))
    wanted = policy.sample(8, keyed_generator(7, "operations", 3, 1))
    assert torch.equal(operations, wanted)
    purposes = ("first sign", "second sign", "third sign")[:arity]
    signs = [torch.randint(2, (8,), generator=keyed_generator(7, purpose, 3)) for purpose in purposes]
    negative = torch.stack(signs, 1).bool()
    assert torch.equal(got, space.apply(images, wanted, negative)[2:6])

    transform = PolicyTransform(policy, seed=0)
    whole = transform(images)
    again = PolicyTransform(policy, seed=0)
    one_by_one = [again(to_pil_image(image)) for image in images]
    assert torch.equal(whole, torch.stack([pil_to_tensor(image) for image in one_by_one]))
    assert str(transform) == f"PolicyTransform(operations={4**arity}, entropy={policy.entropy:.2f}, seed=0)"


def test_no_policy() -> None:
    images = noise(3)
    assert isinstance(NoPolicy(), AugmentationPolicy)
    got, operations = NoPolicy().apply(images, BatchDraw(0, 0, 0, 3, slice(0, 3)))
    assert torch.equal(got, images)
    assert operations is None


def test_equality_and_words() -> None:
    same = Space("other-name", PAPER.elements)
    assert same == PAPER
    assert hash(same) == hash(PAPER)
    assert PAPER != PAPER_IDENTITY
    assert Space("one", FOUR, arity=1) != Space("one", FOUR, arity=2)
    assert Space("one", FOUR) != Space("one", FOUR[::-1])
    assert Space("one", FOUR) != Space("one", FOUR, combine="distinct")
    assert repr(PAPER) == "Space(paper: 36 elements, arity 2, 1296 operations)"
    assert repr(Space("one", FOUR, combine="distinct")) == (
        "Space(one: 4 elements, arity 2, distinct, 10 operations)"
    )

    theta = torch.zeros(1296, dtype=torch.float64)
    theta[PAPER.operation_of(23, 19)] = 1.0
    assert repr(Policy()) == "Policy(paper: 1296 operations, uniform, entropy 7.17 of 7.17 nats)"
    assert repr(Policy(theta)) == (
        "Policy(paper: 1296 operations, entropy 7.17 of 7.17 nats; most probable: Solarize 179 > Posterize 5.6, "
        "1.46 x uniform)"
    )
    assert Policy(theta) == Policy(theta, {"seed": 1}, space=same)
    assert Policy(theta) != Policy()
    assert Policy(space=Space("one", FOUR)) != Policy(space=Space("one", FOUR[::-1]))
    assert Policy() != 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(Policy())


@pytest.mark.parametrize("space", [PAPER_IDENTITY, Space("four", FOUR, arity=3, combine="ordered")])
def test_policy_files_carry_their_space(space: Space, tmp_path: Path) -> None:
    theta = torch.randn(space.num_operations, dtype=torch.float64, generator=keyed_generator(0, "test"))
    policy = Policy(theta, {"seed": 3}, space=space)
    policy.save(tmp_path / "policy.json")
    loaded = Policy.load(tmp_path)
    assert loaded == policy
    assert (loaded.space.name, loaded.provenance) == (space.name, {"seed": 3})
    document = json.loads((tmp_path / "policy.json").read_text())
    assert document["schema_version"] == 2
    assert document["space"] == space.document()
    assert Space.from_document(document["space"]) == space
    assert pickle.loads(pickle.dumps(space)) == space


# --- spaces from YAML files, with transforms of the user's own ---


def test_a_space_with_a_custom_transform(own: Path, tmp_path: Path) -> None:
    space = open_space(str(own))
    assert [element.name for element in space.elements] == [
        "Lighten 10",
        "Lighten 200",
        "Equalize",
        "Rotate 45",
    ]
    assert (space.name, space.num_operations) == ("lighter", 16)
    assert_equals_pil(space, torch.arange(16).repeat(8))
    assert open_space(str(own)) == space

    section = AugmentSection(space=str(own))
    policy = open_policy(section, 12)
    assert isinstance(policy, Policy)
    assert policy == Policy(space=space)
    policy.save(tmp_path / "policy.json")
    assert Policy.load(tmp_path).space == space

    resolved = resolve_augment(section, 12)  # what the run folder's recipe holds: no file is needed any more
    own.unlink()
    assert isinstance(resolved.space, dict)
    assert AugmentSection.model_validate(resolved.model_dump(mode="json")) == resolved
    assert open_policy(resolved, 12) == policy


def load_elsewhere(pickled: bytes, policy_file: str) -> list[str]:
    """In a process that has not seen the user's transforms."""
    refused = []
    try:
        Policy.load(policy_file)
    except ValueError as error:
        refused.append(str(error))
    return [*refused, repr(pickle.loads(pickled)), repr(Policy.load(policy_file).space)]


def test_custom_transforms_in_another_process(own: Path, tmp_path: Path) -> None:
    """A policy file imports nothing; a pickled space imports what its YAML file named, as workers need."""
    space = open_space(str(own))
    Policy(space=space).save(tmp_path / "policy.json")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        refused, *found = pool.apply(load_elsewhere, (pickle.dumps(space), str(tmp_path / "policy.json")))
    assert "unknown transform 'Lighten'" in refused
    assert "must be registered first" in refused
    assert found == [repr(space)] * 2


def test_a_transform_without_a_pillow_function() -> None:
    """The kernel serves single PIL images as well."""

    def swap_halves(images_nCHW: Tensor, magnitude_n: Tensor) -> Tensor:
        return images_nCHW.roll(images_nCHW.shape[3] // 2, 3)

    swap = register_transform(Transform("SwapHalves", EachImage(swap_halves)))
    space = Space("swap", [Element(swap), Element(INVERT)])
    assert_equals_pil(space, torch.arange(4))
    grey = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    swapped = space.apply_to_pil(grey, space.operation_of(0, 1), (False, False))
    assert swapped.mode == "L"
    wanted = ImageOps.invert(Image.fromarray(np.roll(np.asarray(grey), 2, 1)))
    assert np.array_equal(np.asarray(swapped), np.asarray(wanted))


def test_signed_curves() -> None:
    shift = Transform(
        "ShiftLevels",
        Curve(lambda levels: (torch.arange(256) + int(levels)).clamp(0, 255).to(torch.uint8)),
        lambda image, levels: image.point([min(max(v + int(levels), 0), 255) for v in range(256)] * 3),
        Magnitude("levels", 0, 100),
        signed=True,
    )
    assert_equals_pil(Space("shift", [Element(shift, 50), Element(shift, 99)]), torch.arange(4).repeat(8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Transform("a b", EachImage(lambda images, _: images)), "transform name 'a b' must be a letter"),
        (lambda: register_transform(Transform("Invert", INVERT.kernel)), "Invert is built in: choose another"),
        (lambda: Transform("Both", INVERT.kernel, signed=True), "signed: it needs a magnitude whose minimum"),
        (lambda: Magnitude("degrees", 3, 1), r"3\.\.1 is not a valid range"),
        (lambda: Element(ROTATE, math.nan), r"Rotate takes magnitudes in 0\.\.180 .*got nan"),
        (lambda: PAPER.operation_of(36, 0), r"space paper has no operation with the elements \(36, 0\)"),
        (lambda: Space("x", FOUR, combine="distinct").operation_of(1, 2), "has no operation with the elements"),
        (lambda: PAPER.apply(noise(1), torch.tensor([1296]), torch.zeros(1, 2)), r"0\.\.1295, got \[1296\]"),
        (lambda: Policy(torch.zeros(1296), space=PAPER_IDENTITY), r"1369 numbers for space paper-identity"),
        (
            lambda: Space(
                "float", [Element(Transform("Wrong", EachImage(lambda images, _: images.float())))], arity=1
            ).apply(noise(1), torch.tensor([0]), torch.zeros(1, 1, dtype=torch.bool)),
            r"the kernel of Wrong must return uint8 \[1, 3, 12, 10\], got torch.float32",
        ),
    ],
)  # fmt: skip
def test_what_is_not_a_space(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "must be a mapping with elements, got list"),
        ("a: [", "is not YAML"),
        ("a: 1", "unknown field 'a'; known: name, arity"),
        ("element: []", "unknown field 'element'; did you mean elements"),
        ("arity: 2", "elements must be a list, such as"),
        ("elements: [Rotate]", "elements must be a list, such as"),
        ("elements: [{transform: Rotate, magnitudes: 3}]", "magnitudes must be a list of numbers"),
        ("elements: [{transform: Rotate, magnitudes: []}]", "magnitudes must be a list of numbers"),
        ("elements: [{transform: Rotate, magnitude: 1, magnitudes: [1]}]", "magnitudes must be a list of num"),
        ("elements: [{transform: Rotat, magnitudes: [3]}]", "unknown transform 'Rotat'; did you mean Rotate"),
        ("elements: [{transform: Rotate, magnitudes: [3, 300]}]", r"element 1: Rotate takes .*0\.\.180 .*got 300"),
        ("elements: [{transform: Invert}]\narity: 4", r"arity must be 1\.\.3"),
        ("elements: [{transform: Invert}, {transform: Invert}]", "element 1 is Invert, and so is element 0"),
        ("elements: [{transform: Invert, sign: 1}]", "element 0: unknown field 'sign'"),
        ("elements: [{transform: Invert}]\nimport: none.py", "import: .*none.py is not a Python file"),
        ("elements: [{transform: Invert}]\nimport: [os]", "import must be a Python file, got .'os'"),
        ("elements: [{transform: Invert}]\nimport: bad.py", "bad.py failed: ZeroDivisionError: division by zero"),
        ("elements: [{transform: Invert}]\nname: paper", "the name paper is taken by a built-in space"),
    ],
)  # fmt: skip
def test_wrong_space_files(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0")
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        open_policy(AugmentSection(space=str(tmp_path / "mine.yaml")), 12)
    assert str(caught.value).startswith("augment.space: ")
    assert "mine.yaml" in str(caught.value)


def test_spaces_by_name(tmp_path: Path) -> None:
    assert open_space("paper") is PAPER
    assert open_space("paper-identity") is PAPER_IDENTITY
    with pytest.raises(
        UserError, match=r"no space 'paper-identiy'; did you mean paper-identity\? Known: paper,"
    ):
        open_space("paper-identiy")
    with pytest.raises(UserError, match=r"space none\.yaml cannot be read: No such file"):
        open_space("none.yaml")
    assert open_policy(AugmentSection(), 32) == Policy()
    assert open_policy(AugmentSection(space="paper-identity"), 32) == Policy(space=PAPER_IDENTITY)
    assert resolve_augment(AugmentSection(space="paper"), 32).space == "paper"
    assert resolve_augment(AugmentSection(policy="randaugment", space="paper"), 32).space is None


def test_a_learned_policy_brings_its_own_space(tmp_path: Path) -> None:
    learned = Policy(torch.linspace(0, 1, 1369), space=PAPER_IDENTITY)
    learned.save(tmp_path / "policy.json")
    for space in (None, "paper-identity", PAPER_IDENTITY.document()):
        assert open_policy(AugmentSection(policy=str(tmp_path), space=space), 32) == learned
    with pytest.raises(
        UserError,
        match=r"Space\(paper: .* is not the space of augment.policy=.*, Space\(paper-identity: .*"
        "augment.space=null uses the policy's own",
    ):
        open_policy(AugmentSection(policy=str(tmp_path), space="paper"), 32)
