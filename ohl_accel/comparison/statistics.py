"""Paired comparison of final test accuracies: differences at equal seeds, with their uncertainty.

n seeds; accuracies in 0..1. A difference is the contender's accuracy minus the reference's with the same
seed, which has the same first weights and the same images in the same order.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """Mean paired difference from the reference over n seeds, with its uncertainty.

    Intervals and p are None if n = 1.
    """

    mean: float
    n: int
    t_interval: tuple[float, float] | None
    """Student's, 95 %."""
    bootstrap_interval: tuple[float, float] | None
    """Percentiles of 10,000 resamples of the differences, 95 %; too narrow if n is small."""
    p: float | None
    """Two-sided paired t-test, uncorrected."""


def paired_difference(accuracy_n: Sequence[float], reference_n: Sequence[float]) -> Difference:
    """Compare two contenders at the seeds they have in common.

    Args:
        accuracy_n, reference_n: test accuracies, in the same order of seeds.

    Raises:
        ValueError: if the numbers of seeds differ or are 0.
    """
    if len(accuracy_n) != len(reference_n) or not accuracy_n:
        raise ValueError(f"pairs are needed, got {len(accuracy_n)} and {len(reference_n)} accuracies")
    difference_n = np.asarray(accuracy_n) - np.asarray(reference_n)
    n, mean = len(difference_n), float(difference_n.mean())
    if n == 1:
        return Difference(mean, n, None, None, None)
    if np.ptp(difference_n) < 1e-12:  # all equal: no variance for a test
        return Difference(mean, n, (mean, mean), (mean, mean), 1.0 if abs(mean) < 1e-12 else 0.0)
    error = float(difference_n.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean / error), n - 1))
    resampled = stats.bootstrap(
        (difference_n,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=_RESAMPLES,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return Difference(mean, n, (mean - half, mean + half), (float(resampled.low), float(resampled.high)), p)


def mean_interval(accuracy_n: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of a mean over n seeds; None for one seed."""
    n = len(accuracy_n)
    if n < 2:
        return None
    mean, error = float(np.mean(accuracy_n)), float(np.std(accuracy_n, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return mean - half, mean + half


def holm(p_by_name: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction of p values for multiple comparisons."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_by_name.items(), key=lambda pair: pair[1])):
        largest = max(largest, min(1.0, (len(p_by_name) - rank) * p))
        adjusted[name] = largest
    return adjusted
