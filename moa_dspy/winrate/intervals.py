"""Intervals of a mean, a win rate, a paired difference, and a share of common failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import copysign, inf, sqrt
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import MetricError

Vector: TypeAlias = NDArray[np.float64]
Scores: TypeAlias = Sequence[float] | Vector
"""One number per example, in dataset order."""


def points(share: float, *, sign: str = "") -> str:
    """Return a share in percent with one decimal; ``sign="+"`` adds a plus, but never to 0."""
    value = round(100 * share, 1)
    return f"{value:{sign}.1f}" if value else "0.0"


def score_vector(scores: Scores, *, name: str = "scores", unit: bool = False) -> Vector:
    """Return ``scores`` as a finite, non-empty vector; ``unit`` also asks for [0, 1].

    Raises:
        MetricError: not one-dimensional, empty, not finite, or outside [0, 1].
    """
    vector = np.asarray(scores, dtype=np.float64)
    if vector.ndim != 1:
        raise MetricError(f"`{name}` must be one score per example, but has shape {vector.shape}.")
    if not vector.size:
        raise MetricError(f"`{name}` must hold at least one example, but got 0.")
    wrong = ~np.isfinite(vector)
    if unit:
        wrong |= (vector < 0) | (vector > 1)
    if wrong.any():
        place = int(wrong.argmax())
        expected = "in [0, 1]" if unit else "finite"
        raise MetricError(f"`{name}` must be {expected}, but example {place} is {vector[place]}.")
    return vector


def paired_vectors(
    a: Scores, b: Scores, *, names: tuple[str, str] = ("a", "b"), unit: bool = False
) -> tuple[Vector, Vector]:
    """Return two vectors of scores of the same examples.

    Raises:
        MetricError: as ``score_vector``, or the two have different lengths.
    """
    first = score_vector(a, name=names[0], unit=unit)
    second = score_vector(b, name=names[1], unit=unit)
    if first.size != second.size:
        raise MetricError(
            f"`{names[0]}` and `{names[1]}` must score the same examples, "
            f"but have {first.size} and {second.size}."
        )
    return first, second


def is_binary(differences: Vector) -> bool:
    """Tell whether every difference is -1, 0 or 1 (up to rounding): right or wrong, no grades."""
    sizes = np.abs(differences)
    return bool(np.all((sizes < 1e-12) | (np.abs(sizes - 1) < 1e-12)))


def counts_of(counts: Scores | None, n: int) -> Vector:
    """Return the weight of each of ``n`` examples, where an independent one has 1; None is all 1.

    Raises:
        MetricError: not ``n`` of them, or one that is not above 0 and at most 1.
    """
    if counts is None:
        return np.ones(n)
    vector = score_vector(counts, name="counts", unit=True)
    if vector.size != n or not vector.all():
        raise MetricError(f"`counts` must be {n} numbers above 0 and at most 1, but got {counts}.")
    return vector


def spread_of(gap: Vector, counts: Vector) -> tuple[float, float, float]:
    """Return number, mean and sample variance of differences, weighted by ``counts``."""
    n = float(counts.sum())
    mean = float(counts @ gap) / n
    return n, mean, float(counts @ (gap - mean) ** 2) / (n - 1) if n > 1 else float(gap[0] ** 2)


def check_share(value: float, *, name: str) -> None:
    """Refuse a level that is not strictly between 0 and 1.

    Raises:
        MetricError: ``value`` is not in (0, 1).
    """
    if not 0 < value < 1:
        raise MetricError(f"`{name}` must be between 0 and 1, but got {value}.")


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided confidence interval; ``low <= estimate <= high``."""

    estimate: float
    low: float
    high: float
    confidence: float

    @property
    def ends(self) -> str:
        """Its ends in points, as ``[3.1, 7.5]``."""
        return f"[{points(self.low)}, {points(self.high)}]"

    @property
    def percent(self) -> str:
        """Estimate and ends, as ``5.2 % [3.1, 7.5]``."""
        return f"{points(self.estimate)} % {self.ends}"


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
    ``n mean (1 - mean) / variance``: the number of right-or-wrong answers with the same standard
    error. Right-or-wrong scores give plain Wilson; graded scores use Student's t for the quantile.
    In simulation it covers as Student's interval does where scores are spread out, and far better
    where most of them are at 0 or 1 (n = 40, one in twenty not 0: 91 against 76 %, nominal 95).
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


