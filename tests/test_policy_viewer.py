"""The Gradio Space: started as its host would, and called through its API."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from hub_server import HubServer
from PIL import Image

from ohl_accel.policy import Policy


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def space(repository: Path, hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **hub.environment(tmp_path_factory.mktemp("cache")),
        "PYTHONPATH": str(repository),
        "GRADIO_SERVER_PORT": port,
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    process = subprocess.Popen(
        [sys.executable, "spaces/policy_viewer/app.py"],
        cwd=repository,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        output = []
        for line in process.stdout:
            output.append(line)
            if "Running on local URL" in line:
                break
        else:
            pytest.fail("the Space ended: " + "".join(output))
        yield Client(f"http://127.0.0.1:{port}", verbose=False)
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.effect_noise((60, 40), 80).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.network
@pytest.mark.parametrize("name", ["", "user/policy"])
def test_space_shows_a_policy(space: Client, hub: HubServer, photo: Path, tmp_path: Path, name: str) -> None:
    policy = Policy()
    policy.theta[77] = 5.0
    policy.save(tmp_path / "policy.json")
    hub.add_model("user/policy", {"policy.json": (tmp_path / "policy.json").read_bytes()})
    file = None if name else handle_file(tmp_path / "policy.json")
    likely, drawn, unlikely, table = space.predict(name, file, handle_file(photo), 3, 5, api_name="/view")
    assert (len(likely), len(drawn), len(unlikely)) == (12, 3, 12)
    ((operation, probability),) = policy.top(1)
    assert likely[0]["caption"] == f"{operation}, {probability * 1296:.2f} x uniform"
    assert table["data"][0] == [
        "most probable", operation, f"{100 * probability:.4f}", f"{probability * 1296:.2f}", "not measured"
    ]  # fmt: skip
    assert len(table["data"]) == 27
    with Image.open(drawn[0]["image"]) as image:
        assert image.size == (60, 40)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../..", "a/b/c"])
def test_space_opens_no_paths(space: Client, photo: Path, name: str) -> None:
    with pytest.raises(AppError, match="give a name on the Hub such as user/policy"):
        space.predict(name, None, handle_file(photo), 3, 5, api_name="/view")


def test_space_says_what_is_wrong(space: Client, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text("{}")
    broken = handle_file(tmp_path / "policy.json")
    with pytest.raises(AppError, match='"format" must be'):
        space.predict("", broken, handle_file(photo), 3, 5, api_name="/view")
    with pytest.raises(AppError, match="give an image"):
        space.predict("", broken, None, 3, 5, api_name="/view")


def test_space_is_described(repository: Path) -> None:
    folder = repository / "spaces" / "policy_viewer"
    front_matter = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert front_matter["sdk"] == "gradio"
    assert (folder / front_matter["app_file"]).is_file()
    assert len(front_matter["short_description"]) <= 60  # the Hub refuses longer ones
    for line in (folder / "requirements.txt").read_text().splitlines():
        assert ">=" in line
