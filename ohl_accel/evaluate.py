"""`python -m ohl_accel.evaluate`, the same as `ohl-accel evaluate` (`ohl_accel.cli`)."""

import sys
from functools import partial

from ohl_accel import cli

main = partial(cli.main, "evaluate")

if __name__ == "__main__":
    sys.exit(main())
