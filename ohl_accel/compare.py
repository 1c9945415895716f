"""`python -m ohl_accel.compare`; what it does is in `ohl_accel.comparison.compare`."""

import sys

from ohl_accel.comparison.compare import main

if __name__ == "__main__":
    sys.exit(main())
