"""A policy without a run: saved, published over real HTTP by the real client, and taken back."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import REPOSITORY
from hub_server import WRITER, HubServer

from ohl_accel import Policy
from ohl_accel.operations.space import PAPER, PAPER_IDENTITY
from ohl_accel.rng import keyed_generator

pytestmark = pytest.mark.network

PROGRAM = """
import sys
from ohl_accel import Policy
from ohl_accel.errors import UserError
policy = Policy.from_pretrained(sys.argv[1])
print(policy.push_to_hub("user/mine", license="mit", tags=["mine"], version="v1"))
print(Policy.from_pretrained("user/mine", "v1") == policy)
try:
    policy.push_to_hub("a--b/mine")
except UserError as error:
    print(error)
policy.provenance["note"] = sys.argv[2]
try:
    policy.push_to_hub("user/mine")
except UserError as error:
    print(error)
import re, torch, PIL.Image
from huggingface_hub import ModelCard
two_lines, pipeline = re.findall(r"```python\\n(.*?)```", ModelCard.load("user/mine").content, re.DOTALL)
exec(two_lines)
assert transform(PIL.Image.new("RGB", (12, 10))).size == (12, 10)
exec(pipeline)
print(transform(PIL.Image.new("RGB", (12, 10))).shape)
"""


def test_a_policy_is_published_and_taken_back(tmp_path: Path) -> None:
    theta = torch.randn(1369, dtype=torch.float64, generator=keyed_generator(0, "test"))
    policy = Policy(theta, {"data": "my | photos"}, space=PAPER_IDENTITY)
    policy.save_pretrained(tmp_path / "a" / "policy")
    with HubServer() as hub:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "a" / "policy"), WRITER],
            cwd=REPOSITORY,
            env={**hub.environment(tmp_path / "home"), "HF_TOKEN": WRITER},
            capture_output=True,
            text=True,
            check=False,
        )
    repository = hub.repositories["user/mine"]
    assert done.stdout.splitlines()[:2] == [
        f"{hub.url}/user/mine/commit/{repository.names['main']}",
        "True",
    ], done.stderr
    name, secret, shape = done.stdout.splitlines()[2:]
    assert "hub.repo=a--b/mine: the Hub does not accept this name" in name
    assert secret == "policy.json contains the value of HF_TOKEN: it is not published"
    assert shape == "torch.Size([3, 10, 12])"
    assert set(repository.files) == {
        *(".gitattributes", "README.md", "policy.json", "figures/policy.png", "figures/marginals.png"),
    }
    assert repository.names["v1"] == repository.names["main"]
    _, metadata, text = repository.files["README.md"].decode().split("---\n", 2)
    assert {"mine", "ohl_accel"} <= set(yaml.safe_load(metadata)["tags"])
    assert yaml.safe_load(metadata)["license"] == "mit"
    assert "1,369 operations (ordered pairs of the 37 elements of the space paper-identity)" in text
    assert r"| data | my \| photos |" in text
    (name, probability), *_ = policy.top(1)
    assert f"| most probable | {name} | {probability * 1369:.2f} |" in text


def test_without_the_hubs_client(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['huggingface_hub'] = None\n"
        "from ohl_accel import Policy\n"
        "for action in (lambda: Policy.from_pretrained('user/mine'), lambda: Policy().push_to_hub('user/mine')):\n"
        "    try:\n"
        "        action()\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    reading, pushing = done.stdout.splitlines()
    needs = "this needs huggingface_hub, which is not installed: pip install 'ohl-accel[train]'"
    assert reading.endswith(f"as a Hub id: user/mine: {needs}")
    assert pushing == f"push_to_hub: {needs}"


def test_saved_and_loaded(tmp_path: Path) -> None:
    policy = Policy(torch.linspace(-1, 1, 1296), {"seed": 3})
    policy.save_pretrained(tmp_path / "new" / "folder")
    again = Policy.from_pretrained(tmp_path / "new" / "folder")
    assert again == policy
    assert again.provenance == {"seed": 3}
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        policy.save_pretrained(tmp_path / "file")
    assert again.space == PAPER
