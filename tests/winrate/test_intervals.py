from __future__ import annotations

from functools import cache
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moa_dspy.errors import MetricError
from moa_dspy.winrate import mean_interval, paired_interval, win_rate

Vector = NDArray[np.float64]
Z = NormalDist().inv_cdf(0.975)
unit = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
pairs = st.lists(st.tuples(unit, unit), min_size=1, max_size=12)
# Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3
NEWCOMBE = [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
]


def right_or_wrong(wins: int, losses: int, n: int) -> tuple[Vector, Vector]:
    """Scores of two systems that differ on ``wins + losses`` of ``n`` examples."""
    a, b = np.ones(n), np.ones(n)
    a[:losses] = 0
    b[losses : losses + wins] = 0
    return a, b


@cache
def covered(wins: int, losses: int, n: int, truth: float) -> bool:
    interval = paired_interval(*right_or_wrong(wins, losses, n))
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize(("right", "n", "low", "high"), NEWCOMBE)
def test_binary_mean_is_wilsons(right: int, n: int, low: float, high: float) -> None:
    interval = mean_interval([1.0] * right + [0.0] * (n - right))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_graded_mean_of_a_spread_is_students() -> None:
    # 0.4 and 0.6, 50 of each: sd = 0.1 sqrt(100/99), t(99) = 1.984 -> half width 0.01994
    interval = mean_interval([0.4, 0.6] * 50)
    assert (interval.low, interval.high) == pytest.approx((0.48006, 0.51994), abs=1e-4)


def test_equal_graded_scores_are_not_certain() -> None:
    # As if 14 of 20 were right: Wilson 0.481 to 0.855
    interval = mean_interval([0.7] * 20)
    assert (interval.low, interval.high) == pytest.approx((0.481, 0.855), abs=1e-3)


@given(scores=st.lists(unit, min_size=1, max_size=12))
def test_mean_interval_holds_its_estimate(scores: list[float]) -> None:
    interval = mean_interval(scores)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


def test_paired_binary_is_tangos() -> None:
    # Bentur et al. (2009): 7 against 1 of 21. Fagerland, Lydersen & Laake (2013): -0.517, -0.026
    interval = paired_interval(*right_or_wrong(1, 7, 21))
    assert (interval.low, interval.high) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert interval.estimate == pytest.approx(-6 / 21)


def test_paired_binary_without_discordance() -> None:
    # z^2 = n d / (1 - d) for b = c = 0, so d = z^2 / (n + z^2)
    interval = paired_interval(*right_or_wrong(0, 0, 40))
    assert interval.high == pytest.approx(Z**2 / (40 + Z**2))
    assert interval.low == -interval.high


def test_paired_binary_touches_zero_where_mcnemar_does() -> None:
    # 12 against 4: (12 - 4) / sqrt(16) = 2, so at the confidence of z = 2 the bound is 0
    interval = paired_interval(*right_or_wrong(12, 4, 100), confidence=2 * NormalDist().cdf(2) - 1)
    assert interval.low == pytest.approx(0, abs=1e-9)


def test_paired_half_points_are_scaled() -> None:
    # All differences are -1/2, 0 or 1/2: half of the interval of 12 against 4
    a, b = right_or_wrong(12, 4, 100)
    whole, half = paired_interval(a, b), paired_interval(a / 2, b / 2)
    assert (2 * half.low, 2 * half.high) == pytest.approx((whole.low, whole.high))


def test_paired_graded_is_students() -> None:
    # Differences 0.1 and 0.3, 5 of each: mean 0.2, sd = 0.1 sqrt(10/9), t(9) = 2.2622
    # -> half width 2.2622 x 0.1 / 3 = 0.0754
    interval = paired_interval([0.5, 0.7] * 5, [0.4] * 10)
    assert (interval.low, interval.high) == pytest.approx((0.1246, 0.2754), abs=1e-4)


@given(pairs=pairs)
def test_swapping_mirrors_the_interval(pairs: list[tuple[float, float]]) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    interval, mirrored = paired_interval(a, b), paired_interval(b, a)
    assert (interval.low, interval.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-9)
    assert -1 <= interval.low <= interval.estimate <= interval.high <= 1


# Two in a hundred discordant at n = 40 is less than one example: the least is 0.05 n = 2.
@pytest.mark.parametrize("n", [40, 100, 200, 300, 805])
@pytest.mark.parametrize("discordance", [0.05, 0.2])
@pytest.mark.parametrize("lean", [0.5, 0.75])
def test_paired_binary_covers(n: int, discordance: float, lean: float) -> None:
    generator = np.random.default_rng(n)
    shares = [discordance * lean, discordance * (1 - lean), 1 - discordance]
    tables = generator.multinomial(n, shares, size=1_000).tolist()
    hits = [covered(w, b, n, discordance * (2 * lean - 1)) for w, b, _ in tables]
    # 1,000 draws know the coverage to 2 points; below 10 discordant examples it is higher.
    assert np.mean(hits) >= 0.93
    assert n * discordance < 10 or np.mean(hits) <= 0.975


@pytest.mark.parametrize("n", [40, 100, 200, 300, 805])
@pytest.mark.parametrize("tied", [0.0, 0.8])
def test_paired_graded_covers(n: int, tied: float) -> None:
    generator = np.random.default_rng(n)
    hits = []
    for _ in range(600):
        a, b = generator.beta(2, 1, n), generator.beta(2, 1.2, n)
        b = np.where(generator.random(n) < tied, a, b)
        interval = paired_interval(a, b)
        hits.append(interval.low <= (1 - tied) * (2 / 3 - 2 / 3.2) <= interval.high)
    assert 0.925 <= np.mean(hits) <= 0.975


def test_win_rate_by_hand() -> None:
    # 6 wins, 2 ties, 2 losses: mean 0.7; sum of squares 6 x 0.09 + 2 x 0.04 + 2 x 0.49 = 1.6
    result = win_rate([1.0] * 6 + [0.5] * 2 + [0.0] * 2)
    assert result.value == pytest.approx(0.7)
    assert result.standard_error == pytest.approx((1.6 / 9 / 10) ** 0.5)
    assert result.n == 10
    assert 0 < result.low < 0.7 < result.high < 1


def test_win_rate_of_one_example_is_hardly_known() -> None:
    # Wilson for 1 of 1: low = 1 / (1 + z^2) = 0.2065
    result = win_rate([1.0])
    assert result.standard_error == 0.5
    assert (result.low, result.high) == pytest.approx((1 / (1 + Z**2), 1.0))


def test_scores_must_be_in_the_unit_interval() -> None:
    with pytest.raises(MetricError, match=r"`scores` must be in \[0, 1\], but example 1 is 2\.0"):
        mean_interval([1.0, 2.0])
    with pytest.raises(MetricError, match=r"`b` must be in \[0, 1\], but example 0 is -1\.0"):
        paired_interval([1.0], [-1.0])


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(MetricError, match="`confidence` must be between 0 and 1, but got"):
        mean_interval([1.0], confidence=confidence)
