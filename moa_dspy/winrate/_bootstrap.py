"""A paired difference, bounded by resampling."""

from __future__ import annotations

import numpy as np

from moa_dspy.errors import MetricError
from moa_dspy.winrate._intervals import Interval
from moa_dspy.winrate._scores import Scores, Vector, check_share, paired_vectors

_MIN_RESAMPLES = 1_000
_CHUNK_CELLS = 1_000_000  # Drawn at a time: 8 MB.


def paired_bootstrap(
    a: Scores,
    b: Scores,
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Bound mean(a - b) of two systems on the same examples by resampling examples.

    The percentile interval (Efron 1979); scores may be on any scale, and swapping the systems
    mirrors it. BCa (Efron 1987) is better where differences are skewed and worse where most
    examples tie, because it has to estimate the skewness from the few that differ, and scores
    tie more often than they are skewed. In 1,500 simulations each (nominal 95 %) with 80 % ties
    percentile covers 90, 93 and 93 % at n = 40, 100 and 200 and BCa 86, 90 and 92; with rare
    large wins it is 89, 93 and 94 against 94, 96 and 96; elsewhere both are within 94 to 96. With
    those ties ``paired_interval`` covers 96 % at each n: prefer it for scores in [0, 1].

    Args:
        a: Scores of one system.
        b: Scores of the other on the same examples.
        n_resamples: At least 1,000.
        seed: Of the resampling; the same seed gives the same interval.
        confidence: In (0, 1).

    Raises:
        MetricError: lengths differ, no example, a score that is not finite, too few resamples, a
            bad confidence, or differences that are all equal, in which resampling sees no noise.
    """
    check_share(confidence, name="confidence")
    if n_resamples < _MIN_RESAMPLES:
        raise MetricError(
            f"`n_resamples` must be at least {_MIN_RESAMPLES}, but got {n_resamples}."
        )
    first, second = paired_vectors(a, b)
    gap = first - second
    if float(np.ptp(gap)) < 1e-12:
        raise MetricError(
            f"All {gap.size} differences are {gap[0]:g}: resampling sees no noise. "
            "`paired_interval` bounds such scores."
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled(gap, n_resamples, seed), [tail, 1 - tail]).tolist()
    estimate = float(gap.mean())
    return Interval(estimate, min(low, estimate), max(high, estimate), confidence)


def _resampled(gap: Vector, n_resamples: int, seed: int) -> Vector:
    """Return the mean of each resample of the differences, a block of resamples at a time."""
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_CELLS // gap.size)
    blocks = [min(rows, n_resamples - start) for start in range(0, n_resamples, rows)]
    draws = (gap[generator.integers(gap.size, size=(block, gap.size))] for block in blocks)
    means: Vector = np.concatenate([block.mean(axis=1) for block in draws])
    return means
