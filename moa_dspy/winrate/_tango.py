"""Tango's score interval for a difference of paired proportions."""

from __future__ import annotations

from math import copysign, inf, sqrt
from statistics import NormalDist


def tango_interval(wins: float, losses: float, n: int, *, confidence: float) -> tuple[float, float]:
    """Invert the score test of "the difference is delta" (Tango 1998, equations 9 to 11).

    ``wins`` and ``losses`` count the discordant examples of ``n``; they need not be whole.
    At a difference of 0 the test is McNemar's without continuity correction. With no discordant
    example the bounds are plus and minus ``z^2 / (n + z^2)``.
    """
    quantile = NormalDist().inv_cdf((1 + confidence) / 2)
    high = _bound(wins, losses, n, quantile)
    # The lower bound is the mirrored upper bound of the swapped systems, so symmetry is exact.
    return -_bound(losses, wins, n, quantile), high


def _bound(wins: float, losses: float, n: int, quantile: float) -> float:
    """Return the largest difference that the test does not reject, by bisection."""
    low, high = (wins - losses) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _score(wins, losses, n, middle) >= -quantile:
            low = middle
        else:
            high = middle
    return low


def _score(wins: float, losses: float, n: int, delta: float) -> float:
    """Return the score statistic; it falls as ``delta`` grows."""
    linear = -wins - losses + (2 * n - wins + losses) * delta
    constant = -losses * delta * (1 - delta)
    root = sqrt(max(linear**2 - 8 * n * constant, 0.0))
    share_of_losses = (root - linear) / (4 * n)
    variance = n * (2 * share_of_losses + delta * (1 - delta))
    gap = wins - losses - n * delta
    if variance <= 0:
        return copysign(inf, gap) if gap else 0.0
    return gap / sqrt(variance)
