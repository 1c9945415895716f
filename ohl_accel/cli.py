"""What the commands share: arguments, exit codes, and errors without a traceback."""

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from ohl_accel.distributed.launch import explain_lost, leave
from ohl_accel.errors import ProcessFailedError, RunFailedError, UserError


def recipe_arguments(command: str, purpose: str, argv: Sequence[str] | None) -> tuple[str, list[str]]:
    """Parse `RECIPE [section.key=value ...]`: (path of the recipe, overrides)."""
    parser = argparse.ArgumentParser(
        prog=f"python -m ohl_accel.{command}",
        description=purpose,
        epilog=f"Over several processes: accelerate launch --config_file accelerate_configs/... -m ohl_accel.{command}",
    )
    parser.add_argument("recipe", help="a YAML recipe, such as recipes/digits.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that replace the recipe's"
    )
    arguments = parser.parse_args(argv)
    return arguments.recipe, arguments.overrides


_RESUME = "run.resume=auto goes on from the last checkpoint, if there is one"


def run_command(command: Callable[[], None], after_stop: str = _RESUME) -> int:
    """Run a command; the exit code is 0, 2 for a mistake of the user, 1 for a run that failed, 130 if stopped.

    Errors that every process has are printed by the main one.

    Args:
        command: what to run.
        after_stop: what to tell a user who stopped it.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        command()
    except ProcessFailedError as error:
        _end_alone(str(error))
    except UserError as error:
        code, message = 2, f"error: {error}"
    except RunFailedError as error:
        code, message = 1, f"error: {error}"
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            reason = "for want of memory, or because the launch was stopped"
            _end_alone(f"a process that decodes images ended ({reason}): {error}")
        lost = explain_lost(error)
        if lost is None:
            raise
        _end_alone(lost)  # each says it: it may be the only one that is left
    except KeyboardInterrupt:
        code, message = 130, f"stopped; {after_stop}"
    else:
        code, message = 0, ""
    if message and int(os.environ.get("RANK") or 0) == 0:
        print(message, file=sys.stderr, flush=True)
    if code != 130:  # all processes are here; after an interruption they may be anywhere
        leave()
    return code


def _end_alone(message: str) -> NoReturn:
    """End at once: to say good-bye to the other processes would be to wait for them, as long as `run.timeout`."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise an error here
    for worker in multiprocessing.active_children():
        worker.kill()  # it shares the connections: while it lives, the others do not see them closed
    os._exit(1)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
