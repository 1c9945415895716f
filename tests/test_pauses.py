"""A run that is stopped by a signal inside an outer step, and resumed: bit for bit the run that was not."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import KEEP, SMALL, final_state, latest, launch, start, wait_for_checkpoint
from forked import DIGITS, call_on_ranks, search_with_signal
from test_streams import colours, stream_overrides  # noqa: F401  the first is a fixture

from ohl_accel import interrupts
from ohl_accel.engine.search import search
from ohl_accel.engine.train import train
from ohl_accel.observers.observer import Observer, RunInfo

STEPS = ("outer.steps=3", "outer.inner_steps=4")


class SignalAt(Observer):
    """Sends this process a signal after some of its inner steps."""

    def __init__(self, *steps: int, number: int = signal.SIGTERM) -> None:
        self.steps, self.number, self.done = steps, number, 0

    def inner_step(self, run: RunInfo) -> None:
        self.done += 1
        if self.done in self.steps:
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """This process handles signals as a command does, also under nohup; afterwards as before."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in interrupts.SIGNALS}
    interrupts.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "overrides"),
    [
        (signal.SIGTERM, ()),
        (signal.SIGUSR1, ("outer.average=0.5", "outer.estimator=reinforce-trust")),
        (signal.SIGHUP, ("outer.adopt=weights", "run.checkpoint_every=2")),
        (
            signal.SIGINT,
            ("data.in_memory=false", "data.workers=1", "inner.optimizer={name: adamw, lr: 0.01}"),
        ),
    ],
)
def test_a_search_stopped_inside_an_outer_step(
    number: signal.Signals, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = (*SMALL, *STEPS, *overrides)
    search(DIGITS, [*overrides, f"run.dir={tmp_path / 'whole'}"])
    with pytest.raises(interrupts.Interrupted) as stopped:
        search(DIGITS, [*overrides, f"run.dir={tmp_path / 'cut'}"], observers=[SignalAt(6, number=number)])
    assert (stopped.value.number, stopped.value.saved) == (
        number,
        "outer step 1 and 2 inner steps of 3 saved",
    )
    assert latest(tmp_path / "cut") == "step-000001-000002"
    interrupts.install()
    resumed = search(DIGITS, [*overrides, f"run.dir={tmp_path / 'cut'}", "run.resume=auto"])
    assert final_state(tmp_path / "cut") == final_state(tmp_path / "whole")
    assert len(resumed.metrics) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_with_damaged_images_stopped_inside_an_outer_step(
    workers: int,
    colours: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Images that were replaced before the signal are still counted in the line of their outer step."""
    overrides = [*SMALL, *stream_overrides(colours), f"data.workers={workers}", "outer.steps=3"]
    search(DIGITS, [*overrides, f"run.dir={tmp_path / 'whole'}"])
    with pytest.raises(interrupts.Interrupted):
        search(DIGITS, [*overrides, f"run.dir={tmp_path / 'cut'}"], observers=[SignalAt(7)])
    assert latest(tmp_path / "cut") == "step-000001-000003"
    interrupts.install()
    search(DIGITS, [*overrides, f"run.dir={tmp_path / 'cut'}", "run.resume=auto"])
    state = final_state(tmp_path / "cut")
    assert state == final_state(tmp_path / "whole")
    assert sum(line["replaced_images"] for line in state["metrics"]) > 0


def test_training_stopped_at_the_end_of_an_outer_step_and_inside_one(tmp_path: Path) -> None:
    overrides = [*SMALL, *STEPS, "augment.policy=uniform", "run.checkpoint_every=3"]
    train(DIGITS, [*overrides, f"run.dir={tmp_path / 'whole'}"])
    for steps, saved in ((4, "step-000001"), (3, "step-000001-000003")):
        with pytest.raises(interrupts.Interrupted):
            train(
                DIGITS,
                [*overrides, f"run.dir={tmp_path / 'cut'}", "run.resume=auto"],
                observers=[SignalAt(steps)],
            )
        assert latest(tmp_path / "cut") == saved
        interrupts.install()
    train(DIGITS, [*overrides, f"run.dir={tmp_path / 'cut'}", "run.resume=auto"])
    assert final_state(tmp_path / "cut") == final_state(tmp_path / "whole")


def test_checkpoints_by_the_clock(tmp_path: Path) -> None:
    """Every moment is too late for the next one: one after each inner step, the newest nine stay."""
    search(
        DIGITS,
        [*SMALL, *STEPS, f"run.dir={tmp_path}", "run.checkpoint_minutes=1e-9", "run.keep_checkpoints=9"],
    )
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    within = [f"step-00000{outer}-00000{inner}" for outer in (1, 2) for inner in (1, 2, 3)]
    assert names == ["step-000001", *within[:3], "step-000002", *within[3:], "step-000003"]


@pytest.mark.parametrize("layout", [(), ("outer.groups=1", *KEEP)])
def test_processes_agree_and_others_go_on(
    layout: tuple[str, ...], undisturbed: Path, undisturbed_pair: Path, tmp_path: Path
) -> None:
    """One of two processes gets SIGUSR2, and both stop at the same inner step: in two groups, and in one."""
    overrides = [*SMALL, *layout, f"run.dir={tmp_path}", "run.checkpoint_every=3"]
    with pytest.raises(AssertionError) as stopped:
        call_on_ranks(2, search_with_signal, signal.SIGUSR2, 4, *overrides)
    assert "exit codes [75, 75]" in str(stopped.value)
    assert "saved; run.resume=auto goes on from there" in str(stopped.value)
    assert "Traceback" not in str(stopped.value)
    assert latest(tmp_path) in ("step-000001-000002", "step-000002")
    launch(2 if layout else 1, f"run.dir={tmp_path}", "run.resume=auto", *layout, config="cpu_processes")
    assert final_state(tmp_path) == final_state(undisturbed_pair if layout else undisturbed)


def test_workers_stop_when_their_launcher_is_gone(tmp_path: Path) -> None:
    process = start(2, f"run.dir={tmp_path}", "outer.steps=4000", "run.checkpoint_every=1000")
    wait_for_checkpoint(process, tmp_path, "step-000000")
    process.kill()
    output, _ = process.communicate(timeout=60)  # until the last process that writes to it is gone
    assert "the launcher of this process is gone: it stops" in output
    assert "saved; run.resume=auto goes on from there" in output
    assert "Traceback" not in output
    assert latest(tmp_path) > "step-000000"


SLOW = """
import signal, sys, time
from ohl_accel import interrupts
interrupts.install()
with interrupts.deferred(float(sys.argv[1])):
    signal.raise_signal(signal.SIGTERM)
    print(interrupts.requested() == signal.SIGTERM, flush=True)
    if sys.argv[2:]:
        signal.raise_signal(signal.SIGUSR1)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0.2"], "not stopped 0.2 s (run.grace) after SIGTERM: ended at once"),
        (["50", "again"], "stopped at once by a second signal, SIGUSR1"),
    ],
)
def test_a_process_that_cannot_stop_is_ended(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW, *arguments], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (75, "True\n")
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


def test_signals_that_are_ignored_stay_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupts.install()
    signal.raise_signal(signal.SIGHUP)
    assert interrupts.requested() == 0


def test_exit_codes() -> None:
    assert [interrupts.exit_code(number) for number in (0, *interrupts.SIGNALS)] == [130, 130, 75, 75, 75, 75]
