"""Publishing, over real HTTP with the real client: what goes up, what comes down, and what may go wrong."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, SMALL
from hub_server import READER, WRITER, Fault, HubServer
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from markdown_it import MarkdownIt
from PIL import Image
from processes import Client, check, classify, command, draw, run_search, upload_all

from ohl_accel import cli
from ohl_accel.engine.search import search
from ohl_accel.hub.card import model_card
from ohl_accel.hub.contents import Finished
from ohl_accel.policy import Policy
from ohl_accel.recipe import HubSection, Recipe
from ohl_accel.search import main

pytestmark = pytest.mark.network

DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")
PUBLISHED = {
    ".gitattributes", "README.md", "config.json", "figures/marginals.png", "figures/policy.png",
    "figures/rewards.png", "heldout.json", "metrics.jsonl", "model.safetensors", "policy.json", "recipe.yaml",
    "result.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub, tmp_path_factory.mktemp("cache")) as process:
        yield process


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with a private file in its folder."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    search(DIGITS, [*SMALL, "outer.steps=2", f"run.dir={folder}"])
    (folder / "mine.pkl").write_bytes(b"private")
    return folder


def card(hub: HubServer, repo: str) -> tuple[dict[str, Any], str]:
    _, metadata, text = hub.repositories[repo].files["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_a_search_publishes_its_end_in_one_commit(hub: HubServer, client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = ("outer.steps=2", f"run.dir={folder}", "hub={repo: user/digits, tags: [mine], license: mit}")
    done = client(run_search, WRITER, DIGITS, *SMALL, *overrides)
    assert done.code == 0, done
    repository = hub.repositories["user/digits"]
    assert repository.messages == ["added", "Network and policy"]
    assert set(repository.files) == PUBLISHED
    assert f"published: {hub.url}/user/digits/commit/{repository.names['main']}" in done.out
    for name in ("model.safetensors", "config.json", "policy.json", "metrics.jsonl", "result.json"):
        assert repository.files[name] == (folder / name).read_bytes()
    assert all(repository.files[f"figures/{name}.png"][1:4] == b"PNG" for name in ("policy", "rewards"))

    parameters, labels = client(classify, "", "user/digits")
    assert (parameters, labels) == (19_810, list("0123456789"))

    metadata, text = card(hub, "user/digits")
    assert {"mine", "arxiv:1905.07373", "data-augmentation"} <= set(metadata["tags"])
    assert (metadata["license"], metadata["library_name"]) == ("mit", "timm")
    (measured,) = [
        metric["value"]
        for metric in metadata["model-index"][0]["results"][0]["metrics"]
        if metric["type"] == "accuracy"
    ]
    assert f"{100 * measured:.2f} %" in text
    assert 'timm.create_model("hf-hub:user/digits", pretrained=True)' in text
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    assert ("bash", "pip install ohl-accel\n") in blocks
    two_lines = 'from ohl_accel import PolicyTransform\ntransform = PolicyTransform("user/digits")\n'
    assert ("python", two_lines) in blocks
    assert "No: it is not known whether this policy is better than a uniform one" in text
    assert "](figures/policy.png)" in text

    published = tmp_path / "recipe.yaml"  # runs again as it is, and publishes nothing
    published.write_bytes(repository.files["recipe.yaml"])
    assert Recipe.load(str(published)).hub.repo is None
    assert WRITER not in done.out + done.err + (folder / "recipe.yaml").read_text()
    secret = WRITER.encode()
    assert not any(secret in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert not any(secret in body for body in hub.bodies)


def test_the_card_is_what_the_hubs_library_reads(run: Path, tmp_path: Path) -> None:
    """The library finds every score in the metadata, and accepts it; a comparison is there as a table."""
    folder = Path(shutil.copytree(run, tmp_path / "digits"))
    (tmp_path / "compare-digits").mkdir()
    rows = [
        {"policy": "none", "n": 3, "mean": 0.5},
        {"policy": str(folder), "n": 3, "mean": 0.51, "difference": 0.01, "t_interval": [-0.02, 0.04],
         "verdict": "no difference shown"},
        {"policy": "/home/me/other/policy.json", "n": 3, "mean": 0.4, "difference": -0.1},
    ]  # fmt: skip
    document = {"reference": "none", "command": "secret", "rows": rows}
    (tmp_path / "compare-digits" / "comparison.json").write_text(json.dumps(document))
    finished = Finished.read(folder)
    text = model_card(finished, HubSection(repo="user/name", license="mit"))
    card = ModelCard(text)
    assert isinstance(card.data, ModelCardData)
    found = {result.metric_type: result for result in card.data.eval_results or []}
    assert found["accuracy"].metric_value == pytest.approx(finished.result["test_accuracy"], abs=1e-6)
    assert (found["accuracy"].task_type, found["accuracy"].dataset_split) == ("image-classification", "test")
    index = eval_results_to_model_index("name", list(found.values()))
    assert model_index_to_eval_results(index) == ("name", list(found.values()))
    assert yaml.safe_load(card.data.to_yaml())["model-index"] == index
    table = MarkdownIt("commonmark").enable("table").render(text.split("## Was it compared?")[1])
    assert table.count("<tr>") >= 4
    assert "| **this policy** | 3 | 51.00 | +1.00 | -2.00 to +4.00 | no difference shown |" in text
    assert "/home/me" not in text
    assert "secret" not in text


def test_a_license_is_asked_for(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal by a question, elsewhere by a warning; one that the recipe has is not asked for."""
    pushed: list[HubSection] = []

    def push(path: Path, section: HubSection, say: object) -> str:
        pushed.append(section)
        return "address"

    monkeypatch.setattr("ohl_accel.hub.transfer.push", push)
    assert cli.main("hub", ["push", str(run), "user/name"]) == 0
    assert "no license is given" in capsys.readouterr().err
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(
        "typer.prompt", lambda question, **options: " apache-2.0 " if "License" in question else ""
    )
    assert cli.main("hub", ["push", str(run), "user/name"]) == 0
    assert cli.main("hub", ["push", str(run), "user/name", "--license", "mit"]) == 0
    assert [section.license for section in pushed] == [None, "apache-2.0", "mit"]


