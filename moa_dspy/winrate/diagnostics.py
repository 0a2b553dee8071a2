"""Diagnostics of judges, and the ceiling of any choice among candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import atanh, sqrt, tanh
from statistics import NormalDist
from typing import Any

import numpy as np

from moa_dspy.errors import MetricError
from moa_dspy.winrate.intervals import (
    Interval,
    Scores,
    Vector,
    check_share,
    mean_interval,
    paired_interval,
    paired_vectors,
    score_vector,
)


@dataclass(frozen=True, slots=True)
class PositionConsistency:
    """Reactions of a judge when the two responses change places."""

    consistent: Interval
    """Share of examples with the same verdict in both orders, in [0, 1]; 1 is best."""
    first_advantage: Interval
    """Preference when shown first minus when shown second, in [-1, 1]; 0 is best."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of two judges."""

    raw: Interval
    """Share of examples with the same verdict, in [0, 1]."""
    kappa: Interval | None
    """Cohen's kappa: 1 is perfect, 0 is chance, below 0 is worse. None where both judges give one
    and the same verdict throughout: chance then explains everything, and kappa is 0 / 0."""


def position_consistency(
    shown_first: Scores, shown_second: Scores, *, confidence: float = 0.95
) -> PositionConsistency:
    """Compare a judge's preferences for one system when its response came first and second.

    Both are preferences for the same system, in [0, 1], on the same examples. A verdict is the
    side of 0.5 that a preference is on, so a win and a tie differ. Zheng et al.
    (arXiv:2306.05685, section 3.3) call the first number consistency.

    Raises:
        MetricError: lengths differ, no example, one outside [0, 1], or a bad confidence.
    """
    first, second = paired_vectors(
        shown_first, shown_second, names=("shown_first", "shown_second"), unit=True
    )
    same = (_verdicts(first) == _verdicts(second)).astype(np.float64)
    return PositionConsistency(
        mean_interval(same, confidence=confidence),
        paired_interval(first, second, confidence=confidence),
    )


def length_correlation(
    preferences: Scores, lengths: Scores, baseline_lengths: Scores, *, confidence: float = 0.95
) -> Interval:
    """Correlate preferences with how much longer the responses were; above 0: longer wins.

    Spearman's rank correlation, ties at mid-ranks, in [-1, 1]; the interval is Fisher's z with
    Bonett and Wright's (Psychometrika 65, 2000) variance (1 + r^2 / 2) / (n - 3). A perfect
    correlation is bounded as if two neighbours had changed places, so it is not certain. A
    correlation is no proof of bias: longer responses may be better.

    Raises:
        MetricError: lengths differ in number, fewer than 4 examples, a preference outside
            [0, 1], preferences or length differences that are all equal, or a bad confidence.
    """
    check_share(confidence, name="confidence")
    own, other = paired_vectors(lengths, baseline_lengths, names=("lengths", "baseline_lengths"))
    longer = own - other
    wins, _ = paired_vectors(
        score_vector(preferences, name="preferences", unit=True),
        longer,
        names=("preferences", "lengths"),
    )
    if wins.size < 4:
        raise MetricError(f"A correlation needs at least 4 examples, but got {wins.size}.")
    for name, values in (("preferences", wins), ("length differences", longer)):
        if np.ptp(values) == 0:
            raise MetricError(f"All {name} are {values[0]:g}: nothing can correlate with them.")
    correlation = _spearman(wins, longer)
    low, high = _fisher(correlation, wins.size, confidence)
    return Interval(correlation, min(low, correlation), max(high, correlation), confidence)


def judge_agreement(a: Scores, b: Scores, *, confidence: float = 0.95) -> Agreement:
    """Compare the verdicts of two judges (win, tie, loss: the side of 0.5) on the same examples.

    Cohen's kappa (1960) takes out the agreement of judges who keep their shares of verdicts but
    give them at random; its interval is Fleiss, Cohen and Everitt's (Psychological Bulletin 72,
    1969), a large-sample one: judges who never differ get 1 to 1, and then only ``raw``'s
    interval says how much that is worth. Swapping the judges changes nothing.

    Raises:
        MetricError: lengths differ, no example, one outside [0, 1], or a bad confidence.
    """
    first, second = paired_vectors(a, b, unit=True)
    one, other = _verdicts(first), _verdicts(second)
    raw = mean_interval((one == other).astype(np.float64), confidence=confidence)
    table = np.zeros((3, 3))
    np.add.at(table, (one.astype(int) + 1, other.astype(int) + 1), 1 / one.size)
    return Agreement(raw, _kappa(table, one.size, confidence))


def _verdicts(preferences: Vector) -> Vector:
    verdicts: Vector = np.sign(preferences - 0.5)
    return verdicts


def _spearman(a: Vector, b: Vector) -> float:
    # Imported here: scipy costs a second that most callers of this package never need.
    from scipy.stats import spearmanr

    found: Any = spearmanr(a, b)
    return float(np.clip(found.statistic, -1.0, 1.0))


def _fisher(correlation: float, n: int, confidence: float) -> tuple[float, float]:
    # Exchanging two neighbours of n ranks costs 12 / (n^3 - n): the next best there is.
    largest = 1 - 12 / (n**3 - n)
    centre = atanh(min(max(correlation, -largest), largest))
    error = sqrt((1 + correlation**2 / 2) / (n - 3))
    half = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return tanh(centre - half), tanh(centre + half)


def _kappa(table: Vector, n: int, confidence: float) -> Interval | None:
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    by_chance, observed = float(rows @ columns), float(np.trace(table))
    if 1 - by_chance < 1e-12:
        return None
    kappa = (observed - by_chance) / (1 - by_chance)
    # Derivative of kappa by each cell's share; kappa's variance is the derivative's, over n.
    chance = columns[:, None] + rows[None, :]
    slope = np.eye(3) / (1 - by_chance) - chance * (1 - observed) / (1 - by_chance) ** 2
    variance = float((table * slope**2).sum() - (table * slope).sum() ** 2) / n
    half = NormalDist().inv_cdf((1 + confidence) / 2) * sqrt(max(variance, 0.0))
    return Interval(kappa, max(kappa - half, -1.0), min(kappa + half, 1.0), confidence)


def oracle(scores: Mapping[str, Scores]) -> Vector:
    """Return the best score of any candidate per example: what perfect selection would get.

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
