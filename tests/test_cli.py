"""The command line: every way to call it, how fast it answers, and the messages of a minimal installation."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import REPOSITORY, SMALL

import ohl_accel
from ohl_accel import cli, errors
from ohl_accel.recipe import Recipe
from ohl_accel.recipe.packaged import ABLATIONS, LAUNCH_CONFIGS, RECIPES, packaged

COMMANDS = ("search", "train", "evaluate", "compare", "report", "hub", "recipes", "cost", "sweep", "figure4")
WITHOUT_A_MODULE = ("recipes", "cost", "sweep", "figure4")
HEAVY = (
    "torch",
    "torchvision",
    "accelerate",
    "datasets",
    "timm",
    "pyarrow",
    "scipy",
    "matplotlib",
    "gradio",
    "numba",
)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )


def cpu_seconds(*arguments: str) -> float:
    """User and system time of a process, of three the least, so that the load of the machine does not matter."""
    seconds = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds.append(used.ru_utime + used.ru_stime)
    return min(seconds)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ohl_accel", "--help"],
        ["ohl_accel.search", "--help"],
        ["ohl_accel", "compare", "--help"],
        ["ohl_accel.search", "recipes/digits.yaml", "outer.stepz=3"],
        ["ohl_accel", "train", "digitz"],
        ["ohl_accel", "recipes"],
    ],
    ids=" ".join,
)
def test_help_and_mistakes_are_answered_in_less_than_a_second(arguments: list[str]) -> None:
    assert cpu_seconds("-m", *arguments) < 1


@pytest.mark.parametrize(
    "statement",
    [
        "import ohl_accel",
        "from ohl_accel import Recipe; Recipe.load('digits')",
        "from ohl_accel.run_folder.metrics import read_metrics; from pathlib import Path; read_metrics(Path('none'))",
        "from ohl_accel.cli import main; assert main('search', ['digits', 'outer.stepz=3']) == 2",
    ],
)
def test_what_needs_nothing_heavy_imports_nothing_heavy(statement: str) -> None:
    done = python("-c", f"import sys; {statement}; print([name for name in {HEAVY} if name in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_called_in_each_way(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(None, [command, "--help"]) == 0
    by_name = capsys.readouterr().out
    assert f"Usage: ohl-accel {command} " in by_name
    assert cli.main(command, ["-h"]) == 0
    by_module = capsys.readouterr().out
    assert by_module.replace("python -m ohl_accel", "ohl-accel").split() == by_name.split()
    if command not in WITHOUT_A_MODULE:
        module = importlib.import_module(
            f"ohl_accel.{command}{'.__main__' if command in ('report', 'hub') else ''}"
        )
        assert module.main(["--help"]) == 0
        assert capsys.readouterr().out == by_module


def test_a_process_for_each_way() -> None:
    """`python -m ohl_accel NAME` and `python -m ohl_accel.NAME` end alike, with the exit code of a mistake."""
    one, other = (python("-m", *words, "digits", "data.heldout=0") for words in (
        ("ohl_accel", "search"), ("ohl_accel.search",)))  # fmt: skip
    assert one.returncode == other.returncode == 2
    assert one.stderr == other.stderr
    assert one.stderr.startswith("error: digits: 1 problem\n  data.heldout: must be a count")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Usage: ohl-accel"),
        (["serch"], "No such command 'serch'"),
        (["search"], "Missing argument"),
        (
            ["search", "digts"],
            "error: recipe digts does not exist; did you mean digits or sign_digits? recipes that need no",
        ),
        (["search", "digits", "--config", "gpus"], "error: --config gpus does not exist; did you mean gpu?"),
        (["search", "digits", "--processes", "0"], "Invalid value for '--processes': "),
        (["compare", "digits", "--policies", "none", "--seeds", "0"], "Invalid value for '--seeds'"),
        (["report"], "give a run folder, two without --watch, or --policy and --image"),
        (["recipes", "digit"], "error: digit does not come with the package; available: "),
        (["recipes", "--save", "x.yaml"], "error: --save needs the name of what to copy"),
        (
            ["recipes", "digits", "--save", "no/such/x.yaml"],
            "error: --save no/such/x.yaml cannot be written: No such",
        ),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(None, arguments) == 2
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).split())


def test_a_launched_process_starts_no_launch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert cli.main("search", ["digits", "--processes", "2"]) == 2
    assert "this process was started by a launcher already" in capsys.readouterr().err


def test_recipes_are_listed_shown_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("recipes", []) == 0
    listed = capsys.readouterr().out
    for name in [*packaged(RECIPES), *packaged(ABLATIONS), *packaged(LAUNCH_CONFIGS)]:
        (line,) = [line for line in listed.splitlines() if line.split()[0] == name]
        assert line.endswith("."), "its first line is a sentence"
    assert cli.main("recipes", ["digits"]) == 0
    assert capsys.readouterr().out == (REPOSITORY / "recipes" / "digits.yaml").read_text()
    copy = tmp_path / "mine.yaml"
    assert cli.main("recipes", ["digits", "--save", str(copy)]) == 0
    assert Recipe.load(str(copy)) == Recipe.load("digits")
    assert cli.main("recipes", ["digits", "--save", str(copy)]) == 2
    assert "cannot be written: File exists" in capsys.readouterr().err


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").write_text(packaged(RECIPES)["digits"].read_text().replace("steps: 100", "steps: 7"))
    assert Recipe.load("digits").outer.steps == 7


def test_tags_in_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    """`--tags a b`, as argparse has it, and `--tags a --tags b`; the run folder is what is missing."""
    for tags in (["--tags", "a", "b"], ["--tags", "a", "--tags", "b"], ["--tags", "a", "b", "--private"]):
        assert cli.main("hub", ["push", "no/such/run", "user/name", *tags]) == 2
        assert "no/such/run" in capsys.readouterr().err


def test_names_of_the_package_stay_functions() -> None:
    """Also when the module of the command with the same name has been imported."""
    for name in ("search", "train", "evaluate", "compare"):
        module = importlib.import_module(f"ohl_accel.{name}")
        assert callable(module.main)
        assert getattr(ohl_accel, name) is not module
        assert getattr(ohl_accel, name).__name__ == name
    ohl_accel.__doc__ = ohl_accel.__doc__  # other attributes are set as in any module


def test_the_package_says_what_it_has() -> None:
    assert set(ohl_accel.__all__) <= set(dir(ohl_accel))
    for name in ohl_accel.__all__:
        assert getattr(ohl_accel, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'serch'"):
        ohl_accel.serch  # noqa: B018


def test_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shell asks for: names of recipes after `search`."""
    program = "import sys; from ohl_accel.cli import main; sys.exit(main())"
    asked = {
        "_OHL_ACCEL_COMPLETE": "complete_bash",
        "COMP_WORDS": "ohl-accel search cifar10_r",
        "COMP_CWORD": "2",
    }
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    assert python("-c", program).stdout.split() == ["cifar10_r18", "cifar10_reduced"]


