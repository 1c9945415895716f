"""What is published: a wheel that works outside the checkout, alone with torch and torchvision, and a whole sdist."""

import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL
from packaging.requirements import Requirement


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and with the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY, folder=folder)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the wheel; libraries are those of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", folder=folder)
    (packages,) = folder.glob("venv/lib/python*/site-packages")
    # a folder named in a .pth file is searched, but its own .pth files (an editable install) are not read
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    programs = folder / "venv" / "bin"
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", wheel, folder=folder)
    return programs


def test_both_pass_the_checks_of_an_index(built: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), folder=built)


def test_the_long_description_has_no_links_into_the_checkout(built: Path) -> None:
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("dist-info/METADATA")]
        _, text = wheel.read(name).decode().split("\n\n", 1)
    assert text.startswith("# ohl_accel")
    links = re.findall(r"\]\(([^)]*)\)|(?:src|href)=[\"']([^\"']*)", text)
    assert [link for pair in links for link in pair if link and not link.startswith("https://")] == []


def test_the_sdist_is_whole(built: Path) -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard", folder=REPOSITORY).split(
        "\n"
    )
    expected = {name for name in tracked if name and (REPOSITORY / name).is_file()}
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    assert expected - names == set()


def test_the_wheel_has_the_zoo(built: Path) -> None:
    folder = REPOSITORY / "ohl_accel" / "policy" / "zoo"
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        there = {
            Path(name).name for name in wheel.namelist() if Path(name).parent == Path("ohl_accel/policy/zoo")
        }
    assert there == {path.name for path in folder.iterdir() if path.is_file()}


@pytest.mark.long
@pytest.mark.slow
def test_a_search_by_name_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    listed = run(installed / "ohl-accel", "recipes", folder=tmp_path)
    assert "digits " in listed
    assert "node_8gpu " in listed
    run(installed / "ohl-accel", "search", "digits", *SMALL, "outer.steps=1", folder=tmp_path)
    place = "import ohl_accel; print(ohl_accel.__file__); from ohl_accel import PolicyTransform"
    found = run(installed / "python", "-c", f"{place}; PolicyTransform('runs/digits')", folder=tmp_path)
    assert Path(found.strip()).is_relative_to(installed.parent)


ALONE = """
import sys
from importlib.machinery import PathFinder

class Path(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Path

import torch
from PIL import Image
from ohl_accel import Policy, PolicyTransform

Policy().save("policy.json")
transform = PolicyTransform("policy.json", seed=0)
image = Image.linear_gradient("L").convert("RGB")
assert transform(image).size == image.size
assert transform(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 3, 8, 8)

def message(action):
    try:
        action()
    except (ImportError, ValueError) as error:
        return str(error)

def search():
    from ohl_accel import search

print(message(lambda: Policy.from_pretrained("user/name")))
print(message(search))

from ohl_accel.cli import main
assert main("search", ["digits"]) == 2
"""


def requirements_of_the_wheel(installed: Path) -> list[str]:
    program = "from importlib.metadata import requires; print(*requires('ohl-accel'), sep='\\n')"
    lines = run(installed / "python", "-c", program, folder=installed).splitlines()
    return [Requirement(line).name for line in lines if "extra ==" not in line]


def test_a_policy_is_used_with_torch_and_torchvision_alone(installed: Path, tmp_path: Path) -> None:
    """Whatever is not among the requirements of the wheel, or of what it requires, cannot be imported."""
    wanted, needed = requirements_of_the_wheel(installed), set[str]()
    assert set(wanted) <= {"torch", "torchvision", "pydantic", "pillow", "numpy"}
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name not in needed:
            needed.add(name)
            for text in distribution(name).requires or ():
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    wanted.append(requirement.name)
    blocked = {
        module
        for module, distributions in packages_distributions().items()
        if not needed & {one.lower().replace("_", "-") for one in distributions} and module != "ohl_accel"
    }
    blocked -= {"optree"}  # an extra of torch, which torch itself imports wherever it is installed
    assert {"huggingface_hub", "accelerate", "yaml", "pydantic", "timm", "datasets"} <= blocked
    (tmp_path / "alone.py").write_text(ALONE.replace("BLOCKED", repr(blocked)))
    done = subprocess.run(
        [installed / "python", "alone.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    hint = "which is not installed: pip install 'ohl-accel[train]'"
    from_the_hub, search = done.stdout.splitlines()
    assert from_the_hub.endswith(f"user/name: this needs huggingface_hub, {hint}")
    assert search.endswith(hint)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: this needs ")
    assert line.endswith(hint)
