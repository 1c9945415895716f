"""The structure that keeps the package readable: who imports what, and that ready files are ready."""

import ast
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "ohl_accel"

LAYERS = [
    {"elements", "draws", "errors"},
    {"download", "launch", "sharding"},
    {"recipe", "kernels", "policy", "models", "groups"},
    {"policies", "data", "transform"},
    {"augment", "network"},
    {"evaluation", "run_folder", "trajectory"},
    {"metrics", "checkpoint", "cli", "figures"},
    {"display"},
    {"track", "hub", "report"},
    {"run"},
    {"prepare"},
    {"search", "train", "evaluate", "compare"},
]
"""Modules and packages; each imports from layers above its own in this list, or from its own package."""

ONLY_IN = {
    "torch.distributed": {"groups", "launch", "sharding"},
    "huggingface_hub": {"download", "hub"},
    "jinja2": {"report"},
}
TRAINING_LIBRARIES = {"accelerate", "datasets", "timm", "wandb", "pydantic", "huggingface_hub"}


def imports_of(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    part = part_of(file)
    layer = next(i for i, parts in enumerate(LAYERS) if part in parts)
    allowed = {part}.union(*LAYERS[:layer])
    for name in imports_of(file):
        inner = name.split(".")
        if inner[0] == "ohl_accel" and len(inner) > 1 and not inner[1].startswith("__"):
            assert inner[1] in allowed, f"{file.name} imports {name}"
        for library, parts in ONLY_IN.items():
            assert not name.startswith(library) or part in parts, f"{file.name} imports {name}"
        if part in ("elements", "draws", "kernels", "policy", "transform"):
            assert name.split(".")[0] not in TRAINING_LIBRARIES, f"{file.name} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_modules_are_of_a_size_to_read(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 450


def test_everything_public_has_a_docstring() -> None:
    for file in [*FILES, PACKAGE / "__init__.py"]:
        tree = ast.parse(file.read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        for node in nodes:
            nested = any(
                node in ast.walk(outer)
                for outer in nodes
                if outer is not node and isinstance(outer, ast.FunctionDef)
            )
            if not node.name.startswith("_") and not nested:
                assert ast.get_docstring(node), f"{file.name}: {node.name}"
        assert ast.get_docstring(tree), file.name


@pytest.mark.parametrize(
    ("name", "processes", "machines"),
    [("cpu", 1, 1), ("cpu_processes", 2, 1), ("gpu", 1, 1), ("node_8gpu", 8, 1), ("nodes", 32, 4)],
)
def test_accelerate_reads_the_launch_configurations(name: str, processes: int, machines: int) -> None:
    file = REPOSITORY / "accelerate_configs" / f"{name}.yaml"
    config = load_config_from_file(str(file))
    assert (config.num_processes, config.num_machines) == (processes, machines)
    assert config.use_cpu == name.startswith("cpu")


def test_no_configuration_is_untested() -> None:
    names = {file.stem for file in (REPOSITORY / "accelerate_configs").iterdir()}
    assert names == {"cpu", "cpu_processes", "gpu", "node_8gpu", "nodes"}
    for file in (REPOSITORY / "recipes").glob("*.yaml"):
        assert yaml.safe_load(file.read_text())["run"]["dir"] == f"runs/{file.stem}"
