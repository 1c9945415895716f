"""Signals that ask a command to stop: it ends at once, or where its work can be saved.

A command installs the handlers. While it trains, a first signal only asks it to stop: its processes agree where they
do (`ohl_accel.engine.pauses`), and save. A second signal ends the process at once, as does the first elsewhere.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
"""What terminals, schedulers and launchers send."""

_SAME = 1.0
"""Seconds in which a launched process may get a signal twice: from a terminal or scheduler, and from its launcher."""
_LAUNCHED_BY = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
"""Variables of the environment that torchrun and `accelerate launch` set."""


class Interrupted(KeyboardInterrupt):
    """A signal ended the command.

    Attributes:
        number: of the signal.
        saved: what is saved, in words; empty if nothing is known about it.
    """

    def __init__(self, number: int, saved: str = "") -> None:
        super().__init__(number, saved)
        self.number, self.saved = number, saved


@dataclass
class _State:
    process: int = 0
    """The one that installed the handlers: those that it forks inherit them."""
    number: int = 0
    since: float = 0.0
    deferred: bool = False
    grace: float = 0.0
    watch: threading.Timer | None = None


_state = _State()


def exit_code(number: int) -> int:
    """130 for Ctrl-C, as shells have it; otherwise 75 (EX_TEMPFAIL of sysexits.h): try again."""
    return 130 if number in (0, signal.SIGINT) else 75


def requested() -> int:
    """The signal that asked this process to stop; 0: none did."""
    return _state.number


def install() -> None:
    """Handle all signals that ask to stop, but those that are ignored (`nohup`, background jobs of a shell).

    A process that a launcher started stops as if by SIGTERM when its launcher is gone.
    """
    _state.process, _state.number = os.getpid(), 0
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    if any(name in os.environ for name in _LAUNCHED_BY):
        threading.Thread(target=_watch_launcher, args=[os.getppid()], daemon=True).start()


@contextmanager
def deferred(grace: float) -> Iterator[None]:
    """In this block a first signal only asks to stop (`requested`).

    Args:
        grace: seconds from the signal until the process ends whether or not it has stopped by itself.
    """
    _state.deferred, _state.grace = True, grace
    try:
        yield
    finally:
        _state.deferred = False
        if _state.watch is not None:
            _state.watch.cancel()


def _on_signal(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.process:  # forked, to decode images: its parent ends it
        if number == signal.SIGTERM:
            os._exit(128 + number)
        return
    name = signal.Signals(number).name
    if _state.number:
        launched = any(variable in os.environ for variable in _LAUNCHED_BY)
        if not launched or time.monotonic() - _state.since > _SAME:
            _end_now(f"stopped at once by a second signal, {name}", number)
        return
    _state.number, _state.since = number, time.monotonic()
    if not _state.deferred:
        raise Interrupted(number)
    late = f"not stopped {_state.grace:g} s (run.grace) after {name}: ended at once"
    _state.watch = threading.Timer(_state.grace, _end_now, [late, number])
    _state.watch.daemon = True
    _state.watch.start()


def _watch_launcher(launcher: int, sleep: Callable[[float], None] = time.sleep) -> None:
    while os.getppid() == launcher:
        sleep(1.0)
    if _state.number:  # the same signal has ended the launcher
        return
    if int(os.environ.get("LOCAL_RANK") or 0) == 0:
        print("the launcher of this process is gone: it stops", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def _end_now(why: str, number: int) -> NoReturn:
    if int(os.environ.get("RANK") or 0) == 0:
        os.write(2, f"{why}; run.resume=auto resumes from the last checkpoint, if there is one\n".encode())
    os._exit(exit_code(number))
