"""Processes that see each other, forked from one that has imported everything: a second, not ten, to start."""

import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

from conftest import REPOSITORY

from ohl_accel.engine import setup as prepare
from ohl_accel.engine.search import search


def on_processes(processes: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in each of so many processes, in a launcher's environment.

    Raises:
        AssertionError: with what they printed, if it fails in one of them.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launched = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
    with tempfile.TemporaryFile("w+") as output:
        children = []
        for rank in range(processes):
            child = os.fork()
            if child:
                children.append(child)
                continue
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.environ |= {name: str(value) for name, value in launched.items()}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
            try:
                function(*arguments)
                sys.stdout.flush()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        output.seek(0)
        assert codes == [0] * processes, output.read()


def search_digits(*overrides: str) -> None:
    """A search of which, if it is sharded, only the main process may make a whole network."""
    if "model.shard=true" in overrides and os.environ["RANK"] != "0":
        vars(prepare)["create_network"] = None
    search(str(REPOSITORY / "recipes" / "digits.yaml"), overrides)
