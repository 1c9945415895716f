"""Shared by several test files: real images beside the project, and launching the search as a user would."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from forked import DIGITS, call_on_ranks, run_command_line
from safetensors.torch import load_file

from ohl_accel.engine.search import search
from ohl_accel.policy import Policy
from ohl_accel.run_folder.metrics import read_metrics

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


LONGEST_FIRST = ("planted", "nodes", "layouts", "sharding", "track", "hub", "compare", "search", "streams")
"""Files of tests in the order in which two workers take them: none is left alone with a long one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    rank = {f"test_{name}.py": number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture
def another_precision() -> Iterator[None]:
    """A process has one precision otherwise."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout, from which the README's commands are run."""
    return REPOSITORY


@pytest.fixture(scope="session")
def cifar10_folder() -> Path:
    """Real CIFAR-10 in parquet; the test is skipped if it is not available."""
    return _folder("cifar10_jpeg")


@pytest.fixture(scope="session")
def imagenet_folder() -> Path:
    """160 real ImageNet photographs in parquet; the test is skipped if they are not available."""
    return _folder("imagenet_sample")


def _folder(name: str) -> Path:
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"no {name} data beside the project")
    return folder


SMALL = (
    "model.args.width=8", "outer.steps=4", "outer.inner_steps=3", "run.checkpoint_every=1", "run.report=false",
)  # fmt: skip
"""Overrides that make recipes/digits.yaml a matter of seconds."""


def launch(
    processes: int,
    *overrides: str,
    config: str = "cpu_processes",
    command: str = "search",
    **environment: str,
) -> list[str]:
    """Run the small digits search, or training, to completion; returns the lines it printed.

    Its processes are forked, which spares their imports; with an environment of their own, which libraries read when
    they are imported, they are started as a user would.

    Raises:
        AssertionError: if it fails.
    """
    if not environment:
        return call_on_ranks(processes, run_command_line, command, [DIGITS, *SMALL, *overrides]).splitlines()
    done = start(processes, *overrides, config=config, command=command, **environment)
    output, _ = done.communicate(timeout=300)
    assert done.returncode == 0, output
    return output.splitlines()


def start(
    processes: int,
    *overrides: str,
    config: str = "cpu_processes",
    command: str = "search",
    flags: Sequence[str] = (),
    prefix: Sequence[str] = (),
    **environment: str,
) -> subprocess.Popen[str]:
    """Begin the small digits search, or training, as a user would, by `accelerate launch`, without waiting for it.

    Args:
        processes: of all machines.
        overrides: of the recipe.
        config: of accelerate_configs.
        command: search or train.
        flags: further ones of the launcher.
        prefix: a command that runs the launcher, such as `ip netns exec`.
        environment: variables besides this process's.
    """
    launcher = [*prefix, sys.executable, "-m", "accelerate.commands.launch"]
    launcher += [
        "--config_file",
        f"accelerate_configs/{config}.yaml",
        "--num_processes",
        str(processes),
        *flags,
    ]
    launcher += ["-m", f"ohl_accel.{command}", "recipes/digits.yaml", *SMALL, *overrides]
    return subprocess.Popen(
        launcher,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small search in one process that hosts all four trajectories, never interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    launch(1, f"run.dir={folder}", config="cpu")
    return folder


KEEP = ("run.keep_checkpoints=9", "data.eval_batch_size=100")
"""All checkpoints, and three chunks of held-out images, which two processes cannot divide evenly."""


@pytest.fixture(scope="session")
def undisturbed_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in two processes that share the batches of each trajectory (G = 2), with `KEEP`."""
    folder = tmp_path_factory.mktemp("undisturbed_pair") / "run"
    launch(2, f"run.dir={folder}", "outer.groups=1", *KEEP)
    return folder


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path, name: str) -> None:
    """Wait until a run has written a checkpoint, or a later one."""
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[0]
        if (folder / "checkpoints" / "latest").exists() and latest(folder) >= name:
            return
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint {name} in three minutes")


def final_state(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves and that must not depend on how it was run: no times, no paths."""
    lines = read_metrics(folder / "metrics.jsonl")
    for line in lines:
        del line["seconds"], line["images_per_second"]
    (checkpoint,) = [path for path in (folder / "checkpoints").glob("step-*") if path.name in latest(folder)]
    tensors = {
        name: value.numpy().tobytes() for name, value in load_file(checkpoint / "state.safetensors").items()
    }
    weights = (folder / "model.safetensors").read_bytes()
    return {
        "metrics": lines,
        "checkpoint": tensors,
        "weights": weights,
        "theta": Policy.load(folder).theta.tolist(),
    }


def latest(folder: Path) -> str:
    """Name of the newest checkpoint of a run."""
    return (folder / "checkpoints" / "latest").read_text()


def rewind(folder: Path, name: str) -> None:
    """Take a run back to one of its checkpoints, as if it had been killed after that."""
    for newer in (folder / "checkpoints").glob("step-*"):
        if newer.name > name:
            shutil.rmtree(newer)
    (folder / "checkpoints" / "latest").write_text(name)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished small digits search: a run folder to look at, or to copy and damage."""
    folder = tmp_path_factory.mktemp("small") / "digits"
    search(DIGITS, [*SMALL, "run.report=true", f"run.dir={folder}", "outer.lr=0.3"])
    return folder
