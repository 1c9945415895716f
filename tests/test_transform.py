"""PolicyTransform: what it samples and applies, in which process, and in the pipelines of docs/use_a_policy.md."""

import copy
import json
import math
import multiprocessing
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from hub_server import HubServer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ohl_accel import Policy, PolicyTransform
from ohl_accel.operations.space import PAPER
from ohl_accel.rng import keyed_generator
from ohl_accel.run_folder.files import RECIPE_FILE

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=keyed_generator(0, "test"))


def pictures(count: int, channels: int = 3) -> list[Image.Image]:
    return [v2.functional.to_pil_image(image) for image in noise(count, channels, 12, 10)]


def drawn(transform: PolicyTransform, count: int) -> tuple[Tensor, Tensor]:
    """The operations and signs of the next `count` images."""
    return transform.draw(count)


def expected(images: Tensor, seed: int = 0) -> Tensor:
    """Reference: the kernels with what a fresh transform of this seed samples first."""
    return PAPER.apply(images, *drawn(PolicyTransform(Policy(), seed=seed), len(images)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_of_a_batch_gets_its_sampled_operation(channels: int, device: str) -> None:
    images = noise(64, channels, 12, 10).to(device)
    before = images.clone()
    got = PolicyTransform(Policy(), seed=0)(images)
    assert torch.equal(got.cpu(), expected(images.cpu()))
    assert (type(got), got.device, got.is_contiguous()) == (Tensor, images.device, True)
    assert torch.equal(images, before)
    assert PolicyTransform(Policy())(images[:0]).shape == (0, channels, 12, 10)
    channels_last = PolicyTransform(Policy(), seed=0)(images.to(memory_format=torch.channels_last))
    assert torch.equal(channels_last, got)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 3])
def test_single_tensors_and_images(channels: int, device: str) -> None:
    """Successive calls sample the same as one batch, for every type."""
    batch = noise(200, channels, 12, 10)
    wanted = expected(batch)
    transform = PolicyTransform(Policy(), seed=0)
    for i, image in enumerate(batch.to(device)):
        before = image.clone()
        given: Any = image
        if i % 3 == 1:
            given = tv_tensors.Image(image)
        elif i % 3 == 2:
            given = v2.functional.to_pil_image(image)
        got = transform(given)
        assert isinstance(got, type(given) if isinstance(given, Tensor) else Image.Image)
        if isinstance(got, Image.Image):
            assert got.mode == given.mode
            got = v2.functional.pil_to_tensor(got)
        else:
            assert got.device == given.device
            assert got.is_contiguous()
        assert torch.equal(got.cpu().as_subclass(Tensor), wanted[i])
        assert torch.equal(image, before)


def test_nested_structures() -> None:
    """Every item of a list its own operation; everything else is passed through as it is."""
    images, masks = noise(4, 3, 12, 10), noise(4, 3, 12, 10)
    as_pictures = [v2.functional.to_pil_image(image) for image in images[:2]]
    rows = {
        "image": [*as_pictures, tv_tensors.Image(images[2])],
        "label": [1, torch.tensor(2), "three"],
        "more": ([None, None, None, tv_tensors.Image(images[3])], None, masks),
    }
    got = PolicyTransform(Policy(), seed=0)(rows)
    first, second, third = got["image"]
    tensors = [
        v2.functional.pil_to_tensor(first),
        v2.functional.pil_to_tensor(second),
        third,
        got["more"][0][3],
    ]
    assert torch.equal(torch.stack([tensor.as_subclass(Tensor) for tensor in tensors]), expected(images))
    assert (type(third), type(got["more"][0][3])) == (tv_tensors.Image, tv_tensors.Image)
    assert got["label"] == rows["label"]
    assert got["more"][1:] == (None, masks)
    image, label = PolicyTransform(Policy(), seed=0)(images[0], torch.tensor(7))
    assert torch.equal(image, expected(images[:1])[0])
    assert label == 7


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (torch.zeros(3, 8, 8), r"uint8 .* got torch.float32 of shape \[3, 8, 8\]: .* before ToTensor, ToDtype"),
        (torch.tensor([1, 2]), "torch.int64 of shape .* wrap the images in torchvision.tv_tensors.Image"),
        (noise(8, 8), r"\[C, H, W\] or \[B, C, H, W\] with C = 1, 3 or 4, got \[8, 8\]"),
        (noise(2, 8, 8), r"got \[2, 8, 8\]"),
        (noise(2, 8, 8, 3), r"got \[2, 8, 8, 3\]"),
        (noise(1, 1, 3, 8, 8), r"got \[1, 1, 3, 8, 8\]"),
        (noise(3, 0, 8), "0 x 8 has no pixels"),
        (Image.new("F", (8, 8)), r"32 bits per pixel \(Pillow's mode F\)"),
        ([noise(3, 8, 8), noise(3, 8, 8)], "2 plain tensors look like images.* stack them into one batch"),
        ([np.zeros((8, 8), np.uint8)] * 2, "2 plain arrays look like images"),
        (np.zeros((8, 8, 3)), r"uint8 \(or uint16\) .* got float64 \[8, 8, 3\]"),
        (np.zeros((8, 8, 2), np.uint8), r"C = 1, 3 or 4, got uint8 \[8, 8, 2\]"),
        (tv_tensors.Video(noise(2, 2, 8, 8)), r"videos must be .* got \[2, 2, 8, 8\]"),
        (tv_tensors.Mask(noise(1, 8, 8)), "no image found"),
        ({"label": np.zeros(3)}, "no image found"),
        ([], "no image found"),
    ],
)  # fmt: skip
def test_what_is_not_an_image_is_refused(sample: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyTransform(Policy())(sample)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="either seed or generator"):
        PolicyTransform(Policy(), seed=0, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"masks must be a list .* give masks=\['mask'\]"):
        PolicyTransform(Policy(), masks="mask")
    with pytest.raises(ValueError, match="revision='v1' belongs to a Hub id"):
        PolicyTransform(Policy(), revision="v1")
    with pytest.raises(ValueError, match="there is no file or folder no/such/folder"):
        PolicyTransform("no/such/folder")


