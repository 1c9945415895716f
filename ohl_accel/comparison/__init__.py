"""Fair comparison of policies: pairs of runs with equal seeds, and statistics of their differences."""

from ohl_accel.comparison.compare import compare
from ohl_accel.comparison.summary import Row

__all__ = ["Row", "compare"]