def paired_interval(
    a: Scores, b: Scores, *, confidence: float = 0.95, counts: Scores | None = None
) -> Interval:
    """Bound mean(a - b) of two systems on the same examples; scores in [0, 1].

    Right-or-wrong scores: Tango's score interval (Statistics in Medicine 17, 1998), which covers
    93 to 97 % from 10 expected discordant examples on, and at least 92.8 % below (n = 40 to 805,
    exact enumeration); with 5 % discordance Wald and t fall to 85 %, Agresti-Min to 87 %, while
    Bonett-Price rises to 99.9 %. Graded scores: Student's t with Hall's correction for skewness
    (JRSS B 54, 1992), without which a rare large loss among small differences is missed twice as
    often as stated. Where at least half of the examples tie, each end is the outer one of that
    interval and of Tango's, scaled so that its first two moments are those of the differences;
    there t alone covers 64 % at n = 40. Where all differences are equal there is no spread to
    estimate, and they are treated as right-or-wrong scores, which is cautious.

    Swapping ``a`` and ``b`` mirrors the interval.

    Args:
        a: Scores of one system.
        b: Scores of the other.
        confidence: In (0, 1).
        counts: Weight of each example, where an independent one has 1: above 0 and at most 1;
            None is all 1. Numbers of examples, means and variances are weighted by it.

    Raises:
        MetricError: lengths differ, no example, a score outside [0, 1], or a bad confidence.
    """
    check_share(confidence, name="confidence")
    first, second = paired_vectors(a, b, unit=True)
    gap = first - second
    counted = counts_of(counts, gap.size)
    mean = float(gap.mean()) if counts is None else float(counted @ gap) / float(counted.sum())
    low, high = _difference_bounds(gap, counted, confidence)
    return Interval(mean, max(min(low, mean), -1.0), min(max(high, mean), 1.0), confidence)


def _difference_bounds(gap: Vector, counts: Vector, confidence: float) -> tuple[float, float]:
    sizes = np.abs(gap)
    differ = sizes[sizes >= 1e-12]
    if is_binary(gap) or float(np.ptp(gap)) < 1e-12:
        return _scaled_tango(gap, counts, 1.0, confidence)
    if float(np.ptp(differ)) < 1e-12 and 2 * differ.size <= gap.size:
        return _scaled_tango(gap, counts, float(differ[0]), confidence)
    if float(counts.sum()) <= 1:
        return -1.0, 1.0  # one example shows no spread
    low, high = _skewed_t(gap, counts, confidence)
    if 2 * differ.size <= gap.size:
        scale = float(counts @ sizes**2) / float(counts @ sizes)
        tied_low, tied_high = _scaled_tango(gap, counts, scale, confidence)
        low, high = min(low, tied_low), max(high, tied_high)
    return low, high


def _skewed_t(gap: Vector, counts: Vector, confidence: float) -> tuple[float, float]:
    """Return Student's bounds, corrected for the skewness of the differences (Hall 1992, eq. 9)."""
    n, mean, variance = spread_of(gap, counts)
    error = sqrt(variance / n)
    off = gap - mean
    skewness = float(counts @ off**3) / n / sqrt(float(counts @ off**2) / n) ** 3
    bend = skewness / sqrt(n)
    quantile = _t_quantile(confidence, n - 1)

    def corrected(t: float) -> float:
        if abs(bend) < 1e-9:
            return t
        return 3 / bend * (float(np.cbrt(1 + bend * (t - bend / 6))) - 1)

    return mean - corrected(quantile) * error, mean - corrected(-quantile) * error


