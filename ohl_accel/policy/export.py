"""A policy as a plain table, or as a Python file of Pillow's or torchvision's calls, which needs nothing of ours.

Only the paper's transforms and Identity can be written as calls; the table has every policy.
"""

import csv
import io
from collections.abc import Mapping

from ohl_accel.errors import UserError, did_you_mean
from ohl_accel.operations.transforms import Element
from ohl_accel.policy import Policy

FORMATS = ("csv", "pillow", "torchvision")

_PILLOW = {
    "HorizontalShear": "affine(image, 1, {m}, 0, 0, 1, 0)",
    "VerticalShear": "affine(image, 1, 0, 0, {m}, 1, 0)",
    "HorizontalTranslate": "affine(image, 1, 0, {m} * image.width, 0, 1, 0)",
    "VerticalTranslate": "affine(image, 1, 0, 0, 0, 1, {m} * image.height)",
    "Rotate": "image.rotate({m}, fillcolor=grey(image))",
    "ColorAdjust": "ImageEnhance.Color(image).enhance({m})",
    "Posterize": "ImageOps.posterize(image, int({m}))",
    "Solarize": "ImageOps.solarize(image, int({m}))",
    "Contrast": "ImageEnhance.Contrast(image).enhance({m})",
    "Sharpness": "ImageEnhance.Sharpness(image).enhance({m})",
    "Brightness": "ImageEnhance.Brightness(image).enhance({m})",
    "AutoContrast": "ImageOps.autocontrast(image)",
    "Equalize": "ImageOps.equalize(image)",
    "Invert": "ImageOps.invert(image)",
    "Identity": "image.copy()",
}
_TORCHVISION = {
    "HorizontalShear": "affine(image, shear=[degrees(atan({m})), 0.0])",
    "VerticalShear": "affine(image, shear=[0.0, degrees(atan({m}))])",
    "HorizontalTranslate": "affine(image, translate=[-floor({m} * F.get_size(image)[1] + 0.5), 0])",
    "VerticalTranslate": "affine(image, translate=[0, -floor({m} * F.get_size(image)[0] + 0.5)])",
    "Rotate": "F.rotate(image, {m}, fill=128)",
    "ColorAdjust": "F.adjust_saturation(image, {m})",
    "Posterize": "F.posterize(image, int({m}))",
    "Solarize": "F.solarize(image, int({m}))",
    "Contrast": "F.adjust_contrast(image, {m})",
    "Sharpness": "F.adjust_sharpness(image, {m})",
    "Brightness": "F.adjust_brightness(image, {m})",
    "AutoContrast": "F.autocontrast(image)",
    "Equalize": "F.equalize(image)",
    "Invert": "F.invert(image)",
    "Identity": "image",
}

_PILLOW_HEAD = """from PIL import Image, ImageEnhance, ImageOps


def grey(image):
    return (128,) * len(image.getbands())


def affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=grey(image))
"""
_TORCHVISION_HEAD = """from math import atan, degrees, floor

from torchvision.transforms.v2 import functional as F


def affine(image, translate=(0, 0), shear=(0.0, 0.0)):
    return F.affine(image, 0.0, list(translate), 1.0, list(shear), center=[0, 0], fill=128)
"""
_TAIL = '''

def augment(image):
    """Apply an operation, drawn with its probability, to one image."""
    elements = random.choices([row[1] for row in OPERATIONS], [row[0] for row in OPERATIONS])[0]
    for element in elements:
        image = ELEMENTS[element](image, random.choice((-1, 1)))
    return image
'''


def export(policy: Policy, form: str) -> str:
    """The text of a table or of a Python file.

    Args:
        policy: any.
        form: one of `FORMATS`.

    Raises:
        UserError: for another format, or a transform that has no call in the library.
    """
    if form == "csv":
        return _table(policy)
    if form == "pillow":
        return _program(policy, form, _PILLOW_HEAD, _PILLOW)
    if form == "torchvision":
        return _program(policy, form, _TORCHVISION_HEAD, _TORCHVISION)
    hint = did_you_mean(form, FORMATS, 1, f"known: {', '.join(FORMATS)}")
    raise UserError(f"--format {form}: {hint}")


def _table(policy: Policy) -> str:
    space = policy.space
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = (
        f"{name}_{i + 1}" for i in range(space.arity) for name in ("transform", "magnitude", "random_sign")
    )
    writer.writerow(["operation", "probability", *columns])
    for operation, probability in _by_probability(policy):
        elements = [space.elements[index] for index in space.elements_of(operation)]
        cells = [
            cell for one in elements for cell in (one.transform.name, one.magnitude, str(one.signed).lower())
        ]
        writer.writerow([operation, probability, *cells])
    return text.getvalue()


def _program(policy: Policy, library: str, head: str, calls: Mapping[str, str]) -> str:
    space = policy.space
    lines = [
        f'"""A policy as calls of {library}: use augment(image). Probabilities sum to 1."""',
        "",
        "import random",
        head,
        "ELEMENTS = [",
        *(f"    lambda image, sign: {_call(element, library, calls)}," for element in space.elements),
        "]",
        "",
        "OPERATIONS = [  # probability, elements in the order in which they are applied",
        *(
            f"    ({probability!r}, {space.elements_of(operation)!r}),  # {space.operation_name(operation)}"
            for operation, probability in _by_probability(policy)
        ),
        "]",
    ]
    return "\n".join(lines) + "\n" + _TAIL


def _call(element: Element, library: str, calls: Mapping[str, str]) -> str:
    name = element.transform.name
    if name not in calls:
        raise UserError(f"{name} is a transform of your own and no call of {library}: use --format csv")
    sign = "sign * " if element.signed else ""
    return calls[name].format(m=f"{sign}{element.magnitude!r}")


def _by_probability(policy: Policy) -> list[tuple[int, float]]:
    return sorted(enumerate(policy.probabilities.tolist()), key=lambda pair: (-pair[1], pair[0]))