def test_operations_follow_the_policy_and_signs_are_fair() -> None:
    theta = torch.linspace(-6, 0, 1296, dtype=torch.float64)
    theta[35], theta[700] = 40.0, -800.0  # the one as likely as can be; the other has probability 0
    policy, n = Policy(theta), 400_000
    operations, negative = drawn(PolicyTransform(policy, seed=1), n)
    p = policy.probabilities
    frequency = torch.bincount(operations, minlength=1296) / n
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()
    assert frequency[700] == 0
    both = negative[:, 0] & negative[:, 1]
    for chosen, probability in ((negative[:, 0], 0.5), (negative[:, 1], 0.5), (both, 0.25)):
        assert chosen.double().mean().item() == pytest.approx(probability, abs=5 * math.sqrt(0.25 / n))
    of_the_likely = negative[operations == 35, 0].double()
    assert of_the_likely.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / len(of_the_likely)))


def test_draws_of_one_process() -> None:
    images = noise(20, 3, 12, 10)
    unseeded = PolicyTransform(Policy())
    torch.manual_seed(5)
    first = unseeded(images)
    assert not torch.equal(unseeded(images), first)
    torch.manual_seed(5)
    assert torch.equal(unseeded(images), first)

    seeded = PolicyTransform(Policy(), seed=3)
    state = torch.get_rng_state()
    first = seeded(images)
    assert torch.equal(torch.get_rng_state(), state)  # a seeded transform draws from no one else
    assert not torch.equal(seeded(images), first)
    assert torch.equal(PolicyTransform(Policy(), seed=3)(images), first)
    assert not torch.equal(PolicyTransform(Policy(), seed=4)(images), first)

    generator = torch.Generator().manual_seed(9)
    first = PolicyTransform(Policy(), generator=generator)(images)
    assert not torch.equal(PolicyTransform(Policy(), generator=generator)(images), first)
    assert torch.equal(PolicyTransform(Policy(), generator=generator.manual_seed(9))(images), first)


@pytest.mark.parametrize("copied", [lambda it: pickle.loads(pickle.dumps(it)), copy.deepcopy])
@pytest.mark.parametrize("seed", [None, 0])
def test_copies(copied: Any, seed: int | None) -> None:
    images = noise(20, 3, 12, 10)
    transform = PolicyTransform(Policy(), seed=seed)
    transform(images)
    twin = copied(transform)
    torch.manual_seed(0)
    wanted = transform(images)
    torch.manual_seed(0)
    assert torch.equal(twin(images), wanted)
    if seed is not None:
        assert len(set(epochs(twin, 2))) == 8  # a copy has workers of its own to count


