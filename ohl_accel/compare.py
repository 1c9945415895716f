"""`python -m ohl_accel.compare`, the same as `ohl-accel compare` (`ohl_accel.cli`)."""

import sys
from functools import partial

from ohl_accel import cli

main = partial(cli.main, "compare")

if __name__ == "__main__":
    sys.exit(main())
