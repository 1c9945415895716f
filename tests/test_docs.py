"""The README and docs/: every code block is run, the files and names that they mention exist, and the site builds.

Commands are run on a small scale, in a folder of their own. Those that need a cluster, an account or hours are parsed
by their own parser, and their recipe is checked. The blocks of docs/use_a_policy.md are run by test_transform.py, those
of docs/extending.md by test_extending.py.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

import griffe
import pytest
from accelerate.commands.launch import launch_command_parser
from conftest import REPOSITORY
from packaging.requirements import Requirement
from PIL import Image
from sklearn.datasets import load_digits
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser
from sybil.typing import Evaluator, Parser

from ohl_accel import cli
from ohl_accel.comparison import contenders, grid
from ohl_accel.recipe import Recipe, sections

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
TESTED_BLOCKS = [page for page in PAGES if page.name not in ("use_a_policy.md", "extending.md")]
LONG_BLOCKS = ("paper.md", "estimators.md", "publish_and_watch.md")
"""Pages whose commands have tests of their own, and take long."""
SMALL = (
    "model.args.width=8",
    "outer.steps=2",
    "outer.inner_steps=2",
    "inner.batch_size=8",
    "outer.trajectories=2",
)
"""Overrides that make a search on the digits, or on the images below, a matter of a second."""

VARIABLES = {"$RANK": "0", "$ADDRESS": "127.0.0.1"}
"""What a shell would put into a command."""


@pytest.fixture
def workplace(small_run: Path, tmp_path: Path) -> Path:
    """What the pages assume: the files of a checkout, a finished runs/digits, and a few images."""
    folder = tmp_path
    for name in ("recipes", "accelerate_configs", "docs", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(REPOSITORY / name)
    shutil.copytree(small_run, folder / "runs" / "digits")
    digits = load_digits()
    for number in range(100):
        image = Image.fromarray((255 / 16 * digits.images[number]).astype("uint8"))
        for data, split in (("images", ("train", "test")[number % 2]), ("other", "test")):
            of_class = folder / "path" / "to" / data / split / str(digits.target[number])
            of_class.mkdir(parents=True, exist_ok=True)
            image.save(of_class / f"{number}.png")
    image.resize((64, 64)).save(folder / "my.jpg")
    return folder


def run_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command, or check it as far as it can be without a cluster, an account or hours."""
    match shlex.split(line, comments=True):
        case []:
            pass
        case ["ohl-accel", *words]:
            run_ohl_accel(words, monkeypatch)
        case ["accelerate", "launch", *words]:
            launched = launch_command_parser().parse_args([VARIABLES.get(word, word) for word in words])
            assert Path(launched.config_file).is_file()
            assert launched.module
            assert launched.training_script in ("ohl_accel.search", "ohl_accel.train")
            Recipe.load(launched.training_script_args[0], launched.training_script_args[1:])
        case ["make", *targets]:
            subprocess.run(["make", "--dry-run", *targets], check=True, capture_output=True)
        case ["pip", "install", *names]:
            for name in map(Requirement, names):
                project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
                assert name.extras <= set(project["optional-dependencies"])
                if name.name != "ohl-accel":
                    assert name.name in str(project["optional-dependencies"])
        case ["python", "-m", module, *_]:
            assert find_spec(module), module
        case ["python", "-c", code]:
            compile(code, "-c", "exec")
        case [*words] if "bash" in words:
            script, recipe, *overrides = words[words.index("bash") + 1 :]
            assert (REPOSITORY / script).is_file()
            Recipe.load(recipe, overrides)
        case ["python", script, *_]:
            compile(Path(script).read_text(), script, "exec")
        case _:
            raise AssertionError(f"no way to try this command: {line}")