@pytest.mark.parametrize("copied", [lambda it: it, lambda it: pickle.loads(pickle.dumps(it))])
def test_in_a_compiled_program(copied: Any) -> None:
    """One graph with what follows; the same operations as outside of it, and others in every call."""
    transform = copied(PolicyTransform(Policy(), seed=0))
    pipeline = v2.Compose([transform, v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.25])])

    def twice(images: Tensor) -> tuple[Tensor, Tensor]:
        return pipeline(images), pipeline(images)

    images = noise(16, 3, 12, 10)
    reference = v2.Compose([PolicyTransform(Policy(), seed=0), *pipeline.transforms[1:]])
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    for given in (images, images.to(memory_format=torch.channels_last)):
        for got, wanted in zip(compiled(given), (reference(given), reference(given)), strict=True):
            torch.testing.assert_close(got, wanted)
            assert got.stride() == wanted.stride()
    compiled_alone: Any = torch.compile(transform, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="give the policy one plain uint8 tensor"):
        compiled_alone(images, images)


def test_the_policy_is_taken_as_it_is() -> None:
    policy = Policy()
    transform = PolicyTransform(policy, seed=0)
    policy.theta[0] = 50.0
    assert str(transform) == "PolicyTransform(operations=1296, entropy=7.17, seed=0)"
    assert str(PolicyTransform(Policy())) == "PolicyTransform(operations=1296, entropy=7.17)"
    assert transform.policy.entropy == pytest.approx(math.log(1296))


def epochs(
    transform: PolicyTransform, count: int, workers: int = 2, method: str = "fork", persistent: bool = False
) -> list[bytes]:
    """The batches of some epochs of one and the same image, transformed in workers: 4 of each epoch."""
    image = noise(3, 12, 10)
    loader: DataLoader[Tensor] = DataLoader(
        cast(Dataset[Tensor], [image] * 32),
        batch_size=8,
        num_workers=workers,
        collate_fn=v2.Compose([torch.stack, transform]),
        multiprocessing_context=method,
        persistent_workers=persistent,
    )
    return [batch.numpy().tobytes() for _ in range(count) for batch in loader]


@pytest.mark.parametrize("seed", [None, 3])
def test_draws_of_workers(seed: int | None) -> None:
    """Every batch differs from all others: in each worker and in each epoch; a second run is equal."""

    def run(persistent: bool = False, global_seed: int = 0, seed: int | None = seed) -> list[bytes]:
        torch.manual_seed(global_seed)
        return epochs(PolicyTransform(Policy(), seed=seed), 2, persistent=persistent)

    first = run()
    assert len(set(first)) == 8
    assert run() == first
    persistent = run(persistent=True)
    assert len(set(persistent)) == 8
    assert persistent[:4] == first[:4]
    assert (run(global_seed=1) == first) == (seed is not None)
    assert set(run(seed=4)).isdisjoint(first)


def test_draws_do_not_depend_on_how_workers_start() -> None:
    """What a worker began as, the next worker knows, however either was started."""
    multiprocessing.set_forkserver_preload(["ohl_accel.policy.transform"])
    wanted = epochs(PolicyTransform(Policy(), seed=3), 3, workers=1)
    assert len(set(wanted)) == 12
    transform = PolicyTransform(Policy(), seed=3)
    methods = ("forkserver", "spawn", "forkserver")
    assert [batch for method in methods for batch in epochs(transform, 1, 1, method)] == wanted


# --- the pipelines of docs/use_a_policy.md ---

