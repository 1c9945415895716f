"""The command line: `ohl-accel COMMAND ...`, which is also `python -m ohl_accel COMMAND ...`.

`python -m ohl_accel.search`, `.train`, `.evaluate`, `.compare`, `.report` and `.hub` are the same commands. Heavy
imports in this package wait until they are known to be needed, so that `--help` and a mistake are answered at once.
"""

import sys
from collections.abc import Sequence

from ohl_accel.cli.ending import run_command
from ohl_accel.errors import missing_extra

__all__ = ["main", "run_command"]


def main(command: str | None = None, argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        command: the command, if `argv` does not name it; None for `ohl-accel`.
        argv: the arguments; None for those of this process.

    Returns:
        The exit code: 0, 2 for a mistake of the user, 1 for a run that failed, 130 if stopped.
    """
    try:
        from ohl_accel.cli.commands import run
    except ModuleNotFoundError as error:
        needed = missing_extra(error)
        if needed is None:
            raise
        print(f"error: {needed}", file=sys.stderr)
        return 2
    return run(command, sys.argv[1:] if argv is None else argv)
