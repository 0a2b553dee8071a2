"""Whether one system is better than another on the same examples."""

# DOCS: winrate/_sign_flips: The exact chance that random signs do better than what was seen. | winrate/_holm: Several comparisons at once. | winrate/_power: How many examples a comparison needs.

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, comb, gcd, log2, sqrt
from statistics import NormalDist

import numpy as np

from moa_dspy.errors import MetricError
from moa_dspy.winrate.intervals import (
    Interval,
    Scores,
    Vector,
    check_share,
    is_binary,
    paired_interval,
    paired_vectors,
    score_vector,
)

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


_STEPS_PER_POINT = 1_000
"""Differences in whole thousandths are exact; finer ones are rounded to the nearest."""
_MOST_STEPS = 100_000
"""Sums beyond it use a coarser step: with 2,000 examples that moves a sum by 0.03 of its sd."""


def sign_flip_mid_p(differences: Scores) -> float:
    """Return the one-sided mid-p value for a mean above 0, exact far into the tail.

    Every difference keeps its size and gets its sign from a fair coin (Fisher 1935); the
    distribution of the sum is built up example by example (Pagano & Tritchler 1983), so a value
    of 1e-12 costs no more than one of 0.5, and none depends on a seed. Right-or-wrong scores
    give the binomial mid-p of McNemar's test. Ties say nothing; if all tie the result is 1.

    Time grows with the number of differences times their sum in steps: 10 ms for 200 graded
    examples.

    Raises:
        MetricError: no difference, or one that is not finite.
    """
    gaps = score_vector(differences, name="differences")
    sizes = np.abs(gaps)
    step = max(1 / _STEPS_PER_POINT, float(sizes.sum()) / _MOST_STEPS)
    steps = np.rint(sizes / step).astype(np.int64)
    won = int(steps[gaps > 0].sum())
    steps = steps[steps > 0]
    if not steps.size:
        return 1.0
    unit = gcd(*steps.tolist())
    chances = np.ones(1)
    for size in np.sort(steps // unit).tolist():
        grown = np.zeros(chances.size + size)
        grown[: chances.size] = chances / 2
        grown[size:] += chances / 2
        chances = grown
    won //= unit
    return float(chances[won + 1 :].sum() + chances[won] / 2)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values so that the chance of any false claim among them stays at the level.

    Holm's step-down method (Scandinavian Journal of Statistics 6, 1979): the k-th smallest of m
    is multiplied by m - k + 1; the results are made monotone and capped at 1. Valid however the
    tests depend on each other. The order of the names is kept.

    Raises:
        MetricError: a p-value outside [0, 1].
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise MetricError(f"p-values must be in [0, 1], but {name!r} is {p}.")
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def simultaneous_intervals(
    pick: Scores, others: Mapping[str, Scores], *, confidence: float = 0.95
) -> dict[str, Interval]:
    """Bound pick minus each other so that all intervals hold at once with ``confidence``.

    Bonferroni: each is a ``paired_interval`` at confidence 1 - (1 - confidence) / m, which is
    what its ``confidence`` says. Intervals that follow Holm's steps say nothing about size once
    a test is rejected, so these are wider: one may hold 0 where ``holm`` finds p < 0.05.

    Raises:
        MetricError: as ``paired_interval``.
    """
    check_share(confidence, name="confidence")
    each = 1 - (1 - confidence) / max(len(others), 1)
    return {name: paired_interval(pick, s, confidence=each) for name, s in others.items()}


def examples_needed(
    differences: Scores, *, gain: float = 0.03, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Return the total number of paired examples that would show a true mean gain of ``gain``.

    ``n = (z_alpha sqrt(D) + z_power sqrt(D - gain^2))^2 / gain^2`` with the discordance
    ``D = variance of the differences + gain^2`` (Connor, Biometrics 43, 1987; Miettinen 1968).
    Right-or-wrong differences need D >= gain. The test is ``verdict``'s, ``superiority_p`` with
    ``mid_p``: summed over all outcomes its power at this n is 0.80 to 0.84 for gains of 3, 5, 8
    and 10 points and D up to 0.4 (0.87 where D = gain); without mid-p it would be 0.74 to 0.79,
    and 2 / gain examples more would be needed. Where no example differs D is unknown: the upper
    end of its 95 % interval by the rule of three, 3 / n, stands in. Never fewer than the
    examples that could reach ``alpha`` at all: n wins of n have a mid-p of 1 / 2^(n + 1).

    Args:
        differences: Score of one system minus score of the other per example, in [-1, 1].
        gain: The smallest mean difference worth having, in score units, in (0, 1).
        power: Chance to find it, at least 0.5.
        alpha: Level of the one-sided test, below 0.5.

    Raises:
        MetricError: no difference, one outside [-1, 1], or a level out of its range.
    """
    gaps = score_vector(differences, name="differences")
    if np.abs(gaps).max() > 1:
        raise MetricError(f"`differences` must be in [-1, 1], but one is {_widest(gaps)}.")
    check_share(gain, name="gain")
    check_share(power, name="power")
    check_share(alpha, name="alpha")
    if power < 0.5 or alpha >= 0.5:
        raise MetricError(
            f"`power` must be at least 0.5 and `alpha` below it, but got {power} and {alpha}."
        )
    discordance = _discordance(gaps) + gain**2
    if is_binary(gaps):
        discordance = min(max(discordance, gain), 1.0)
    normal = NormalDist()
    by_chance = normal.inv_cdf(1 - alpha) * sqrt(discordance)
    by_gain = normal.inv_cdf(power) * sqrt(discordance - gain**2)
    n = (by_chance + by_gain) ** 2 / gain**2
    return max(ceil(n), ceil(log2(1 / alpha)) - 1)


def _discordance(gaps: Vector) -> float:
    """Return the variance of the differences, or its bound where none was seen."""
    if not np.abs(gaps).max() > 1e-12:
        return min(3 / gaps.size, 1.0)
    return float(gaps.var(ddof=1)) if gaps.size > 1 else float(gaps[0] ** 2)


def _widest(gaps: Vector) -> float:
    return float(gaps[np.abs(gaps).argmax()])
