"""`accelerate launch` in this process, which ends as its processes end: without the launcher's own traceback."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from subprocess import CalledProcessError
from types import FrameType
from typing import NoReturn

import psutil
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from ohl_accel.errors import RunFailedError
from ohl_accel.interrupts import SIGNALS, Interrupted, exit_code


def run_launcher(arguments: Sequence[str]) -> NoReturn:
    """Launch processes, pass every signal that asks to stop on to them, wait for them, and end as they do.

    Args:
        arguments: of `accelerate launch`.

    Raises:
        SystemExit: with the exit code of the first process that failed, or that of a signal: the processes have said
            why, or what is saved.
        RunFailedError: if a process was killed, which it cannot say itself.
        Interrupted: if a signal came before there were processes.
    """
    passed_on = [number.name for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", ",".join(passed_on))  # an option of torchrun's
    for name in ("agent.server.api", "multiprocessing.api"):  # the processes say it, or this function
        logging.getLogger(f"torch.distributed.elastic.{name}").disabled = True
    # Accelerate tells how many threads it chooses
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
    rank, code = 0, 0
    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except SignalException as error:  # torch has passed it on and waited
        code = exit_code(error.sigval)
    except Interrupted as stopped:  # Accelerate starts a single process without torch, and does neither
        if not psutil.Process().children():
            raise
        code = _pass_on_and_wait(stopped.number)
    except CalledProcessError as error:
        code = error.returncode
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
    if code < 0:
        raise RunFailedError(
            f"process {rank} was killed by {signal.Signals(-code).name}, as the system does where memory is short; the "
            "same command with run.resume=auto resumes from the last checkpoint"
        )
    sys.exit(code)


def _pass_on_and_wait(number: int) -> int:
    """Pass a signal on to the processes that this one has started, and further ones that come; the exit code."""
    processes = psutil.Process().children()

    def pass_on(number: int, _: FrameType | None = None) -> None:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    for each in SIGNALS:
        signal.signal(each, pass_on)
    pass_on(number)
    psutil.wait_procs(processes)
    return exit_code(number)
