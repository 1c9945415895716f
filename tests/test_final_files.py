"""The files of a finished run: damage is found where they are read, and only sound files of its own are published."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, SMALL
from test_data import recipe as small_recipe
from test_data import some_images

from ohl_accel import PolicyTransform
from ohl_accel.data import open_data
from ohl_accel.engine.evaluate import evaluate
from ohl_accel.engine.same_run import check_images
from ohl_accel.engine.search import search
from ohl_accel.errors import UserError
from ohl_accel.hub.card import model_card
from ohl_accel.hub.contents import Finished, files_of, without_absolute_paths
from ohl_accel.operations.space_file import open_space
from ohl_accel.policy import Policy
from ohl_accel.recipe import HubSection, Recipe
from ohl_accel.report.read import read_run

DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")
SECTION = HubSection(repo="user/name")


@pytest.fixture
def folder(small_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


def publish(folder: Path) -> dict[str, bytes]:
    """What would be published, as bytes."""
    run = Finished.read(folder)
    files = files_of(run, SECTION) | {"README.md": model_card(run, SECTION).encode()}
    return {name: each.read_bytes() if isinstance(each, Path) else each for name, each in files.items()}


READERS: dict[str, tuple[Callable[[Path], object], ...]] = {
    "policy.json": (Policy.load, Policy.from_pretrained, PolicyTransform, publish, read_run),
    "model.safetensors": (evaluate, publish),
    "config.json": (evaluate, publish),
}


@pytest.mark.parametrize("name", READERS)
def test_every_flipped_bit_is_found_wherever_the_file_is_read(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    draw = random.Random(name)
    for place in [0, len(content) - 1, *(draw.randrange(len(content)) for _ in range(3))]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(flipped)
        for read in READERS[name]:
            with pytest.raises(ValueError, match=f"{name} is not what the run wrote"):
                read(folder)


def test_resuming_a_finished_run_heals_its_files(folder: Path, small_run: Path) -> None:
    for name in ("policy.json", "model.safetensors", "config.json", "digests.json"):
        (folder / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"digests.json is damaged: malformed JSON.*run.resume=auto"):
        evaluate(folder)
    search(DIGITS, [*SMALL, f"run.dir={folder}", "outer.lr=0.3", "run.resume=auto"])
    for name in ("policy.json", "model.safetensors", "config.json", "digests.json"):
        assert (folder / name).read_bytes() == (small_run / name).read_bytes(), name


def test_a_folder_without_digests_is_accepted(folder: Path) -> None:
    """Of an unfinished run or an earlier version; or the user's own files, as the message says."""
    policy = Policy()
    policy.save(folder / "policy.json")
    (folder / "digests.json").unlink()
    assert Policy.load(folder) == policy