BLOCKS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "use_a_policy.md").read_text(), re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with runs/digits and 16 images of 2 classes in data/train, without a network."""
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    Policy().save(tmp_path / "runs" / "digits" / "policy.json")
    for i, image in enumerate(noise(16, 3, 32, 32)):
        folder = tmp_path / "data" / "train" / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        v2.functional.to_pil_image(image).save(folder / f"{i:02}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def run_block(with_text: str, device: str = "cpu") -> dict[str, Any]:
    """Run the one block of the page that holds this text; returns its variables."""
    (block,) = [block for block in BLOCKS if with_text in block]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block.replace('"cuda"', repr(device)), with_text, "exec"), names)
    return names


def test_every_block_is_tested() -> None:
    tests = "".join(
        Path(__file__).with_name(name).read_text() for name in ("test_transform.py", "test_pipelines.py")
    )
    texts = set(re.findall(r'run_block\("(.*?)"', tests))
    assert len(texts) == len(BLOCKS) == 15
    assert all(sum(text in block for text in texts) == 1 for block in BLOCKS)


def test_torchvision_pipeline(workplace: Path) -> None:
    names = run_block("v2.ToImage()")
    assert (names["images"].shape, names["images"].dtype) == ((8, 3, 32, 32), torch.float32)
    assert [type(step).__name__ for step in names["transform"].transforms][2] == "PolicyTransform"


def test_timm_create_transform(workplace: Path) -> None:
    transform = run_block("import create_transform")["transform"]
    names = [type(step).__name__ for step in transform.transforms]
    assert names[1:4] == ["RandomHorizontalFlip", "PolicyTransform", "MaybeToTensor"]
    assert transform(pictures(1)[0]).shape == (3, 32, 32)


@pytest.mark.parametrize("device", DEVICES)
def test_timm_create_loader(workplace: Path, device: str) -> None:
    names = run_block("create_loader(", device)
    assert (names["images"].shape, names["images"].dtype) == ((8, 3, 32, 32), torch.float32)
    steps = [type(step).__name__ for step in names["loader"].dataset.transform.transforms]
    assert steps[1:] == ["RandomHorizontalFlip", "PolicyTransform", "MaybePILToTensor"]


def test_timm_create_loader_without_prefetcher(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.data import create_loader

    def without_prefetcher(*arguments: Any, **options: Any) -> Any:
        return create_loader(*arguments, **{**options, "use_prefetcher": False})

    monkeypatch.setattr("timm.data.create_loader", without_prefetcher)
    names = run_block("create_loader(")
    assert names["images"].shape == (8, 3, 32, 32)
    steps = [type(step).__name__ for step in names["loader"].dataset.transform.transforms]
    assert steps[2:] == ["PolicyTransform", "MaybeToTensor", "Normalize"]


def test_datasets_set_transform(workplace: Path) -> None:
    dataset = run_block("set_transform(PolicyTransform")["dataset"]
    rows = dataset[:16]
    originals = dataset.with_format(None)[:16]
    changed = [
        np.any(np.array(a) != np.array(b)) for a, b in zip(rows["image"], originals["image"], strict=True)
    ]
    assert sum(changed) > 12
    assert rows["label"] == originals["label"]
    assert isinstance(dataset[0]["image"], Image.Image)


def test_datasets_set_transform_of_a_pipeline(workplace: Path) -> None:
    dataset = run_block("def augmented")["dataset"]
    loader = DataLoader(dataset, batch_size=8, num_workers=2)
    for batch in loader:
        assert (batch["image"].shape, batch["image"].dtype) == ((8, 3, 32, 32), torch.uint8)
        assert batch["label"].shape == (8,)


def test_datasets_streaming_map(workplace: Path) -> None:
    names = run_block("streaming=True")
    originals = [np.array(row["image"]) for row in names["stream"]]
    for name in ("by_rows", "in_batches"):
        for _ in range(2):
            rows = list(names[name])
            pairs = zip(rows, originals, strict=True)
            assert sum(bool(np.any(np.array(row["image"]) != original)) for row, original in pairs) > 12
            assert [row["label"] for row in rows] == [row["label"] for row in names["stream"]]


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch_at_a_time(workplace: Path, device: str) -> None:
    names = run_block("images.to(device)", device)
    assert (names["images"].shape, names["images"].dtype) == ((8, 3, 32, 32), torch.float32)
    assert names["images"].device.type == device


# --- where a policy comes from ---


def test_a_run_folder_must_be_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no file or folder run "):
        Policy.from_pretrained("run")
    Path("run").mkdir()
    with pytest.raises(ValueError, match=r"run has no policy\.json: it is not a run folder"):
        Policy.from_pretrained("run")
    Path("run", RECIPE_FILE).touch()
    with pytest.raises(ValueError, match="its search has not reached its first checkpoint"):
        Policy.from_pretrained("run")
    Policy(None, {"outer_steps": 100, "outer_steps_done": 3}).save("run/policy.json")
    with pytest.raises(
        ValueError, match=r"outer step 3 of 100; give run/policy\.json to use the current policy"
    ):
        Policy.from_pretrained("run")
    assert Policy.from_pretrained("run/policy.json").provenance["outer_steps_done"] == 3
    assert Policy.load("run").provenance["outer_steps_done"] == 3
    for finished in ({"outer_steps": 100, "outer_steps_done": 100}, {}):
        Policy(None, finished).save("run/policy.json")
        assert Policy.from_pretrained(tmp_path / "run").provenance == finished
    with pytest.raises(ValueError, match="on this machine and has no revisions: omit revision='v1'"):
        Policy.from_pretrained("run", revision="v1")


def test_a_misspelt_path_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "ohl_accel.policy.policy.fetch_file", lambda *_, **__: pytest.fail("the Hub was asked")
    )
    with pytest.raises(
        ValueError, match=r"there is no file or folder runs/x: runs/ is for runs .*hf-hub:runs/x"
    ):
        Policy.from_pretrained("runs/x")
    Path("mine/digits").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"folder mine/dgits: did you mean mine/digits\? .*hf-hub:mine/dgits"
    ):
        PolicyTransform("mine/dgits")
    with pytest.raises(ValueError, match="mine/x: mine/ is a folder here"):
        Policy.from_pretrained("mine/x")
    asked: list[str] = []

    def fetch(name: str, *_: object, **__: object) -> str:
        asked.append(name)
        return ""

    monkeypatch.setattr("ohl_accel.policy.policy.fetch_file", fetch)
    for name in ("mine/digits", "hf-hub:mine/x", "user/name"):
        with pytest.raises(ValueError):  # noqa: PT011  # what comes back is no policy
            Policy.from_pretrained(name)
    assert asked == ["mine/x", "user/name"]


@pytest.mark.parametrize(
    "name", ["./x", "../x/y", "~/x", "~nobody/x", "/x", "a/b/c", "a/b.json", "x", "a b/c"]
)
def test_what_looks_like_a_path_is_not_asked_of_the_hub(name: str) -> None:
    with pytest.raises(ValueError, match=r"^there is no file or folder .* form user/name"):
        Policy.from_pretrained(name)


def file(folder: Path, state: str) -> dict[str, bytes]:
    Policy(None, {"state": state}).save(folder / "policy.json")
    return {"policy.json": (folder / "policy.json").read_bytes()}


ASKED = """
import json, sys
from ohl_accel import Policy
for line in sys.stdin:
    try:
        *names, offline = json.loads(line)
        print(Policy.from_pretrained(*names, offline=offline).provenance["state"], flush=True)
    except ValueError as error:
        print(error, flush=True)