def test_push_and_pull(hub: HubServer, client: Client, run: Path, tmp_path: Path) -> None:
    first = client(command, WRITER, "push", str(run), "user/mine", "--private", "--version", "v1")
    assert first.code == 0, first
    repository = hub.repositories["user/mine"]
    assert repository.private
    assert set(repository.files) == PUBLISHED
    commit = repository.names["main"]
    assert repository.names["v1"] == commit

    stranger = client(command, "", "pull", "user/mine@v1", str(tmp_path / "stranger"))
    assert stranger.code == 1
    assert "there is no such repository, or it is private" in stranger.err

    # the same once more changes nothing, and moves no large file
    before = len(hub.requests)
    again = client(command, WRITER, "push", str(run), "user/mine", "--private", "--version", "v1")
    assert again.out == first.out
    assert not any(request.startswith("PUT /lfs") for request in hub.requests[before:])

    # somebody puts a pickle there: it is never asked for
    hub.add_model("user/mine", {**repository.files, "pytorch_model.bin": b"pickle", "policy.json": b"{}"})
    pinned, tagged = tmp_path / "pinned", tmp_path / "tagged"
    for folder, revision in ((pinned, commit), (tagged, "v1")):
        fetched = client(command, WRITER, "pull", f"user/mine@{revision}", str(folder))
        assert fetched.code == 0, fetched
        assert Policy.load(folder).theta.equal(Policy.load(run).theta)
        assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert not any("pytorch_model" in request for request in hub.requests)

    newest = client(command, WRITER, "pull", "user/mine", str(tmp_path / "newest"))
    assert newest.code == 2
    assert '"format" must be' in newest.err

    full = client(command, WRITER, "pull", "user/mine@v1", str(pinned))
    assert (full.code, full.err) == (2, f"error: {pinned} is not empty: choose another folder\n")
    missing = client(command, WRITER, "pull", "user/mine@v2", str(tmp_path / "v2"))
    assert missing.code == 1
    assert "there is no such revision" in missing.err


def test_policy_only_and_gated(hub: HubServer, client: Client, run: Path, tmp_path: Path) -> None:
    pushed = client(command, WRITER, "push", str(run), "user/policy", "--policy-only", "--gated", "auto")
    assert pushed.code == 0, pushed
    assert set(hub.repositories["user/policy"].files) == PUBLISHED - {"model.safetensors", "config.json"}
    metadata, text = card(hub, "user/policy")
    assert "model-index" not in metadata
    assert "timm" not in text
    refused = client(command, READER, "pull", "user/policy", str(tmp_path / "got"))
    assert refused.code == 1
    assert "request access on its page" in refused.err


