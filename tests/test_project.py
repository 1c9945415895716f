"""Files around the package: what CI runs on, how it is cited, hooks, and what a reader is told."""

import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

import ohl_accel

PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def read_yaml(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text())


def test_ci_runs_what_it_should_on_the_oldest_and_the_newest_python() -> None:
    job = read_yaml(".github/workflows/ci.yml")["jobs"]["test"]
    assert job["steps"][-1] == {"run": "bash .ci/run"}
    claimed = [re.fullmatch(r".* :: (3\.\d+)", text) for text in PROJECT["project"]["classifiers"]]
    versions = [found[1] for found in claimed if found]
    assert job["strategy"]["matrix"]["python"] == [versions[0], versions[-1]]


def test_scripts_are_valid() -> None:
    for name in ("run", "wheel"):
        subprocess.run(["bash", "-n", REPOSITORY / ".ci" / name], check=True)


def test_it_is_cited_by_its_version() -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["version"] == ohl_accel.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    (paper,) = citation["references"]
    assert {"type", "title", "authors", "year", "collection-title"} <= paper.keys()


@pytest.mark.parametrize("name", ["bug", "feature", "result"])
def test_issue_forms(name: str) -> None:
    """The fields that GitHub demands of a form."""
    form = read_yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= form.keys()
    identifiers = [field["id"] for field in form["body"]]
    assert len(identifiers) == len(set(identifiers))
    assert all(
        field["type"] in ("textarea", "input") and field["attributes"]["label"] for field in form["body"]
    )


def test_hooks_are_valid() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", REPOSITORY / ".pre-commit-config.yaml"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_contributing_names_all_markers_targets_and_folders() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]:
        assert f"| `{marker.split(':')[0]}` |" in text
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) <= targets
    for folder in (REPOSITORY / "ohl_accel").iterdir():
        if folder.is_dir() and any(folder.glob("*.py")):
            assert f"{folder.name}/`" in text, folder
