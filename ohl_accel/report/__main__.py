"""The command: a run's report page, or a policy's gallery on an image.

python -m ohl_accel.report RUN [--watch SECONDS] [--output FILE]
python -m ohl_accel.report --policy HUB_ID_OR_FILE --image FILE [--draws N] [--seed N] [--output FILE]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ohl_accel.cli import run_command
from ohl_accel.report.gallery import MAX_DRAWS
from ohl_accel.report.write import write_gallery, write_report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ohl_accel.report",
        description="Draw the report page of a run, or what a policy does to an image: one HTML file.",
    )
    parser.add_argument("run", nargs="?", type=Path, help="a run folder, finished or in progress")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="draw again until the run is finished")
    parser.add_argument("--policy", help="a policy's name on the Hub, its file, or its run folder")
    parser.add_argument("--image", type=Path, help="an image to apply the policy to")
    parser.add_argument("--draws", type=int, default=12, help=f"random draws, 1 to {MAX_DRAWS} (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws (default 0)")
    parser.add_argument(
        "--output", type=Path, help="the HTML file (default RUN/report.html, or policy_gallery.html)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    gallery = arguments.policy is not None and arguments.image is not None
    if (arguments.run is not None) == gallery or (arguments.policy is None) != (arguments.image is None):
        parser.error("give either a run folder, or --policy and --image")
    if arguments.watch is not None and not arguments.watch > 0:
        parser.error(f"--watch {arguments.watch:g}: must be above 0 seconds")

    def command() -> None:
        if gallery:
            output = arguments.output or Path("policy_gallery.html")
            write_gallery(arguments.policy, arguments.image, output, arguments.draws, arguments.seed)
            print(output)
        else:
            try:
                write_report(arguments.run, print, arguments.output, arguments.watch)
            except KeyboardInterrupt:
                print("stopped")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
