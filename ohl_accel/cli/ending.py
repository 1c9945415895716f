"""How a command ends: exit codes, and errors without a traceback."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from ohl_accel import interrupts
from ohl_accel.errors import (
    ProcessFailedError,
    RunFailedError,
    UserError,
    first_line,
    missing_extra,
    ran_out_of_memory,
)

_LAUNCH = "ohl_accel.distributed.launch"
_RESUME = "run.resume=auto resumes from the last checkpoint, if there is one"
_NO_MEMORY = (
    "there is not enough memory. More processes (each then hosts fewer trajectories), a smaller inner.batch_size, "
    "data.eval_batch_size or data.image_size, run.mixed_precision=bf16 or model.shard=true need less; what is on disk "
    "is intact:"
)


def run_command(command: Callable[[], None], after_stop: str = _RESUME) -> int:
    """Run a command; the exit code is 0, 2 for a mistake of the user, 1 for a run that failed.

    If it was stopped, it is 130 for Ctrl-C (SIGINT), and 75, which asks schedulers to try again, for other signals.

    Errors common to all processes are printed by the main one.

    Args:
        command: what to run.
        after_stop: the hint shown when the user stopped it.
    """
    interrupts.install()
    try:
        command()
    except ProcessFailedError as error:
        _end_alone(str(error))
    except UserError as error:
        code, message = 2, f"error: {error}"
    except RunFailedError as error:
        code, message = 1, f"error: {error}"
    except ModuleNotFoundError as error:
        needed = missing_extra(error)
        if needed is None:
            raise
        code, message = 2, f"error: {needed}"
    except (RuntimeError, MemoryError) as error:
        if ran_out_of_memory(error):  # the others may not know
            _end_alone(f"{_NO_MEMORY} {after_stop} ({first_line(error)})")
        from ohl_accel.distributed.launch import explain_lost

        if "DataLoader worker" in str(error):
            reason = "out of memory, or the launch was stopped"
            _end_alone(f"a process that decodes images ended ({reason}): {error}")
        lost = explain_lost(error) if isinstance(error, RuntimeError) else None
        if lost is None:
            raise
        _end_alone(lost)  # each process prints it: it may be the only one left
    except KeyboardInterrupt as error:
        number, saved = interrupts.requested(), ""
        if isinstance(error, interrupts.Interrupted):
            number, saved = error.number, error.saved
        code = interrupts.exit_code(number)
        message = (
            f"stopped; {saved}; run.resume=auto goes on from there" if saved else f"stopped; {after_stop}"
        )
    else:
        code, message = 0, ""
    if message and int(os.environ.get("RANK") or 0) == 0:
        print(message, file=sys.stderr, flush=True)
    if code < 3 and _LAUNCH in sys.modules:  # all processes are here; interrupted ones may be anywhere
        from ohl_accel.distributed.launch import leave

        leave()
    return code


def _end_alone(message: str) -> NoReturn:
    """End at once: an orderly shutdown would wait for the other processes, for up to `run.timeout`."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise an error here
    for worker in multiprocessing.active_children():
        worker.kill()  # it shares the connections: while it lives, other processes do not see them closed
    os._exit(1)