def win_rate(preferences: Scores, *, confidence: float = 0.95) -> WinRate:
    """Return the win rate of preferences (1 win, 0.5 tie, 0 loss; anything in [0, 1]).

    The standard error is that of the sample; with one example it is 0.5, the largest possible.
    The interval is that of ``mean_interval``.

    Raises:
        MetricError: no preference, one outside [0, 1], or a confidence outside (0, 1).
    """
    vector = score_vector(preferences, name="preferences", unit=True)
    interval = mean_interval(vector, confidence=confidence)
    error = sqrt(float(vector.var(ddof=1)) / vector.size) if vector.size > 1 else 0.5
    return WinRate(interval.estimate, error, interval.low, interval.high, vector.size)


def oracle(scores: Mapping[str, Scores]) -> Vector:
    """Return the best score of any candidate per example: the score of a perfect selection.

    Raises:
        MetricError: no candidate, unequal lengths, no example, or a score that is not finite.
    """
    if not scores:
        raise MetricError("`scores` must hold at least one candidate, but got 0.")
    vectors = {name: score_vector(s, name=name) for name, s in scores.items()}
    lengths = {name: v.size for name, v in vectors.items()}
    if len(set(lengths.values())) > 1:
        raise MetricError(f"Candidates must score the same examples, but have {lengths}.")
    best: Vector = np.max(np.stack(list(vectors.values())), axis=0)
    return best


def co_failure(
    scores: Mapping[str, Scores], *, threshold: float = 0.5, confidence: float = 0.95
) -> Interval:
    """Bound the share of examples on which every candidate scores below ``threshold``.

    No way of choosing among the candidates' answers can beat one minus this share. The interval
    is exact (Clopper & Pearson 1934): it covers at least ``confidence``, usually more.

    Raises:
        MetricError: as ``oracle``, or a confidence outside (0, 1).
    """
    check_share(confidence, name="confidence")
    from scipy.special import betaincinv

    failed = oracle(scores) < threshold
    n, k = failed.size, int(failed.sum())
    tail = (1 - confidence) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Interval(k / n, low, high, confidence)


def _t_quantile(confidence: float, degrees: float) -> float:
    # Imported here: scipy costs a second that most callers of this package never need.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))


def _wilson(mean: float, n: float, quantile: float) -> tuple[float, float]:
    square = quantile**2 / n
    centre = (mean + square / 2) / (1 + square)
    half = sqrt(mean * (1 - mean) * square + square**2 / 4) / (1 + square)
    return centre - half, centre + half


def _scaled_tango(
    gap: Vector, counts: Vector, scale: float, confidence: float
) -> tuple[float, float]:
    wins = float(counts @ np.maximum(gap, 0)) / scale
    losses = float(counts @ np.maximum(-gap, 0)) / scale
    low, high = tango_interval(wins, losses, float(counts.sum()), confidence=confidence)
    return low * scale, high * scale


def tango_interval(
    wins: float, losses: float, n: float, *, confidence: float
) -> tuple[float, float]:
    """Invert the score test of "the difference is delta" (Tango 1998, equations 9 to 11).

    ``wins`` and ``losses`` count the discordant examples of ``n``; no number need be whole.
    At a difference of 0 the test is McNemar's without continuity correction. With no discordant
    example the bounds are plus and minus ``z^2 / (n + z^2)``.
    """
    quantile = NormalDist().inv_cdf((1 + confidence) / 2)
    high = _bound(wins, losses, n, quantile)
    # The lower bound is the mirrored upper bound of the swapped systems, so symmetry is exact.
    return -_bound(losses, wins, n, quantile), high


def _bound(wins: float, losses: float, n: float, quantile: float) -> float:
    """Return the largest difference that the test does not reject, by bisection."""
    low, high = (wins - losses) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _score(wins, losses, n, middle) >= -quantile:
            low = middle
        else:
            high = middle
    return low


def _score(wins: float, losses: float, n: float, delta: float) -> float:
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
