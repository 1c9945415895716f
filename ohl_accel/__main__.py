"""`python -m ohl_accel`, the same as `ohl-accel` (`ohl_accel.cli`)."""

import sys

from ohl_accel import cli

if __name__ == "__main__":
    sys.exit(cli.main())
