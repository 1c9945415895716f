"""Policies compared fairly: pairs of runs with equal seeds, and what their differences say."""

from ohl_accel.comparison.compare import compare
from ohl_accel.comparison.summary import Row

__all__ = ["Row", "compare"]
