"""`python -m ohl_accel.train`, the same as `ohl-accel train` (`ohl_accel.cli`)."""

import sys
from functools import partial

from ohl_accel import cli

main = partial(cli.main, "train")

if __name__ == "__main__":
    sys.exit(main())
