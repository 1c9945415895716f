"""`python -m ohl_accel.evaluate`; what it does is in `ohl_accel.engine.evaluate`."""

import sys

from ohl_accel.engine.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
