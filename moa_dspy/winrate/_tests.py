"""Whether one system is better than another on the same examples."""

from __future__ import annotations

from math import comb

import numpy as np

from moa_dspy.errors import MetricError
from moa_dspy.winrate._scores import Scores, Vector, is_binary, paired_vectors

_EXACT_UP_TO = 14  # 2 ** 14 sign patterns are fewer than two Monte-Carlo runs.
_MIN_FLIPS = 10_000
_SIGNS = np.array([-1.0, 1.0])
_CHUNK = 1_000  # Rows of signs in memory at a time.


def superiority_p(
    a: Scores, b: Scores, *, mid_p: bool = False, n_flips: int = _MIN_FLIPS, seed: int = 0
) -> float:
    """Return the one-sided paired p-value for mean(a) > mean(b).

    Differences that are all -1, 0 or 1: the exact conditional binomial test (McNemar 1947). Any
    others: the sign-flip permutation test (Fisher 1935), exact with up to 14 examples that
    differ, else Monte-Carlo with ``n_flips`` flips and the observed one counted (Phipson & Smyth
    2010), so never 0. Ties say nothing; if all examples tie the result is 1.

    Args:
        a: Scores of the system that may be better, on any scale.
        b: Scores of the other system on the same examples.
        mid_p: Count outcomes exactly as extreme as the observed one by half: closer to the
            nominal level, but no longer guaranteed not to exceed it.
        n_flips: Monte-Carlo sign flips, at least 10,000.
        seed: Of the flips; the same seed gives the same p-value.

    Raises:
        MetricError: lengths differ, no example, a score that is not finite, or too few flips.
    """
    if n_flips < _MIN_FLIPS:
        raise MetricError(f"`n_flips` must be at least {_MIN_FLIPS}, but got {n_flips}.")
    first, second = paired_vectors(a, b)
    gap = first - second
    gap = gap[np.abs(gap) >= 1e-12]
    if not gap.size:
        return 1.0
    weight = 0.5 if mid_p else 1.0
    if is_binary(gap):
        return _binomial_tail(int((gap > 0).sum()), gap.size, weight)
    if gap.size <= _EXACT_UP_TO:
        greater, equal = _count(gap, _all_signs(gap.size))
        return (greater + weight * equal) / (1 << gap.size)
    generator = np.random.default_rng(seed)
    counts = np.zeros(2)
    for start in range(0, n_flips, _CHUNK):
        rows = min(_CHUNK, n_flips - start)
        counts += _count(gap, generator.choice(_SIGNS, size=(rows, gap.size)))
    return float(counts[0] + weight * (counts[1] + 1)) / (n_flips + 1)


def _binomial_tail(wins: int, n: int, weight: float) -> float:
    """Return P(X > wins) + weight P(X = wins) for X ~ Binomial(n, 1/2), in whole numbers."""
    greater = sum(comb(n, k) for k in range(wins + 1, n + 1))
    patterns = 1 << n
    return greater / patterns + weight * (comb(n, wins) / patterns)


def _all_signs(n: int) -> Vector:
    bits = (np.arange(1 << n)[:, None] >> np.arange(n)) & 1
    signs: Vector = _SIGNS[bits]
    return signs


def _count(gap: Vector, signs: Vector) -> tuple[int, int]:
    """Count the flips whose sum is greater than, and equal to, the observed one."""
    excess = signs @ gap - gap.sum()
    tolerance = 1e-9 * float(np.abs(gap).sum())
    equal = int((np.abs(excess) <= tolerance).sum())
    return int((excess > tolerance).sum()), equal
