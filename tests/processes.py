"""Real clients in separate processes: they read their servers' addresses when they are imported."""

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import timm
from hub_server import HubServer

from ohl_accel import cli
from ohl_accel.errors import RunFailedError
from ohl_accel.hub.access import check_access
from ohl_accel.hub.contents import Finished, files_of
from ohl_accel.hub.transfer import upload
from ohl_accel.recipe import HubSection

T = TypeVar("T")


class Done(NamedTuple):
    """The result of a command: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


class Process:
    """A process with an environment of its own from the start, to call functions in."""

    def __init__(self, environment: dict[str, str]) -> None:
        before = dict(os.environ)
        os.environ.clear()
        os.environ.update(environment)
        try:
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            self._pool.submit(os.getpid).result()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def __call__(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call a function there."""
        result: T = self._pool.submit(function, *args, **kwargs).result()
        return result


class Client:
    """A process whose Hub client talks to a test server."""

    def __init__(self, hub: HubServer, cache: Path) -> None:
        self._process = Process({**hub.environment(cache), "HF_TOKEN": "", "OMP_NUM_THREADS": "1"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.__exit__(*error)

    def __call__(self, function: Callable[..., T], token: str = "", *args: Any, **kwargs: Any) -> T:
        """Call a function there, logged in by a token."""
        result: T = self._process(_logged_in, token, function, *args, **kwargs)
        return result


def _logged_in(token: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    os.environ["HF_TOKEN"] = token
    return function(*args, **kwargs)


def command(*argv: str) -> Done:
    """`python -m ohl_accel.hub ...`"""
    return _captured(lambda: cli.main("hub", argv))


def run_search(*argv: str) -> Done:
    """`python -m ohl_accel.search ...`"""
    return _captured(lambda: cli.main("search", argv))


def draw(*argv: str) -> Done:
    """`python -m ohl_accel.report ...`"""
    return _captured(lambda: cli.main("report", argv))


def check(**section: Any) -> list[str]:
    """`check_access`: the lines said, or the error."""
    said: list[str] = []
    try:
        check_access(HubSection(**section), said.append)
    except ValueError as error:
        said.append(f"error: {error}")
    return said


def upload_all(run: Path, sections: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Many uploads at once; of each the lines said, the last one its address or its error."""
    files = files_of(Finished.read(run), HubSection())

    def one(section: dict[str, Any]) -> list[str]:
        said: list[str] = []
        try:
            said.append(upload(files, HubSection(**section), said.append))
        except RunFailedError as error:
            said.append(f"error: {error}")
        return said

    with ThreadPoolExecutor(24) as threads:
        return list(threads.map(one, sections))


def classify(repo: str) -> tuple[int, list[str]]:
    """Read a network by timm's own means: how many parameters it has, and the names of its labels."""
    network = timm.create_model(f"hf-hub:{repo}", pretrained=True)
    config: Any = network.pretrained_cfg
    labels: list[str] = config["label_names"]
    return sum(parameter.numel() for parameter in network.parameters()), labels


def tracked_by_trackio(project: str) -> dict[str, list[dict[str, Any]]]:
    """What trackio has of each run of a project."""
    from trackio.sqlite_storage import SQLiteStorage

    return {name: SQLiteStorage.get_logs(project, name) for name in SQLiteStorage.get_runs(project)}


def _captured(main: Callable[[], int]) -> Done:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main()
    return Done(code, out.getvalue(), err.getvalue())
