"""`python -m ohl_accel.train`; what it does is in `ohl_accel.engine.train`."""

import sys

from ohl_accel.engine.train import main

if __name__ == "__main__":
    sys.exit(main())
