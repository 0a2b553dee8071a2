"""How well a mean, a win rate or a difference of means is known."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np

from moa_dspy.winrate._scores import (
    Scores,
    Vector,
    check_share,
    is_binary,
    paired_vectors,
    score_vector,
)
from moa_dspy.winrate._tango import tango_interval


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided confidence interval; ``low <= estimate <= high``."""

    estimate: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True)
class WinRate:
    """A win rate in [0, 1] with its standard error, interval and number of examples."""

    value: float
    standard_error: float
    low: float
    high: float
    n: int


def mean_interval(scores: Scores, *, confidence: float = 0.95) -> Interval:
    """Bound the mean of scores in [0, 1]; the interval stays in [0, 1].

    Wilson (1927), as advised by Newcombe (1998), with the effective number of examples
    ``n mean (1 - mean) / variance``: the number of right-or-wrong answers that would be known as
    well. Right-or-wrong scores give plain Wilson; graded ones use Student's t for the quantile.
    In simulation it covers as Student's interval does where scores are spread out and far better
    where most of them sit at 0 or 1 (n = 40, one in twenty not 0: 91 against 76 %, nominal 95).
    Graded scores that are all equal are treated as right-or-wrong, which is cautious.

    Raises:
        MetricError: no score, one outside [0, 1], or a confidence outside (0, 1).
    """
    check_share(confidence, name="confidence")
    vector = score_vector(scores, unit=True)
    n, mean = vector.size, float(vector.mean())
    spread = float(vector.var(ddof=1)) if n > 1 else 0.0
    if spread < 1e-18 or is_binary(vector):
        quantile, n_effective = NormalDist().inv_cdf((1 + confidence) / 2), float(n)
    else:
        quantile, n_effective = _t_quantile(confidence, n - 1), n * mean * (1 - mean) / spread
    low, high = _wilson(mean, n_effective, quantile)
    return Interval(mean, min(max(low, 0.0), mean), max(min(high, 1.0), mean), confidence)


def paired_interval(a: Scores, b: Scores, *, confidence: float = 0.95) -> Interval:
    """Bound mean(a - b) of two systems on the same examples; scores in [0, 1].

    Right-or-wrong scores: Tango's score interval (Statistics in Medicine 17, 1998), which covers
    93 to 97 % from 10 expected discordant examples on, and at least 92.8 % below (n = 40 to 805,
    exact enumeration); with 5 % discordance Wald and t fall to 85 %, Agresti-Min to 87 %, while
    Bonett-Price rises to 99.9 %. Graded scores where at least half of the examples tie: the same
    interval, scaled so that its first two moments are those of the differences; there t falls to
    64 % at n = 40. Otherwise: Student's t. Where all differences are equal no spread can be
    seen, and the difference is treated as one of right-or-wrong scores, which is cautious.

    Swapping ``a`` and ``b`` mirrors the interval.

    Raises:
        MetricError: lengths differ, no example, a score outside [0, 1], or a bad confidence.
    """
    check_share(confidence, name="confidence")
    first, second = paired_vectors(a, b, unit=True)
    gap = first - second
    mean = float(gap.mean())
    sizes = np.abs(gap)
    if is_binary(gap) or float(np.ptp(gap)) < 1e-12:
        low, high = _scaled_tango(gap, 1.0, confidence)
    elif 2 * np.count_nonzero(sizes < 1e-12) >= gap.size:
        low, high = _scaled_tango(gap, float((sizes**2).sum() / sizes.sum()), confidence)
    else:
        half = _t_quantile(confidence, gap.size - 1) * sqrt(float(gap.var(ddof=1)) / gap.size)
        low, high = mean - half, mean + half
    return Interval(mean, max(min(low, mean), -1.0), min(max(high, mean), 1.0), confidence)


def win_rate(preferences: Scores, *, confidence: float = 0.95) -> WinRate:
    """Sum up preferences (1 win, 0.5 tie, 0 loss; anything in [0, 1]) as a win rate.

    The standard error is the sample's; with one example, 0.5, the largest it can be. The interval
    is ``mean_interval``'s.

    Raises:
        MetricError: no preference, one outside [0, 1], or a confidence outside (0, 1).
    """
    vector = score_vector(preferences, name="preferences", unit=True)
    interval = mean_interval(vector, confidence=confidence)
    error = sqrt(float(vector.var(ddof=1)) / vector.size) if vector.size > 1 else 0.5
    return WinRate(interval.estimate, error, interval.low, interval.high, vector.size)


def _t_quantile(confidence: float, degrees: int) -> float:
    # Imported here: scipy costs a second that most callers of this package never need.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))


def _wilson(mean: float, n: float, quantile: float) -> tuple[float, float]:
    square = quantile**2 / n
    centre = (mean + square / 2) / (1 + square)
    half = sqrt(mean * (1 - mean) * square + square**2 / 4) / (1 + square)
    return centre - half, centre + half


def _scaled_tango(gap: Vector, scale: float, confidence: float) -> tuple[float, float]:
    wins = float(np.maximum(gap, 0).sum()) / scale
    losses = float(np.maximum(-gap, 0).sum()) / scale
    low, high = tango_interval(wins, losses, gap.size, confidence=confidence)
    return low * scale, high * scale
