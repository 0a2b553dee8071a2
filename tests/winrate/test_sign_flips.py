from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from moa_dspy.errors import MetricError
from moa_dspy.winrate import sign_flip_mid_p, superiority_p

tenths = st.lists(st.integers(-10, 10).map(lambda k: k / 10), min_size=1, max_size=12)


@given(gaps=tenths)
def test_agrees_with_counting_all_signs(gaps: list[float]) -> None:
    expected = superiority_p(gaps, [0.0] * len(gaps), mid_p=True)
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
