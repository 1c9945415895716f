"""The runs of a comparison, several in parallel, each in its own process."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ohl_accel.run_folder.result import main_score, read_result


@dataclass
class Job:
    """One contender with one seed."""

    contender: str
    seed: int
    folder: Path
    """Its run folder."""
    log: Path
    """The file for its output."""
    command: Callable[[], list[str]]
    """Called when the job starts: the command may name files that other jobs write."""
    after: "Job | None" = None
    share: int = 1
    """Images that it trains on itself, as a multiple of one plain training."""

    @property
    def result(self) -> dict[str, Any] | None:
        """`result.json` of the finished run, else None.

        Raises:
            UserError: if it is damaged.
        """
        return read_result(self.folder)

    @property
    def test_score(self) -> float | None:
        """The main score on the test images of the finished run; higher is better."""
        result = self.result
        score = main_score(result) if result is not None else None
        better = result is None or result.get("greater_is_better", True)
        return score if score is None or better else -score


def default_side_by_side(cpu_threads: int) -> int:
    """One job per GPU; without a GPU, as many as the cores allow at `cpu_threads` each."""
    known = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return torch.cuda.device_count() or max(1, cores // cpu_threads)


def run_jobs(jobs: Sequence[Job], side_by_side: int, ended: Callable[[Job, float], None]) -> list[Job]:
    """Run the jobs that have no result yet, in order, as soon as each is ready.

    A job that fails does not stop the others, but those that depend on it do not start. On an interrupt
    the running ones are stopped; they resume from their checkpoints when they are run again.

    Args:
        jobs: all of them.
        side_by_side: how many at once; on a machine with GPUs, the k-th of these gets GPU k.
        ended: called with each job that has ended and its duration in seconds.

    Returns:
        The jobs without a result, in their order.
    """
    waiting = [job for job in jobs if job.result is None]
    running: dict[int, tuple[Job, subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            for slot in set(range(side_by_side)) - set(running):
                ready = next((job for job in waiting if job.after is None or job.after.result), None)
                if ready is not None:
                    waiting.remove(ready)
                    running[slot] = (ready, _start(ready, slot), time.monotonic())
            if not running:
                break  # the waiting jobs depend on one that failed
            time.sleep(0.2)
            for slot, (job, process, began) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    ended(job, time.monotonic() - began)
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.wait()
    return [job for job in jobs if job.result is None]


def last_words(job: Job) -> str:
    """The error that a failed job printed, or its last line."""
    if not job.log.is_file():
        needed = f": needs {job.after.contender}" if job.after else ""
        return f"was not started{needed}"
    lines = [line.strip() for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["no output"])[-1]


def _start(job: Job, slot: int) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    with job.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *job.command()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
