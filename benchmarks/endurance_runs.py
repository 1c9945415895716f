"""Small searches that are killed, stopped or watched, for `benchmarks.endurance`.

Their processes are forked from this one, which has imported everything but computed nothing, so that they start in an
instant.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ohl_accel.data.source import open_split
from ohl_accel.engine.search import search
from ohl_accel.observers.observer import Observer, RunInfo
from ohl_accel.recipe import Recipe
from ohl_accel.run_folder.digests import digest_of
from ohl_accel.run_folder.files import CHECKPOINTS, METRICS_FILE, NETWORK_FILES, POLICY_FILE
from ohl_accel.run_folder.metrics import read_metrics

REPOSITORY = Path(__file__).resolve().parent.parent
DIGITS = str(REPOSITORY / "recipes" / "digits.yaml")
SMALL = (
    *("model.args.width=8", "outer.steps=6", "outer.inner_steps=3", "run.checkpoint_every=1"),
    *("run.mixed_precision=no", "data.workers=1", "run.resume=auto", "run.timeout=120", "run.display=quiet"),
    "run.report=false",
)
"""Overrides that make recipes/digits.yaml a search of seconds."""
LONGEST = 300.0
"""Seconds after which a run that has not ended is killed, and counted as one that hangs."""
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Layout:
    """How a search is run."""

    processes: int
    streamed: bool

    def __str__(self) -> str:
        return f"{self.processes} process{'es' if self.processes > 1 else ''}, {'stream' if self.streamed else 'map'}"

    def overrides(self, work: Path) -> list[str]:
        """Of the recipe, beside `SMALL`."""
        shards = work / "shards"
        return [f"data.path={shards}", "data.streaming=true", "data.channels=1"] if self.streamed else []


LAYOUTS = tuple(Layout(processes, streamed) for streamed in (False, True) for processes in (1, 2))


def write_shards(work: Path) -> None:
    """The digits as parquet files, to be streamed."""
    data = Recipe.load(DIGITS).data
    (work / "shards").mkdir()
    for split, number in (("train", 3), ("test", 1)):
        rows = open_split(data, split)
        for index in range(number):
            file = work / "shards" / f"{split}-{index:05}-of-{number:05}.parquet"
            rows.shard(number, index, contiguous=True).to_parquet(file, batch_size=100)


class Crew:
    """The processes of one search.

    Args:
        layout: how many they are, and where the data is.
        work: folder of the shards.
        folder: of the run.
        output: the file for what they print; it is continued.
        overrides: further ones.
    """

    def __init__(
        self, layout: Layout, work: Path, folder: Path, output: Path, overrides: Sequence[str] = ()
    ) -> None:
        arguments = [DIGITS, *SMALL, *layout.overrides(work), f"run.dir={folder}", *overrides]
        self._folder = folder
        self._processes: list[Any] = []
        port = _free_port()
        for rank in range(layout.processes):
            arguments_of_rank = (rank, layout.processes, port, output, arguments)
            process = _FORK.Process(target=_be_rank, args=arguments_of_rank)
            process.start()
            self._processes.append(process)
            os.setpgid(self._processes[-1].pid, self._processes[0].pid)

    @property
    def is_alive(self) -> bool:
        """Whether any process has not ended."""
        return any(process.is_alive() for process in self._processes)

    def wait(self, seconds: float) -> list[int | None]:
        """Wait until all have ended, at most so many seconds; their exit codes, None for those that have not."""
        end = time.monotonic() + seconds
        for process in self._processes:
            process.join(max(0.0, end - time.monotonic()))
        return [process.exitcode for process in self._processes]

    def wait_for_saves(self, number: int, seconds: float) -> None:
        """Wait until so many checkpoints have begun to be written, or all processes have ended."""
        end, before, begun = time.monotonic() + seconds, set(self._begun()), set[str]()
        while self.is_alive and time.monotonic() < end and len(begun) < number:
            begun |= set(self._begun()) - before  # older ones are deleted meanwhile
            time.sleep(0.001)

    def _begun(self) -> list[str]:
        checkpoints = self._folder / CHECKPOINTS
        names = [path.name for path in checkpoints.iterdir()] if checkpoints.exists() else []
        return [name.strip(".").partition(".")[0] for name in names if "step-" in name]

    def send(self, number: signal.Signals, rank: int) -> None:
        """Send a signal to one process, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._processes[rank].pid, number)

    def kill(self) -> None:
        """SIGKILL to all of them, and to the processes that decode their images."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._processes[0].pid, signal.SIGKILL)
        for process in self._processes:
            process.kill()
            process.join()


def _be_rank(rank: int, processes: int, port: int, output: Path, arguments: Sequence[str]) -> None:
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    if processes > 1:
        own = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank}
        os.environ |= {name: str(value) for name, value in own.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    sys.exit(importlib.import_module("ohl_accel.search").main(arguments))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def final_state(folder: Path) -> dict[str, Any]:
    """What a search leaves, without times: metrics, and digests of policy, network and newest checkpoint."""
    lines = read_metrics(folder / METRICS_FILE)
    for line in lines:
        del line["seconds"], line["images_per_second"]
    newest = max((folder / CHECKPOINTS).glob("step-*"))
    files = [newest / "state.safetensors", *(folder / name for name in (POLICY_FILE, *NETWORK_FILES))]
    return {"metrics": lines, **{file.name: digest_of(file) for file in files}}


@dataclass(frozen=True)
class Undisturbed:
    """A search that nothing has happened to."""

    layout: Layout
    state: Mapping[str, Any]
    seconds: float


def run_undisturbed(layout: Layout, work: Path) -> Undisturbed:
    """Run a search to its end.

    Raises:
        RuntimeError: with what it printed, if it fails.
    """
    folder, output = work / f"undisturbed {layout}", work / f"undisturbed {layout}.txt"
    began = time.monotonic()
    codes = Crew(layout, work, folder, output).wait(LONGEST)
    if set(codes) != {0}:
        raise RuntimeError(f"an undisturbed search ended with {codes}:\n{output.read_text()}")
    return Undisturbed(layout, final_state(folder), time.monotonic() - began)


def run_killed(undisturbed: Undisturbed, work: Path, seed: int, kills: int) -> dict[str, Any]:
    """A search that is killed again and again, half of the times within 20 ms of a checkpoint, and then left alone."""
    layout, draw = undisturbed.layout, random.Random(f"kills {seed}")
    folder, output = work / f"killed {seed}", work / f"killed {seed}.txt"
    hit = 0
    for _ in range(kills):
        crew = Crew(layout, work, folder, output)
        if draw.random() < 0.5:
            crew.wait_for_saves(draw.randint(1, 2), LONGEST)
            time.sleep(draw.uniform(0, 0.02))
        else:
            crew.wait(draw.uniform(0, undisturbed.seconds))
        hit += crew.is_alive
        crew.kill()
    return {"layout": str(layout), "kills": hit, **_end(undisturbed, work, folder, output)}


def run_signalled(
    undisturbed: Undisturbed, work: Path, seed: int, number: signal.Signals, target: str
) -> dict[str, Any]:
    """A search that gets a signal, and is resumed; `target` is `worker` or `launcher`."""
    layout, draw = undisturbed.layout, random.Random(f"signals {seed}")
    folder, output = work / f"signalled {seed}", work / f"signalled {seed}.txt"
    saves, pause = draw.randint(2, 5), draw.uniform(0, 0.05)
    if target == "worker":
        crew = Crew(layout, work, folder, output)
        crew.wait_for_saves(saves, LONGEST)
        time.sleep(pause)
        crew.send(number, draw.randrange(layout.processes))
        began = time.monotonic()
        codes = crew.wait(LONGEST)
        seconds = time.monotonic() - began
        crew.kill()
    else:
        codes, seconds = _signal_launcher(layout, work, folder, output, number, saves)
    told: dict[str, Any] = {"layout": str(layout), "signal": number.name, "target": target}
    saved = "saved; run.resume=auto goes on from there" in output.read_text(errors="replace")
    told |= {"exit_codes": codes, "seconds": round(seconds, 2), "saved": saved, "ended": None not in codes}
    return {**told, **_end(undisturbed, work, folder, output)}


def _signal_launcher(
    layout: Layout, work: Path, folder: Path, output: Path, number: signal.Signals, saves: int
) -> tuple[list[int | None], float]:
    """The exit code of the launcher, None unless all processes have ended; seconds until they had."""
    command = [sys.executable, "-m", "ohl_accel", "search", "--processes", str(layout.processes), "--config"]
    command += ["cpu_processes", DIGITS, *SMALL, *layout.overrides(work), f"run.dir={folder}"]
    with output.open("ab") as file:
        launcher = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, cwd=REPOSITORY)
    end = time.monotonic() + LONGEST
    newest = folder / CHECKPOINTS / f"step-{saves - 1:06d}"
    while launcher.poll() is None and time.monotonic() < end and not newest.exists():
        time.sleep(0.01)
    launcher.send_signal(number)
    began = time.monotonic()
    while (left := _processes_of(launcher, folder)) and time.monotonic() < began + LONGEST:
        time.sleep(0.05)
    seconds = time.monotonic() - began
    for process in left:
        process.kill()
    code = launcher.wait()
    return [None if left else code], seconds


def _processes_of(launcher: subprocess.Popen[bytes], folder: Path) -> list[psutil.Process]:
    """The processes of a run, and its launcher, that have not ended."""
    launcher.poll()  # otherwise it stays as a zombie
    return [process for process in psutil.process_iter() if _is_of(process, folder)]


def _is_of(process: psutil.Process, folder: Path) -> bool:
    """Whether a process is one of a run's, wherever its launcher has put it."""
    try:
        return f"run.dir={folder}" in process.cmdline()  # a zombie has none
    except psutil.Error:
        return False


