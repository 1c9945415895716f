"""`python -m ohl_accel.hub`, the same as `ohl-accel hub` (`ohl_accel.cli`)."""

import sys
from functools import partial

from ohl_accel import cli

main = partial(cli.main, "hub")

if __name__ == "__main__":
    sys.exit(main())
