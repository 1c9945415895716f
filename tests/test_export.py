"""Exported policies, run without the package: the table against the policy, the calls against the elements."""

import csv
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_transform import pictures

from ohl_accel import Policy
from ohl_accel.cli import main
from ohl_accel.errors import UserError
from ohl_accel.operations.kernels.blend import unchanged
from ohl_accel.operations.kernels.family import EachImage
from ohl_accel.operations.space import PAPER, PAPER_IDENTITY, Space
from ohl_accel.operations.transforms import Element, Transform
from ohl_accel.policy.export import export

LEARNED = Policy(torch.linspace(-3, 3, 1369, dtype=torch.float64), space=PAPER_IDENTITY)


def test_the_table_is_the_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LEARNED.save(tmp_path / "policy.json")
    file = tmp_path / "policy.csv"
    assert main(None, ["export", str(tmp_path / "policy.json"), "--output", str(file)]) == 0
    rows = list(csv.DictReader(file.read_text().splitlines()))
    capsys.readouterr()
    assert main(None, ["export", str(tmp_path / "policy.json")]) == 0
    assert capsys.readouterr().out == file.read_text()
    probabilities = [float(row["probability"]) for row in rows]
    assert probabilities == sorted(LEARNED.probabilities.tolist(), reverse=True)
    for row in rows:
        elements = [PAPER_IDENTITY.elements[i] for i in PAPER_IDENTITY.elements_of(int(row["operation"]))]
        for number, element in enumerate(elements, 1):
            assert row[f"transform_{number}"] == element.transform.name
            assert row[f"magnitude_{number}"] == ("" if element.magnitude is None else str(element.magnitude))
            assert row[f"random_sign_{number}"] == str(element.signed).lower()


@pytest.mark.parametrize("library", ["pillow", "torchvision"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_calls_are_the_elements(library: str, channels: int) -> None:
    """Pillow's bit for bit; torchvision's as well, but where it rounds a shear's angle."""
    program: dict[str, Any] = {}
    exec(export(LEARNED, library), program)
    assert sum(row[0] for row in program["OPERATIONS"]) == pytest.approx(1)
    assert len(program["OPERATIONS"]) == 1369
    for image in pictures(2, channels):
        for index, call in enumerate(program["ELEMENTS"]):
            for sign in (1, -1):
                wanted = np.array(PAPER_IDENTITY.apply_element_to_pil(image, index, sign < 0))
                got = np.array(call(image, sign))
                exact = library == "pillow" or "Shear" not in PAPER_IDENTITY.elements[index].name
                assert np.mean(got == wanted) >= (1 if exact else 0.95), PAPER_IDENTITY.elements[index].name
    random.seed(0)
    assert len({program["augment"](image).tobytes() for _ in range(40)}) > 30


def test_the_file_needs_nothing_of_ours(tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text(export(Policy(), "pillow"))
    code = "import sys, calls; from PIL import Image; calls.augment(Image.new('RGB', (8, 8))); "
    code += "sys.exit(any(name in sys.modules for name in ('ohl_accel', 'torch', 'numpy')))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, check=True)


def test_what_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Policy(space=Space("own", [Element(Transform("Own", kernel=EachImage(unchanged)))], arity=1))
    assert "Own" in export(own, "csv")
    with pytest.raises(
        UserError, match="Own is a transform of your own and no call of pillow: use --format csv"
    ):
        export(own, "pillow")
    with pytest.raises(UserError, match=r"--format pilow: did you mean pillow\?"):
        export(Policy(), "pilow")
    Policy(space=PAPER).save(tmp_path / "policy.json")
    assert (
        main(None, ["export", str(tmp_path / "policy.json"), "--output", str(tmp_path / "no" / "file")]) == 2
    )
    assert "cannot be written" in capsys.readouterr().err
    assert main(None, ["export", str(tmp_path / "none.json")]) == 2
    assert "there is no file or folder" in capsys.readouterr().err