def test_a_large_network_and_its_policy_on_an_image(hub: HubServer, client: Client, tmp_path: Path) -> None:
    """20 MB of weights go up and come down; the gallery takes the policy from the Hub."""
    folder = tmp_path / "large"
    search(
        DIGITS, [*SMALL, "model.args.width=128", "outer.steps=1", "outer.trajectories=2", f"run.dir={folder}"]
    )
    assert (folder / "model.safetensors").stat().st_size > 15_000_000
    assert client(command, WRITER, "push", str(folder), "user/large").code == 0
    assert client(command, WRITER, "pull", "user/large", str(tmp_path / "back")).code == 0
    assert (tmp_path / "back/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    Image.effect_noise((40, 30), 80).save(tmp_path / "mine.png")
    asked = (
        "--policy",
        "user/large",
        "--image",
        str(tmp_path / "mine.png"),
        "--output",
        str(tmp_path / "page.html"),
    )
    assert client(draw, "", *asked).code == 0
    assert Policy.load(folder).top(1)[0][0].replace(">", "&gt;") in (tmp_path / "page.html").read_text()


STEPS = {
    "create": "POST /api/repos/create {}$",
    "look": "GET /api/models/{}$",
    "modes": "POST /api/models/{}/preupload",
    "batch": "POST /{}.git/info/lfs",
    "upload": "PUT /lfs/{}/",
    "verify": "POST /lfs/{}/verify",
    "commit": "POST /api/models/{}/commit",
    "tags": "GET /api/models/{}/refs",
    "tag": "POST /api/models/{}/tag",
}

UPLOADING = ("upload", "verify")
"""Their addresses are made for one upload and expire: a refusal there is answered by asking for new ones."""


def test_faults_at_every_step(hub: HubServer, client: Client, run: Path) -> None:
    """A refusal is reported at once; all else is retried, and ends with one commit and its tag."""
    cases = {
        f"user/{step}-{what}": (step, what)
        for step in STEPS
        for what in (401, 403, 409, 429, 500, 503, "cut")
        if (step, what) not in (("create", 409), ("tag", 409))  # mean: it is there already
    }
    for repo, (step, what) in cases.items():
        hub.faults.append(Fault(STEPS[step].format(repo), what, headers={"Retry-After": "0"}))
    sections = [{"repo": repo, "version": "v1", "patience": 0.6} for repo in cases]
    outcomes = client(upload_all, WRITER, run, sections)
    assert all(fault.times == 0 for fault in hub.faults)
    for (repo, (step, what)), said in zip(cases.items(), outcomes, strict=True):
        if what in (401, 403) and step not in UPLOADING:
            word = "the token is not valid" if what == 401 else "the token has no write access"
            assert said[-1].startswith(f"error: not published to {repo}: "), (repo, said)
            assert word in said[-1], (repo, said)
            # not tried again; a connection kept from one that was cut may be noticed before
            assert not any(str(what) in line for line in said[:-1]), (repo, said)
        else:
            repository = hub.repositories[repo]
            assert said[-1] == f"{hub.url}/{repo}/commit/{repository.names['main']}", (repo, said)
            assert repository.messages == ["added", "Network and policy"], (repo, said)
            assert repository.names["v1"] == repository.names["main"]


def test_a_commit_of_someone_else_is_kept(hub: HubServer, client: Client, run: Path) -> None:
    hub.add_model("user/busy", {"theirs": b"1"})
    hub.faults.append(Fault("POST /api/models/user/busy/commit", "stale"))
    (said,) = client(upload_all, WRITER, run, [{"repo": "user/busy", "patience": 0.6}])
    assert "someone else has committed in the meantime" in said[0]
    assert hub.repositories["user/busy"].messages == ["added", "added", "Network and policy"]
    assert {"theirs", "other", "policy.json"} <= set(hub.repositories["user/busy"].files)


def test_a_hub_that_stays_away_is_given_up(hub: HubServer, client: Client, run: Path) -> None:
    hub.faults.append(Fault("create user/away", 503, times=100))
    (said,) = client(upload_all, WRITER, run, [{"repo": "user/away", "patience": 0.3}])
    assert len(said) == 7  # six repetitions, then the end
    assert said[-1] == "error: not published to user/away: it answered 503 (Injected)"
    assert "user/away" not in hub.repositories


def test_a_download_is_cut_and_then_the_hub_is_gone(
    hub: HubServer, client: Client, run: Path, tmp_path: Path
) -> None:
    client(upload_all, WRITER, run, [{"repo": "user/cut"}])
    hub.faults.append(Fault("GET /user/cut/resolve/.*/model.safetensors", "cut"))
    cut = client(command, "", "pull", "user/cut", str(tmp_path / "cut"))
    assert cut.code == 0, cut
    assert hub.faults[-1].times == 0
    hub.faults.append(Fault("user/cut", "cut", times=1000))
    cached = client(command, "", "pull", "user/cut", str(tmp_path / "cached"))
    hub.faults.pop()
    assert cached.code == 0, cached
    assert "user/cut is taken from the local cache" in cached.err
    for folder in ("cut", "cached"):
        weights = (tmp_path / folder / "model.safetensors").read_bytes()
        assert weights == (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "name",
    ["nobody", "a/b/c", "user/na me", "user/-x", "user/x.git", "user/a--b", "user/" + "x" * 100, "user/"],
)
def test_names_that_the_hub_refuses_stop_the_run_at_once(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([DIGITS, *SMALL, f"run.dir={tmp_path / 'run'}", f"hub.repo={name}"]) == 2
    assert f"error: hub.repo={name}: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_access_is_checked_at_the_start(hub: HubServer, client: Client) -> None:
    assert client(check, WRITER, repo="user/new", private=True) == []
    assert hub.repositories["user/new"].private
    assert client(check, WRITER, repo="user/new") == []
    (no_token,) = client(check, "", repo="user/new")
    assert "no token for the Hub: log in with `hf auth login`, or set HF_TOKEN" in no_token
    (wrong,) = client(check, "hf_unknown", repo="user/new")
    assert "the token is not valid (401)" in wrong
    for token, repo in ((READER, "user/new"), (READER, "user/newer"), (WRITER, "other/new")):
        (forbidden,) = client(check, token, repo=repo)
        assert forbidden.startswith(f"error: hub.repo={repo}: the token has no write access (403)")
    hub.add_model("other/theirs", {})
    (forbidden,) = client(check, WRITER, repo="other/theirs")
    assert "has no write access" in forbidden
    hub.repositories["user/new"].names["v1"] = hub.repositories["user/new"].names["main"]
    (taken,) = client(check, WRITER, repo="user/new", version="v1")
    assert "hub.version=v1 is already the tag of commit" in taken
    hub.faults.append(Fault("create user/later", 503, times=7))
    *_, unknown = client(check, WRITER, repo="user/later", patience=0.1)
    assert unknown.startswith("the Hub cannot be reached (it answered 503")


def test_a_secret_is_neither_published_nor_printed(
    hub: HubServer, client: Client, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "leak"
    folder.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(recipe.replace("name: null", f"name: {WRITER}", 1))
    leak = client(command, WRITER, "push", str(folder), "user/leak", "--license", "mit")
    assert leak.err == "error: recipe.yaml contains the value of HF_TOKEN: it is not published\n"
    assert "user/leak" not in hub.repositories
    # a token that cannot be sent as a header is part of the HTTP library's message
    said = client(check, f"{WRITER}\x0b1", repo="user/leak", patience=0)
    assert len(said) == 1
    assert WRITER not in said[0]


def test_no_network_at_all(hub: HubServer, client: Client, tmp_path: Path) -> None:
    """The search finishes and prints the command that publishes it, which works once the network is up."""
    folder = tmp_path / "run"
    with HubServer() as gone:
        pass
    overrides = (*SMALL, "outer.steps=2", f"run.dir={folder}", "hub={repo: user/later, patience: 0.1}")
    with Client(gone, tmp_path / "cache") as offline:
        done = offline(run_search, WRITER, DIGITS, *overrides)
    assert done.code == 0, done
    assert "write access to user/later was not checked" in done.out
    (line,) = [line for line in done.out.splitlines() if line.startswith("nothing is lost")]
    _, repeat = line.split(": ", 1)
    assert repeat == f"python -m ohl_accel.hub push {folder} user/later"
    assert (folder / "result.json").exists()
    pushed = client(command, WRITER, *shlex.split(repeat)[3:])
    assert pushed.code == 0, pushed
    assert set(hub.repositories["user/later"].files) == PUBLISHED


def test_what_is_not_a_finished_run(client: Client, tmp_path: Path) -> None:
    missing = client(command, WRITER, "push", str(tmp_path), "user/none")
    assert missing.code == 2
    assert (
        "is not the folder of a finished run: recipe.yaml, result.json, metrics.jsonl missing" in missing.err
    )


def test_foreign_names_are_no_html_in_a_card(run: Path) -> None:
    finished = Finished.read(run)
    recipe = finished.recipe.with_values(
        data={"path": "/home/``a` <img src=x> `b"}, augment={"policy": "`<b>bold</b>"}
    )
    section = HubSection(repo="user/name")
    for policy in (finished.policy, None):
        text = model_card(replace(finished, recipe=recipe, policy=policy), section).split("---\n", 2)[2]
        page = MarkdownIt("commonmark").render(text)
        assert "<img src=x" not in page
        assert "<b>" not in page
        assert "&lt;img src=x&gt;" in page