@pytest.mark.parametrize(
    "name",
    [
        "recipe.yaml",
        "result.json",
        "metrics.jsonl",
        "heldout.json",
        "policy.json",
        "config.json",
        "model.safetensors",
    ],
)
def test_links_are_not_published(folder: Path, tmp_path: Path, name: str) -> None:
    """Not even to a file that could be published."""
    (folder / name).replace(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=rf"{name} is a link to {tmp_path}/elsewhere; only files of the run folder"
    ):
        publish(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("heldout.json", b"-----BEGIN OPENSSH PRIVATE KEY-----", "heldout.json is damaged: malformed JSON"),
        ("heldout.json", b'{"split": "train", "rows": [1, "2"]}', r"heldout.json .*: rows.1: .*integer"),
        ("heldout.json", b'{"secret": "x"}', r"heldout.json .*: secret: Extra inputs"),
        ("heldout.json", b"[" * 100_000, "heldout.json is damaged: it is nested too deeply"),
        ("result.json", b"[" * 100_000, "result.json is damaged: it is nested too deeply"),
        ("result.json", b"5", "result.json is damaged: expected a JSON object, got int"),
        (
            "result.json",
            b'{"outer_steps": 4, "metric": []}',
            "result.json is damaged: metric must be the name",
        ),
        (
            "result.json",
            b'{"outer_steps": 4, "test_accuracy": 1e999}',
            "result.json is damaged: it contains 1e999",
        ),
        ("metrics.jsonl", b"5\n", "metrics.jsonl, line 1 is damaged"),
        ("policy.json", b"{}", "policy.json is not what the run wrote"),
        ("recipe.yaml", b"*a", "recipe.yaml"),
    ],
)
def test_damaged_files_are_not_published(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        publish(folder)


def test_absolute_paths_stay_here(folder: Path, tmp_path: Path) -> None:
    """In the recipe, in the policy's provenance and in the card; what a run needs of them can be told by the name."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["data"] |= {"path": f"{tmp_path}/photos", "test_path": f"{tmp_path}/more"}
    recipe["augment"] |= {"policy": f"{tmp_path}/run/policy.json"}
    recipe["outer"] |= {"estimator": f"{tmp_path}/mine.py:Mine"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    policy = Policy.load(folder)
    policy.provenance["data"] = f"{tmp_path}/photos"
    policy.save(folder / "policy.json")
    (folder / "digests.json").unlink()
    files = publish(folder)
    for name, content in files.items():
        assert str(tmp_path).encode() not in content, name
    published = yaml.safe_load(files["recipe.yaml"])
    assert published["run"]["dir"] == "./digits"
    assert (published["data"]["path"], published["data"]["test_path"]) == ("./photos", "./more")
    assert published["augment"]["policy"] == "./policy.json"
    assert published["outer"]["estimator"] == "./mine.py:Mine"
    assert json.loads(files["policy.json"])["provenance"]["data"] == "./photos"
    assert files["config.json"] == (folder / "config.json").read_bytes()


def test_what_is_an_absolute_path() -> None:
    given = [
        "/a/b",
        "~/a",
        "C:\\a\\b.py",
        "file:///a/b",
        "a/b",
        "./a",
        "sklearn:digits",
        "",
        "https://a/b",
        5,
        None,
    ]
    left: Any = ["./b", "./a", "./b.py", "./b", "a/b", "./a", "sklearn:digits", "", "https://a/b", 5, None]
    assert without_absolute_paths({"x": given}) == {"x": left}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": [1, 8]}, "input_size in its config.json|timm can load"),
        ({"input_size": "8"}, "input_size in its config.json|timm can load"),
        ({"mean": [0.5, 0.5]}, "mean in its config.json"),
        ({"mean": 0.5}, "mean in its config.json"),
        ({"std": [0.0]}, r"std in its config.json cannot be \[0.0\]"),
        ({"label_names": [1, 2]}, "label_names in its config.json"),
    ],
)
def test_a_wrong_config_is_named(folder: Path, change: dict[str, Any], message: str) -> None:
    (folder / "digests.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= change
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message):
        evaluate(folder)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"5", b'{"rows": [', b'{"rows": [1], "rows": [2]}', b"\xff"]
)
def test_a_damaged_record_of_the_images_is_named(folder: Path, content: bytes) -> None:
    data = open_data(Recipe.load(str(folder / "recipe.yaml")))
    check_images(folder / "heldout.json", data)
    (folder / "heldout.json").write_bytes(content)
    with pytest.raises(UserError, match=r"heldout.json is damaged: .*; it says which images .* copy it back"):
        check_images(folder / "heldout.json", data)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # numpy leaves damaged files open
def test_a_damaged_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index of a stream, the hashes of images, and the bytes of held-out images: cut, flipped or empty."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for number, image in enumerate(some_images(24)):
        for split in ("train", "test"):
            file = tmp_path / "data" / split / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
    options = {"in_memory": False, "test_split": None}
    for streaming, kinds in ((True, {"npz", "bytes"}), (False, {"npz"})):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        whole = open_data(small_recipe(tmp_path / "data", streaming=streaming, **options)).record
        files = [file for file in (tmp_path / "cache" / "ohl_accel").iterdir() if file.suffix != ".lock"]
        assert {file.suffix[1:] for file in files} == kinds
        for file in files:
            content = file.read_bytes()
            middle = len(content) // 2
            flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            damages = [b"", content[:-5], *([flipped] if file.suffix == ".npz" else [])]
            for damaged in damages:
                file.write_bytes(damaged)
                again = open_data(small_recipe(tmp_path / "data", streaming=streaming, **options))
                assert again.record == whole
                assert file.read_bytes()[:100] == content[:100]


def test_a_space_that_explodes_is_refused(tmp_path: Path) -> None:
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    (tmp_path / "laughs.yaml").write_text(f"a0: &a0 [x, x]\n{levels}elements: *a9\n")
    with pytest.raises(UserError, match=r"laughs.yaml is not YAML: it expands to more than 50000 values"):
        open_space(str(tmp_path / "laughs.yaml"))
    (tmp_path / "twice.yaml").write_text("elements: []\nelements: [{transform: Rotate, magnitude: 10}]\n")
    with pytest.raises(UserError, match=r"twice.yaml: elements: given twice, in lines 1 and 2"):
        open_space(str(tmp_path / "twice.yaml"))