@pytest.mark.slow
def test_processes_from_one_command(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = [*SMALL, f"run.dir={folder}", "outer.steps=1", "outer.trajectories=2"]
    done = python("-m", "ohl_accel", "search", "digits", "--processes", "2", *overrides)
    assert done.returncode == 0, done.stderr
    assert "2 trajectories in 2 x 1 of 2 processes" in done.stdout
    assert (folder / "policy.json").is_file()


def test_each_extra_brings_the_modules_that_are_named_for_it() -> None:
    """What a message tells to install is what pyproject.toml has."""
    modules = packages_distributions()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for extra, names in errors._EXTRAS.items():
        of_extra = {re.split(r"[\[>]", text)[0] for text in project["optional-dependencies"][extra]}
        distributions = {one.lower().replace("_", "-") for name in names for one in modules[name]}
        assert of_extra - distributions <= {"ohl-accel"}, "an import of it would end with a traceback"
        for name in names:
            brought = {distribution.lower().replace("_", "-") for distribution in modules[name]}
            assert brought & of_extra, f"[{extra}] does not bring {name}"
        missing = errors.missing_extra(ModuleNotFoundError(name=f"{names[0]}.part"))
        assert missing == f"this needs {names[0]}, which is not installed: pip install 'ohl-accel[{extra}]'"
    assert errors.missing_extra(ModuleNotFoundError(name="torch")) is None


def test_out_of_memory_is_said_with_what_would_help() -> None:
    code = "import torch; from ohl_accel.cli import run_command; run_command(lambda: torch.empty(10**15))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "error: there is not enough memory. More processes" in done.stderr
    assert "run.resume=auto" in done.stderr
    assert "Traceback" not in done.stderr
