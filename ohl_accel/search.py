"""`python -m ohl_accel.search`, the same as `ohl-accel search` (`ohl_accel.cli`)."""

import sys
from functools import partial

from ohl_accel import cli

main = partial(cli.main, "search")

if __name__ == "__main__":
    sys.exit(main())
