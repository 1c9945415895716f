"""The structure that keeps the package readable: who imports what, and that ready files are ready."""

import ast
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "ohl_accel"

LAYERS = [
    {"errors", "interrupts", "rng", "run_folder.files", "run_folder.atomic"},
    {"extensions", "plain_json", "plain_yaml"},
    {"run_folder", "hub.download", "models"},
    {"operations", "distributed", "recipe"},
    {"policy"},
    {"data"},
    {"engine.augment", "engine.network", "engine.objective", "engine.phases"},
    {"engine.scoring", "engine.trajectory"},
    {"engine.checkpoint", "cost"},
    {"report"},
    {"hub"},
    {"observers"},
    {"engine"},
    {"comparison"},
    {"cli"},
    {"search", "train", "evaluate", "compare", "report.__main__", "hub.__main__", "__main__"},
]
"""Packages and modules; each imports from layers above its own in this list, or from its own entry. A module that is
not listed by itself belongs to its package."""

ONLY_IN = {
    "torch.distributed": {"distributed"},
    "huggingface_hub": {"hub"},
    "jinja2": {"report"},
    "matplotlib": {"report", "comparison"},
}
TRAINING_LIBRARIES = {"accelerate", "datasets", "timm", "wandb", "pydantic", "huggingface_hub", "yaml"}
FOR_USING_A_POLICY = (
    *("errors", "rng", "extensions", "plain_json", "operations", "hub.download"),
    *("run_folder.files", "run_folder.atomic", "run_folder.digests"),
    *("policy.policy", "policy.file", "policy.protocol", "policy.transform", "policy.zoo"),
)


UPWARD_ON_DEMAND = {"ohl_accel.hub.policy": "policy.policy"}
"""Imports that go up, inside a function, for a method that users expect on an object; and from where."""


def imports_of(file: Path, at_once: bool = False) -> set[str]:
    """The modules that a file imports, with the names in them; those `at_once` are at its top level."""
    found: set[str] = set()
    tree = ast.parse(file.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def entry_of(module: str) -> str | None:
    """The entry of `LAYERS` that a module (without `ohl_accel.`) belongs to: the longest that it begins with."""
    entries = [entry for layer in LAYERS for entry in layer if f"{module}.".startswith(f"{entry}.")]
    return max(entries, key=len, default=None)


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    module = module_of(file)
    entry = entry_of(module)
    assert entry, f"{module} is not in LAYERS"
    layer = next(i for i, entries in enumerate(LAYERS) if entry in entries)
    allowed = {entry}.union(*LAYERS[:layer])
    for name in imports_of(file):
        if name.startswith("ohl_accel.") and not name.startswith("ohl_accel.__"):
            imported = entry_of(name.removeprefix("ohl_accel."))
            if any(
                name.startswith(f"{up}.") or name == up for up, by in UPWARD_ON_DEMAND.items() if by == module
            ):
                assert name not in imports_of(file, at_once=True)
                continue
            assert imported in allowed, f"{module} imports {name}"
        for library, parts in ONLY_IN.items():
            here = module.split(".")[0] in parts
            assert not f"{name}.".startswith(f"{library}.") or here, f"{module} imports {name}"
    if module.startswith(FOR_USING_A_POLICY):
        for name in imports_of(file, at_once=True):
            assert name.split(".")[0] not in TRAINING_LIBRARIES, f"{module} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_modules_are_of_a_size_to_read(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 450


def is_overload(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether this is a signature alone, for type checkers."""
    return any(isinstance(name, ast.Name) and name.id == "overload" for name in node.decorator_list)


def assigned_to_self(function: ast.FunctionDef) -> set[str]:
    targets = [
        target for node in ast.walk(function) if isinstance(node, ast.Assign) for target in node.targets
    ]
    targets += [node.target for node in ast.walk(function) if isinstance(node, ast.AnnAssign | ast.AugAssign)]
    flat = [one for target in targets for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return {
        one.attr
        for one in flat
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == "self"
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_objects_are_whole_once_they_are_constructed(file: Path) -> None:
    """No attribute appears only when some method has been called."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef):
            fields = {
                item.target.id
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            constructed = fields.union(
                *(assigned_to_self(item) for item in methods if item.name == "__init__")
            )
            for method in methods:
                late = assigned_to_self(method) - constructed
                assert not late, f"{node.name}.{method.name} makes {late}"


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
            if not node.name.startswith("_") and not nested and not is_overload(node):
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