def _end(undisturbed: Undisturbed, work: Path, folder: Path, output: Path) -> dict[str, Any]:
    """Resume a search, let it end, and compare."""
    printed = output.read_text(errors="replace")
    crew = Crew(undisturbed.layout, work, folder, output)
    codes = crew.wait(LONGEST)
    crew.kill()
    told = {"tracebacks": printed.count("Traceback"), "resumed_codes": sorted(set(codes), key=str)}
    if set(codes) != {0}:  # late, lost or failed: it cannot be compared, and what it printed says why
        last = output.read_text(errors="replace").strip().splitlines()[-1:]
        return {**told, "equal": False, "last_line": "".join(last)[:300]}
    state = final_state(folder)
    different = sorted(
        name for name in {*state, *undisturbed.state} if state.get(name) != undisturbed.state.get(name)
    )
    return {**told, "equal": not different, **({"different": different} if different else {})}


class _Watch(Observer):
    """Records memory in bytes and open files after each outer step."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.memory: list[int] = []
        self.files: list[int] = []

    def outer_step(self, run: RunInfo, line: Mapping[str, Any]) -> None:
        self.memory.append(self.process.memory_info().rss)
        self.files.append(self.process.num_fds())


def run_watched(work: Path, steps: int) -> dict[str, Any]:
    """A search of many outer steps: by how much its memory grows in the second half, and how many files it has open.

    Called in a process of its own.
    """
    watch = _Watch()
    search(DIGITS, [*SMALL, f"outer.steps={steps}", f"run.dir={work / 'watched'}"], observers=[watch])
    half = steps // 2
    grown = (watch.memory[-1] - watch.memory[half]) / 2**20
    files = watch.files[half:]
    return {"steps": steps, "grown_mib": round(grown, 2), "open_files": [min(files), max(files)]}


def in_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call a function in a forked process; what it returns, or `error` with the traceback.

    Args:
        function: returns what JSON can hold.
        arguments: of the function.
    """
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_call, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        text = receiver.recv()
    except EOFError:
        text = json.dumps({"error": "the process was killed"})
    process.join()
    result: dict[str, Any] = json.loads(text)
    return result


def _call(sender: Any, function: Callable[..., dict[str, Any]], arguments: Sequence[Any]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the search's own summary
    try:
        result = function(*arguments)
    except BaseException:
        result = {"error": traceback.format_exc()}
    sender.send(json.dumps(result))
