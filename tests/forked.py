"""Ranks of one launch, forked from a process that has imported everything: an instant, not ten seconds, to start.

The pytest process does not fork itself, because it has threads and listening servers. `call_on_ranks` asks another
process, which starts once, to fork.
"""

import errno
import importlib
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from processes import Process
from torch import Tensor

from ohl_accel.engine import saving, setup
from ohl_accel.engine.search import search
from ohl_accel.engine.trajectory import Trajectory

DIGITS = str(Path(__file__).resolve().parent.parent / "recipes" / "digits.yaml")
SECONDS = 300.0
"""After which ranks that have not ended are killed."""


def call_on_ranks(ranks: int, function: Callable[..., object], *arguments: Any) -> str:
    """Call a function in each of so many processes that see each other; returns what they printed.

    Args:
        ranks: how many; a single one is started without a launcher's environment.
        function: can be imported.
        arguments: of the function.

    Raises:
        AssertionError: with what they printed, if it fails or does not end in one of them.
    """
    return _forking_process()(_fork_ranks, ranks, function, *arguments)


@cache
def _forking_process() -> Process:
    return Process({**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"})


def _fork_ranks(ranks: int, function: Callable[..., object], *arguments: Any) -> str:
    environment = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": _free_port()}
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryFile("w+") as output:
        processes = [
            context.Process(
                target=_be_rank, args=(rank, environment if ranks > 1 else {}, output, function, arguments)
            )
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        end = time.monotonic() + SECONDS
        for process in processes:
            process.join(max(0, end - time.monotonic()))
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        output.seek(0)
        printed = output.read()
    assert codes == [0] * ranks, f"exit codes {codes} (None: killed after {SECONDS:g} s)\n{printed}"
    return printed


def _be_rank(
    rank: int, environment: dict[str, int], output: Any, function: Callable[..., object], arguments: Any
) -> None:
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    if environment:
        own = {**environment, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {name: str(value) for name, value in own.items()}
    function(*arguments)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def run_command_line(command: str, argv: Sequence[str]) -> None:
    """`python -m ohl_accel.COMMAND ARGV`"""
    sys.exit(importlib.import_module(f"ohl_accel.{command}").main(argv))


def search_digits(*overrides: str) -> None:
    """A search of which, if it is sharded, only the main process may make a whole network."""
    if "model.shard=true" in overrides and os.environ["RANK"] != "0":
        vars(setup)["create_network"] = None
    search(DIGITS, overrides)


def search_without_memory(*overrides: str) -> None:
    """A search of which one trajectory asks for more memory than there is, in the third outer step of three steps."""
    inner_step = Trajectory.inner_step

    def hungry(self: Trajectory, inputs: Tensor, targets: Tensor, step: int) -> None:
        if self.number == 2 and step == 7:
            torch.empty(2**50, dtype=torch.uint8)
        inner_step(self, inputs, targets, step)

    Trajectory.inner_step = hungry  # type: ignore[method-assign]
    run_command_line("search", [DIGITS, *overrides])


def search_with_signal(number: int, at: int, *overrides: str) -> None:
    """A search of which the second of two processes sends itself a signal in an inner step."""
    inner_step = Trajectory.inner_step

    def signalled(self: Trajectory, inputs: Tensor, targets: Tensor, step: int) -> None:
        if step == at and self.number == 3 and int(os.environ["RANK"]) == 1:
            os.kill(os.getpid(), number)
        inner_step(self, inputs, targets, step)

    Trajectory.inner_step = signalled  # type: ignore[method-assign]
    run_command_line("search", [DIGITS, *overrides])


def search_that_cannot_end(*overrides: str) -> None:
    """A search whose network cannot be written, because the disk is full."""

    def write_digests(folder: Path, names: Sequence[str]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    vars(saving)["write_digests"] = write_digests
    run_command_line("search", [DIGITS, *overrides])
