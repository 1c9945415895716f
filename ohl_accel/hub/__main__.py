"""The commands.

python -m ohl_accel.hub push RUN user/name [--policy-only] [--private] [...]
python -m ohl_accel.hub pull user/name[@revision] FOLDER
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ohl_accel.cli import run_command
from ohl_accel.hub.contents import Finished
from ohl_accel.hub.transfer import pull, push
from ohl_accel.recipe import Recipe


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m ohl_accel.hub", description="Publish runs on the Hub.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("push", help="publish a run folder in one commit")
    up.add_argument("run", type=Path, help="the run folder")
    up.add_argument("repo", help="user/name; made if missing")
    up.add_argument("--policy-only", action="store_true", default=None, help="without the network")
    up.add_argument("--private", action="store_true", default=None, help="make the repository private")
    up.add_argument("--gated", choices=["auto", "manual"], help="who downloads must ask")
    up.add_argument("--tags", nargs="+", help="further tags of the model card")
    up.add_argument("--license", help="in the Hub's spelling, such as apache-2.0")
    up.add_argument("--version", help="a git tag for the commit, such as v1")
    up.add_argument("--patience", type=float, help="seconds of waiting before it is given up")
    down = commands.add_parser("pull", help="fetch what was published into a folder")
    down.add_argument("repo", help="user/name, or user/name@revision")
    down.add_argument("folder", type=Path, help="is made, or is empty")
    return parser.parse_args(argv)


def push_command(given: argparse.Namespace) -> None:
    """Publish a run; what is not given is as the run's recipe has it."""
    recipe: Recipe = Finished.read(given.run).recipe
    changes: dict[str, Any] = {name: getattr(given, name, None) for name in type(recipe.hub).model_fields}
    section = recipe.with_values(
        hub={name: value for name, value in changes.items() if value is not None}
    ).hub
    print(f"published: {push(given.run, section, say)}")


def pull_command(given: argparse.Namespace) -> None:
    """Fetch a run, and say what came."""
    repo, _, revision = given.repo.partition("@")
    for name in pull(repo, revision or None, given.folder, say):
        print(given.folder / name)


def say(text: str) -> None:
    """A line about how it goes."""
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    given = arguments(argv)
    command = push_command if given.command == "push" else pull_command
    return run_command(lambda: command(given), after_stop="the same command begins again")


if __name__ == "__main__":
    sys.exit(main())
