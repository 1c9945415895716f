"""A soak: searches that are killed and signalled at random, files that are damaged at random, and a long search.

python -m benchmarks.endurance [--kills N] [--runs N] [--signals N] [--mutations N] [--steps N] [--minutes M] [--out O]

Every result is a line of O.jsonl as soon as it is known; the same command goes on where it stopped. O.md is a summary.
The exit code is 1 if anything does not hold, 0 if all does. With the defaults, some hours on two cores.
"""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import torch

from benchmarks.endurance_runs import (
    DIGITS,
    LAYOUTS,
    REPOSITORY,
    SMALL,
    Layout,
    Undisturbed,
    in_process,
    run_killed,
    run_signalled,
    run_undisturbed,
    run_watched,
    write_shards,
)
from benchmarks.mutations import KINDS, MAX_BYTES, MAX_SECONDS, mutate, targets
from ohl_accel.engine.search import search

SIGNALS = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGKILL),
)
TARGETS = (("worker", 1), ("worker", 2), ("launcher", 2), ("launcher", 1))
"""Who gets a signal, and how many workers there are."""
MUTATIONS_AT_ONCE = 2500
"""Of one file, in one process."""
MOST_MIB = 4.0
"""By which a search may grow in the second half of its outer steps: what an allocator keeps."""

Task = tuple[str, Callable[[], dict[str, Any]]]
"""The key of a result, and what measures it."""


class Soak:
    """What one call of this program does.

    Args:
        work: an empty folder.
        asked: the arguments.
    """

    def __init__(self, work: Path, asked: argparse.Namespace) -> None:
        self._work, self._asked = work, asked
        self._undisturbed: dict[Layout, Undisturbed] = {}
        self._sound: Path | None = None

    def tasks(self) -> Iterator[Task]:
        """Everything to be done, in an order in which each kind gets its turn early."""
        asked = self._asked
        kinds: Sequence[Iterable[Task]] = (self._kills(), self._signals(), self._mutations(), self._steps())
        if asked.runs > asked.kills:
            raise SystemExit(
                f"--runs {asked.runs} is more than --kills {asked.kills}: each run is killed at least once"
            )
        queues = [iter(kind) for kind in kinds]
        while queues:
            for queue in list(queues):
                task = next(queue, None)
                if task is None:
                    queues.remove(queue)
                else:
                    yield task

    def _kills(self) -> Iterator[Task]:
        kills, runs = self._asked.kills, self._asked.runs
        for run in range(runs):
            layout, own = LAYOUTS[run % len(LAYOUTS)], len(range(run, kills, runs))

            def measure(run: int = run, layout: Layout = layout, own: int = own) -> dict[str, Any]:
                return run_killed(self._of(layout), self._work, run, own)

            yield f"kills {kills}/{runs} {run}", measure

    def _signals(self) -> Iterator[Task]:
        pairs = [(number, *target) for target in TARGETS for number in SIGNALS]
        for index in range(self._asked.signals):
            number, target, processes = pairs[index % len(pairs)]
            layout = Layout(processes, streamed=False)

            def measure(
                index: int = index,
                number: signal.Signals = number,
                target: str = target,
                layout: Layout = layout,
            ) -> dict[str, Any]:
                return run_signalled(self._of(layout), self._work, index, number, target)

            yield f"signals {index}", measure

    def _mutations(self) -> Iterator[Task]:
        for first in range(0, self._asked.mutations, MUTATIONS_AT_ONCE):
            count = min(MUTATIONS_AT_ONCE, self._asked.mutations - first)
            for kind in KINDS:

                def measure(kind: str = kind, first: int = first, count: int = count) -> dict[str, Any]:
                    return in_process(_mutate, self._sound_run(), kind, first, count)

                yield f"mutations {kind} {first} {count}", measure

    def _steps(self) -> Iterator[Task]:
        steps = self._asked.steps
        if steps:
            yield f"steps {steps}", lambda: in_process(run_watched, self._work, steps)

    def _of(self, layout: Layout) -> Undisturbed:
        if not (self._work / "shards").exists():
            in_process(_shards, self._work)
        if layout not in self._undisturbed:
            self._undisturbed[layout] = run_undisturbed(layout, self._work)
        return self._undisturbed[layout]

    def _sound_run(self) -> Path:
        if self._sound is None:
            self._sound = self._work / "sound"
            in_process(_search, self._sound)
        return self._sound


def _shards(work: Path) -> dict[str, Any]:
    datasets.disable_progress_bars()
    write_shards(work)
    return {}


def _search(folder: Path) -> dict[str, Any]:
    search(DIGITS, [*SMALL, f"run.dir={folder}"])
    return {}


def _mutate(sound: Path, kind: str, first: int, count: int) -> dict[str, Any]:
    """Damage one kind of file of a copy of a sound run."""
    with tempfile.TemporaryDirectory() as work:
        file, read = targets(sound, Path(work))[kind]
        outcomes = mutate(file.read_bytes(), file, read, count, first=first)
    return {"kind": kind, "count": count, **outcomes}


def holds(result: Mapping[str, Any]) -> bool:
    """Whether a result is as it should be."""
    if "error" in result:
        return False
    if "steps" in result:
        least, most = result["open_files"]
        return bool(result["grown_mib"] < MOST_MIB and least == most)
    if "equal" in result:
        noticed = 0 not in result.get("exit_codes", ())
        return bool(noticed and result["equal"] and not result["tracebacks"] and result.get("ended", True))
    return True


