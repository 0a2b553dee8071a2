from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.errors import MetricError
from moa_dspy.winrate import superiority_p

binary = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)


def discordant(wins: int, losses: int) -> tuple[list[float], list[float]]:
    """Scores with ``wins`` against ``losses`` and 5 ties."""
    return [1.0] * wins + [0.0] * losses + [1.0] * 5, [0.0] * wins + [1.0] * losses + [1.0] * 5


def test_exact_mcnemar_of_8_against_2() -> None:
    # P(X >= 8) for 10 fair coins: (45 + 10 + 1) / 1024
    assert superiority_p(*discordant(8, 2)) == pytest.approx(56 / 1024)


def test_mid_p_counts_the_observed_outcome_by_half() -> None:
    # (45 / 2 + 10 + 1) / 1024
    assert superiority_p(*discordant(8, 2), mid_p=True) == pytest.approx(33.5 / 1024)


def test_many_discordant_examples_stay_exact() -> None:
    # 2,000 against 2,000: P(X >= n/2) = (1 + P(X = n/2)) / 2, P(X = n/2) ~ 1 / sqrt(2000 pi)
    expected = (1 + (2000 * np.pi) ** -0.5) / 2
    assert superiority_p(*discordant(2_000, 2_000)) == pytest.approx(expected, abs=1e-5)


def test_exact_permutation_by_hand() -> None:
    # Differences .1 .2 .4: sums of signed subsets are all distinct; 7 of 8 flips are smaller
    assert superiority_p([0.1, 0.2, 0.4, 1.0], [0.0, 0.0, 0.0, 1.0]) == 1 / 8
    # .1 .2 -.4: sum -.1; at least that: every flip with +.4 (4), and .1 + .2 - .4 itself -> 5/8
    assert superiority_p([0.1, 0.2, 0.0], [0.0, 0.0, 0.4]) == 5 / 8


def test_half_points_agree_with_mcnemar() -> None:
    # One size of difference: sign flips are coin tosses, so 8 against 2 again
    a, b = discordant(8, 2)
    assert superiority_p([x / 2 for x in a], [y / 2 for y in b]) == pytest.approx(56 / 1024)


def test_monte_carlo_is_near_the_exact_value() -> None:
    # 14 against 6 half points: too many to enumerate; exactly (sum C(20, k), k >= 14) / 2^20
    a, b = discordant(14, 6)
    p = superiority_p([x / 2 for x in a], [y / 2 for y in b])
    assert p == pytest.approx(60_460 / 2**20, abs=0.006)


def test_monte_carlo_is_seeded_and_never_zero() -> None:
    a = np.linspace(0.5, 1.0, 30)
    p = superiority_p(a, np.zeros(30), seed=3)
    assert p == superiority_p(a, np.zeros(30), seed=3)
    # No flip of 10,000 reaches the observed sum; the observed one counts
    assert p == 1 / 10_001


@pytest.mark.parametrize("mid_p", [False, True])
def test_all_tied_is_one(mid_p: bool) -> None:
    assert superiority_p([0.3, 1.0], [0.3, 1.0], mid_p=mid_p) == 1.0


@given(pairs=binary)
def test_both_directions_share_the_observed_outcome(pairs: list[tuple[int, int]]) -> None:
    a, b = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    wins, losses = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    both = superiority_p(a, b, mid_p=True) + superiority_p(b, a, mid_p=True)
    assert both == pytest.approx(2.0 if wins + losses == 0 else 1.0)


@pytest.mark.parametrize("graded", [False, True])
def test_level_is_kept_where_nothing_differs(graded: bool) -> None:
    generator = np.random.default_rng(4)
    low = 0
    for seed in range(150):
        a, b = generator.random((2, 40))
        low += superiority_p(*((a, b) if graded else (a.round(), b.round())), seed=seed) <= 0.1
    # 150 x 0.1 = 15 expected, sd 3.7
    assert low <= 25


def test_too_few_flips_are_refused() -> None:
    with pytest.raises(MetricError, match=r"`n_flips` must be at least 10000, but got 100\."):
        superiority_p([1.0], [0.0], n_flips=100)