def run_ohl_accel(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `ohl-accel`: searches and trainings on the digits, evaluations and reports; the rest is only parsed."""
    match words:
        case ["search" | "train", recipe, *overrides] if (
            recipe != "digits" or "hub.repo=user/name" in overrides
        ):
            Recipe.load(recipe, overrides)
            return
        case ["search" | "train", *_]:
            words += [*SMALL, *(() if "run.resume=auto" in words else ("run.overwrite=true",))]
        case ["compare", recipe, *rest]:
            policies = rest[rest.index("--policies") + 1]
            overrides = [word for word in rest if "=" in word]
            named = [contenders.contender(name) for name in policies.split(",")]
            contenders.check(named, Recipe.load(recipe, overrides))
        case ["sweep", *rest]:
            over = [rest[place + 1] for place, word in enumerate(rest) if word == "--over"]
            grid.read_grid(over or rest[:1])
    with monkeypatch.context() as patched:
        if words[0] in ("compare", "hub", "sweep") or {"--processes", "--config"} & {
            *words
        }:  # parsed, no more
            for module in ("commands", "paper"):
                patched.setattr(f"ohl_accel.cli.{module}.run_command", lambda *_: 0)
        assert cli.main(None, words) == 0, words


def evaluate_commands(example: Example) -> None:
    for line in example.parsed.replace("\\\n", " ").splitlines():
        run_line(line, example.namespace["monkeypatch"])


def save_or_run(run: Evaluator | None) -> Evaluator:
    """A block whose first line is a comment with the name of a file is saved there; others are run."""

    def evaluate(example: Example) -> str | None:
        name = re.match(r"# ([\w.-]+\.(?:py|yaml))\n", example.parsed)
        if name:
            Path(name[1]).write_text(example.parsed)
            return None
        assert run is not None, "a block that is not run must say which file it is: # name.yaml"
        return run(example)

    return evaluate


PARSERS: list[Parser] = [
    CodeBlockParser("python", save_or_run(PythonEvaluator())),
    CodeBlockParser("bash", evaluate_commands),
    CodeBlockParser("yaml", save_or_run(None)),
]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.long] if page.name in LONG_BLOCKS else [])
        for page in TESTED_BLOCKS
    ],
    ids=lambda page: str(page.relative_to(REPOSITORY)),
)
def test_the_blocks_of_a_page_run(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one folder: a block may use what those before it made."""
    monkeypatch.chdir(workplace)
    for example in Sybil(PARSERS, path=str(REPOSITORY)).parse(page).examples():
        example.namespace["monkeypatch"] = monkeypatch
        example.evaluate()


def test_no_block_is_overlooked() -> None:
    """A fence of another language, or of none, would not be run."""
    opening = re.compile(r"^ *```+(.*)$", re.MULTILINE)
    for page in PAGES:
        languages = opening.findall(page.read_text())[::2]
        assert set(languages) <= {"python", "bash", "yaml", "text"}, page


def test_files_and_names_exist() -> None:
    mentioned = re.compile(
        r"`((?:ohl_accel|recipes|accelerate_configs|cluster|benchmarks|spaces|tests|docs)[/.][\w./]*)`"
    )
    for page in PAGES:
        for name in mentioned.findall(page.read_text()):
            if "/" in name:
                assert (REPOSITORY / name).exists(), (page, name)
            elif name.startswith("ohl_accel."):
                resolve_name(name)


def test_every_section_of_a_recipe_is_on_its_page() -> None:
    page = (DOCS / "api" / "recipe.md").read_text()
    known = {
        name
        for name, value in vars(sections).items()
        if isinstance(value, type) and issubclass(value, sections.Section) and value is not sections.Section
    }
    assert set(re.findall(r"^::: ohl_accel\.recipe\.sections\.(\w+)$", page, re.MULTILINE)) == known


def test_every_field_of_a_recipe_has_a_docstring() -> None:
    module = griffe.load("ohl_accel.recipe.sections", search_paths=[str(REPOSITORY)])
    fields = [
        field
        for section in module.classes.values()
        for field in section.attributes.values()
        if field.name != "model_config"
    ]
    assert len(fields) > 80
    assert [field.path for field in fields if field.docstring is None] == []


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: a link that leads nowhere, or a name without a docstring page, is an error. Nothing is fetched."""
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path / "site"),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "https_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        outside = re.findall(r'(?:src|href)="(?:https?:)?//[^"]*"', page.read_text())
        assert not outside, (page, outside)
