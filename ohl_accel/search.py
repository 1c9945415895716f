"""`python -m ohl_accel.search`; what it does is in `ohl_accel.engine.search`."""

import sys

from ohl_accel.engine.search import main

if __name__ == "__main__":
    sys.exit(main())