def summary(results: Mapping[str, Mapping[str, Any]], about: Sequence[str]) -> str:
    """The results as Markdown.

    Args:
        results: by their keys.
        about: lines on how they were made.
    """
    of: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for key, result in results.items():
        if "error" not in result:
            of[key.partition(" ")[0]].append(result)
    failed = [key for key, result in results.items() if not holds(result)]
    parts = ["# Endurance", ""]
    parts.append(f"{len(results) - len(failed)} of {len(results)} hold." + (" The others:" if failed else ""))
    parts += ["", *(f"- {key}: {_why(results[key])}" for key in failed)] if failed else []
    parts += _about_kills(of["kills"]) + _about_signals(of["signals"]) + _about_mutations(of["mutations"])
    for result in of["steps"]:
        least, most = result["open_files"]
        parts += ["", "## A long search", ""]
        parts.append(
            f"{result['steps']} outer steps; in their second half memory grew by {result['grown_mib']:+.1f} MiB, and "
            f"{least} to {most} files were open."
        )
    return "\n".join([*parts, "", *(f"- {line}" for line in about), ""])


def _about_kills(results: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for layout in dict.fromkeys(result["layout"] for result in results):
        own = [result for result in results if result["layout"] == layout]
        kills, equal = (sum(result[name] for result in own) for name in ("kills", "equal"))
        rows.append((layout, len(own), kills, equal))
    title = "SIGKILL at random moments, half of them within 20 ms of a checkpoint"
    return _table(
        title, ("layout", "runs", "kills of a running search", "ended as if undisturbed, bit for bit"), rows
    )


def _about_signals(results: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for name, target in dict.fromkeys((result["signal"], result["target"]) for result in results):
        own = [result for result in results if (result["signal"], result["target"]) == (name, target)]
        codes = ", ".join(sorted({str(code) for result in own for code in result["exit_codes"]}))
        seconds = [result["seconds"] for result in own]
        hung, equal = sum(not result["ended"] for result in own), sum(result["equal"] for result in own)
        tracebacks = sum(result["tracebacks"] > 0 for result in own)
        saved = sum(result["saved"] for result in own)
        took = f"{median(seconds):.1f} ({max(seconds):.1f})"
        rows.append((name, target, len(own), codes, took, hung, tracebacks, saved, equal))
    columns = [
        *("signal", "to", "times", "exit codes", "seconds until the end, median (most)"),
        *(
            "hung, or left processes",
            "with a traceback",
            "said what is saved",
            "ended bit for bit once resumed",
        ),
    ]
    return _table("Signals", columns, rows)


def _about_mutations(results: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for kind in dict.fromkeys(result["kind"] for result in results):
        own = [result for result in results if result["kind"] == kind]
        numbers = [
            sum(result.get(name, 0) for result in own) for name in ("count", "read", "refused", "the same")
        ]
        rows.append((kind, *(f"{number:,}" for number in numbers)))
    title = (
        f"Files damaged at random: read or refused within {MAX_SECONDS:.0f} s and {MAX_BYTES // 2**20} MiB"
    )
    return _table(title, ("file", "mutations", "read", "refused", "the same as before"), rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    if not rows:
        return []
    lines = [columns, ["---"] * len(columns), *rows]
    return ["", f"## {title}", "", *(f"| {' | '.join(map(str, line))} |" for line in lines)]


def _why(result: Mapping[str, Any]) -> str:
    if "error" in result:
        last = str(result["error"]).strip().splitlines()[-1][:300].replace("`", "'")
        return f"`{last}`"
    return ", ".join(f"{name} {value}" for name, value in result.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is left to do, for at most the time given; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description="A soak.")
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs, over all runs")
    parser.add_argument("--runs", type=int, default=12, help="runs that are killed")
    parser.add_argument("--signals", type=int, default=50, help="signals")
    parser.add_argument("--mutations", type=int, default=5000, help="mutations of each kind of file")
    parser.add_argument("--steps", type=int, default=300, help="outer steps of the long search; 0: none")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no task begins after so many")
    default = REPOSITORY / "benchmarks" / "results" / "endurance"
    parser.add_argument("--out", type=Path, default=default, help="results: OUT.jsonl and OUT.md")
    asked = parser.parse_args(argv)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # what a shell starts in the background ignores it
    log = asked.out.with_suffix(".jsonl")
    done: dict[str, dict[str, Any]] = {}
    if log.exists():
        done = {line.pop("key"): line for line in map(json.loads, log.read_text().splitlines())}
    end = time.monotonic() + 60 * asked.minutes
    left = 0
    with tempfile.TemporaryDirectory() as work:
        os.environ["HF_DATASETS_CACHE"] = f"{work}/cache"  # for launchers
        datasets.config.HF_DATASETS_CACHE = Path(work) / "cache"
        for key, measure in Soak(Path(work), asked).tasks():
            if key in done:
                continue
            if time.monotonic() > end:
                left += 1
                continue
            try:
                done[key] = measure()
            except RuntimeError as error:
                done[key] = {"error": str(error)}
            with log.open("a") as file:
                file.write(json.dumps({"key": key, **done[key]}) + "\n")
            print(f"{key}: {'holds' if holds(done[key]) else _why(done[key])}", flush=True)
    arguments = " ".join(sys.argv[1:] if argv is None else argv)
    about = [f"command: `python -m benchmarks.endurance {arguments}`".rstrip("` ") + "`"]
    about += [f"tasks that are left, for the same command: {left}"] if left else []
    about += [
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"torch {torch.__version__}",
        time.strftime("%Y-%m-%d"),
    ]
    asked.out.with_suffix(".md").write_text(summary(done, about))
    return 0 if all(map(holds, done.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