"""
"""A process that answers what comes of each (name, revision, offline)."""


@pytest.mark.network
def test_the_hub(tmp_path: Path) -> None:
    """The real client against a real server, then without the server, then offline by its own switch."""

    def client(**environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", ASKED],
            cwd=REPOSITORY,
            env={**hub.environment(tmp_path / "home"), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(
        process: subprocess.Popen[str], name: str, revision: str | None = None, offline: bool = False
    ) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([name, revision, offline]) + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    with HubServer() as hub, client() as online, client(HF_HUB_OFFLINE="1") as offline:
        commit = hub.add_model("user/policy", file(tmp_path, "old"), "v1")
        hub.add_model("user/policy", file(tmp_path, "new"))
        hub.add_model("user/weights", {"README.md": b"no policy"})
        hub.add_model("user/gated", file(tmp_path, "gated"), gated=True)
        hub.add_model("user/huge", {"policy.json": b" " * 5_000_000})
        hub.add_model("user/foreign", {"policy.json": b"{}"})
        for name, revision, wanted in (
            ("user/policy", None, "new$"),
            ("user/policy", "v1", "old$"),
            ("user/policy", commit, "old$"),
            ("user/policy", "v9", "policy.json of user/policy at revision v9 .*: there is no such revision"),
            ("user/weights", None, "policy.json of user/weights .*: the repository has no such file"),
            ("user/nobody", None, "user/nobody .*: there is no such repository, or it is private"),
            ("user/gated", None, "user/gated .*: it is gated: request access on its page"),
            ("user/huge", None, "user/huge has 5000000 bytes, more than"),
            ("user/foreign", None, '"format" must be "ohl_accel.policy", got None'),
            ("user/a--b", None, "user/a--b .*: not a Hub id"),
        ):
            assert re.match(
                f"(there is no file or folder .* as a Hub id: .*)?{wanted}", ask(online, name, revision)
            )
        assert "GET /user/huge/resolve/main/policy.json" not in hub.requests
        requests = len(hub.requests)
        assert ask(online, "user/policy", "v1", True) == "old"
        assert "user/gated has not been downloaded before: with offline=True" in ask(
            online, "user/gated", None, True
        )
        assert len(hub.requests) == requests
        hub.stop()
        for process in (online, offline):
            assert ask(process, "user/policy") == "new"
            assert ask(process, "user/policy", commit) == "old"
        answer = ask(offline, "user/other")
        assert re.search("the Hub cannot be reached .*offline mode.* it is not in the local cache", answer)
