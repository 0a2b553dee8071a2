from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from moa_dspy.errors import MetricError
from moa_dspy.winrate import sign_flip_mid_p

tenths = st.lists(st.integers(-10, 10).map(lambda k: k / 10), min_size=1, max_size=12)


@pytest.mark.slow
@given(gaps=tenths)
def test_agrees_with_counting_all_signs(gaps: list[float]) -> None:
    tenths_of = [round(10 * abs(gap)) for gap in gaps if gap]
    seen = sum(round(10 * gap) for gap in gaps)
    sums = [
        sum(sign * size for sign, size in zip(signs, tenths_of, strict=True))
        for signs in product((-1, 1), repeat=len(tenths_of))
    ]
    above = sum(found > seen for found in sums) + sum(found == seen for found in sums) / 2
    expected = above / len(sums) if tenths_of else 1.0
    assert sign_flip_mid_p(gaps) == pytest.approx(expected, abs=1e-12)


def test_right_or_wrong_is_the_binomial_mid_p() -> None:
    # (45 / 2 + 10 + 1) / 1024; ties say nothing
    assert sign_flip_mid_p([1.0] * 8 + [-1.0] * 2 + [0.0] * 5) == 33.5 / 1024


def test_is_exact_far_in_the_tail() -> None:
    # 60 thirds, all won: half of 2^-60
    assert sign_flip_mid_p([1 / 3] * 60) == pytest.approx(2.0**-61, rel=1e-9)


def test_many_graded_differences_agree_with_the_normal_tail() -> None:
    gaps = np.random.default_rng(0).normal(0.016, 0.2, size=2_000).clip(-1, 1)
    z = gaps.sum() / np.sqrt((gaps**2).sum())
    # Between P = 0.023 and 0.001
    assert 2 < z < 3
    assert sign_flip_mid_p(gaps) == pytest.approx(norm.sf(z), rel=0.05)


@given(gaps=tenths)
def test_both_directions_share_the_observed_outcome(gaps: list[float]) -> None:
    both = sign_flip_mid_p(gaps) + sign_flip_mid_p([-gap for gap in gaps])
    assert both == pytest.approx(1.0 if any(gaps) else 2.0)


def test_refuses_what_is_no_number() -> None:
    with pytest.raises(MetricError, match="`differences` must be finite, but example 1 is nan"):
        sign_flip_mid_p([0.0, float("nan")])


def test_permutation_by_hand() -> None:
    # .1 .2 .4, all signed subsets distinct: only the observed sum is as large, half of 1 / 8.
    assert sign_flip_mid_p([0.1, 0.2, 0.4, 0.0]) == 1 / 16
    # .1 + .2 - .4 = -.1: the four flips with +.4 are greater, itself counts by half.
    assert sign_flip_mid_p([0.1, 0.2, -0.4]) == 4.5 / 8


def test_many_discordant_examples_stay_exact() -> None:
    assert sign_flip_mid_p([1.0] * 2_000 + [-1.0] * 2_000) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("graded", [False, True])
def test_level_is_kept_where_nothing_differs(graded: bool) -> None:
    generator = np.random.default_rng(4)
    low = 0
    for _ in range(150):
        a, b = generator.random((2, 40))
        low += sign_flip_mid_p(a - b if graded else a.round() - b.round()) <= 0.1
    # 150 x 0.1 = 15 expected, sd 3.7
    assert low <= 25
