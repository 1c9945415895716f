"""`python -m ohl_accel.report`, the same as `ohl-accel report` (`ohl_accel.cli`)."""

import sys
from functools import partial

from ohl_accel import cli

main = partial(cli.main, "report")

if __name__ == "__main__":
    sys.exit(main())
