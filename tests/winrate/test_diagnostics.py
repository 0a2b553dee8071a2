from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from moa_dspy.errors import MetricError
from moa_dspy.winrate import (
    consistency_p,
    judge_agreement,
    length_correlation,
    position_consistency,
)

verdicts = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=30)


def test_position_consistency_by_hand() -> None:
    # Same side of 0.5: win-win, loss-loss, tie-tie; not win-loss, win-tie
    result = position_consistency([1, 0.2, 0.5, 0.9, 1], [0.6, 0, 0.5, 0.1, 0.5])
    assert result.consistent.estimate == pytest.approx(3 / 5)
    # (0.4 + 0.2 + 0 + 0.8 + 0.5) / 5
    assert result.first_advantage.estimate == pytest.approx(0.38)


def test_a_judge_who_takes_the_first_is_found_out() -> None:
    result = position_consistency([1.0] * 40, [0.0] * 40)
    assert result.consistent.high < 0.1
    assert result.first_advantage.low > 0.8


def test_consistency_against_chance_by_hand() -> None:
    # Four verdicts for each place. Of the 8! / (2^4 4!) = 105 ways to pair them, 4! = 24 pair each
    # first with a second, as is seen here: 24 / 105 = 0.229.
    found = consistency_p([1, 1, 0, 0], [1, 1, 0, 0])
    assert found == pytest.approx(0.229, abs=0.03)
    assert consistency_p([1, 0] * 20, [1, 0] * 20) == pytest.approx(1 / 2_000)
    # What always takes a place, or nothing at all, is as consistent in every pairing.
    assert consistency_p([1] * 40, [0] * 40) == consistency_p([0.5] * 40, [0.5] * 40) == 1


@pytest.mark.slow
def test_a_leaning_coin_is_rarely_taken_for_a_judge() -> None:
    # At level 5 % of 400 coins 20 +- 4.4 (one standard error) by chance; fewer, as it is discrete.
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 400, 30))
    found = [consistency_p(a < 0.7, b < 0.3) for a, b in zip(first, second, strict=True)]
    assert sum(p <= 0.05 for p in found) <= 29


def test_length_correlation_by_hand() -> None:
    # Ranks 1..5 and 2 1 4 3 5: 1 - 6 x 4 / 120 = 0.8; z = 1.0986, error sqrt(1.32 / 2) = 0.8124,
    # half 1.5923: tanh(-0.4937) = -0.457, tanh(2.6909) = 0.991
    result = length_correlation([0.2, 0.1, 0.4, 0.3, 0.5], [11, 12, 13, 14, 15], [10] * 5)
    assert result.estimate == pytest.approx(0.8)
    assert (result.low, result.high) == pytest.approx((-0.457, 0.991), abs=1e-3)


@given(wins=verdicts, seed=st.integers(0, 99))
def test_length_correlation_is_scipys(wins: list[float], seed: int) -> None:
    wins = [0.0, 0.5, 1.0, 0.25, *wins]
    longer = np.random.default_rng(seed).integers(0, 9, len(wins)).astype(float)
    longer[:2] = [0, 9]
    result = length_correlation(wins, longer, np.zeros(len(wins)))
    assert result.estimate == pytest.approx(
        float(np.asarray(spearmanr(wins, longer))[0]), abs=1e-12
    )
    assert -1 <= result.low <= result.estimate <= result.high <= 1


def test_a_perfect_correlation_is_not_certain() -> None:
    result = length_correlation([0.1, 0.2, 0.3, 0.4, 0.5], [5, 6, 7, 8, 9], [4] * 5)
    assert result.estimate == pytest.approx(1)
    assert result.low < 0.9


def test_length_correlation_covers() -> None:
    # Bivariate normal with r = 0.5 has Spearman's 6 / pi asin(1 / 4) = 0.4826
    generator, hits = np.random.default_rng(0), 0
    for _ in range(600):
        x, e = generator.standard_normal((2, 60))
        wins = 1 / (1 + np.exp(-(0.5 * x + 0.75**0.5 * e)))
        result = length_correlation(wins, x, np.zeros(60))
        hits += result.low <= 0.4826 <= result.high
    assert 0.925 <= hits / 600 <= 0.975


def test_kappa_by_hand() -> None:
    # Both yes 20, both no 15, one only 5 and 10: agreed 0.7; by chance 25 x 30 + 25 x 20 over
    # 2500 = 0.5; kappa (0.7 - 0.5) / (1 - 0.5) = 0.4
    a = [1.0] * 25 + [0.0] * 25
    b = [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15
    result = judge_agreement(a, b)
    assert result.raw.estimate == pytest.approx(0.7)
    assert result.kappa is not None
    assert result.kappa.estimate == pytest.approx(0.4)


@given(pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=30))
def test_kappa_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    pairs = [(0, 1), *pairs]
    a, b = np.array(pairs).T
    result = judge_agreement(a / 2, b / 2).kappa
    assert result is not None
    assert result.estimate == pytest.approx(float(cohen_kappa_score(a, b)))
    assert -1 <= result.low <= result.estimate <= result.high <= 1


def test_kappa_covers() -> None:
    # Shares of win, tie, loss of judge a by judge b; agreed 0.75; by chance 0.45 x 0.45 + 0.25 x
    # 0.25 + 0.3 x 0.3 = 0.355; kappa 0.395 / 0.645
    shares = np.array([[0.36, 0.06, 0.03], [0.05, 0.16, 0.04], [0.04, 0.03, 0.23]])
    truth = (0.75 - 0.355) / 0.645
    generator, hits = np.random.default_rng(1), 0
    for _ in range(600):
        cells = generator.choice(9, size=150, p=shares.ravel())
        kappa = judge_agreement(cells // 3 / 2, cells % 3 / 2).kappa
        assert kappa is not None
        hits += kappa.low <= truth <= kappa.high
    assert 0.925 <= hits / 600 <= 0.975


def test_kappa_of_judges_with_one_verdict_says_nothing() -> None:
    result = judge_agreement([1.0] * 20, [0.8] * 20)
    assert result.raw.estimate == 1
    assert result.kappa is None


def test_refuses_what_says_nothing() -> None:
    with pytest.raises(MetricError, match=r"All preferences are 0\.5: nothing can correlate"):
        length_correlation([0.5] * 5, [1, 2, 3, 4, 5], [0] * 5)
    with pytest.raises(MetricError, match="All length differences are 2: nothing can correlate"):
        length_correlation([0, 1, 0, 1], [3] * 4, [1] * 4)
    with pytest.raises(MetricError, match="at least 4 examples, but got 3"):
        length_correlation([0, 1, 0], [1, 2, 3], [0] * 3)
    with pytest.raises(MetricError, match=r"`preferences` must be in \[0, 1\], but example 0 is 2"):
        length_correlation([2, 1, 0, 1], [1, 2, 3, 4], [0] * 4)
    with pytest.raises(MetricError, match="must score the same examples, but have 1 and 2"):
        judge_agreement([1.0], [1.0, 0.0])
