from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.errors import MetricError
from moa_dspy.winrate import preferences

pairs = st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=9)


def test_win_tie_loss() -> None:
    assert preferences([3.0, 1.0, 0.2], [2.0, 1.0, 0.4]).tolist() == [1.0, 0.5, 0.0]


def test_differences_within_the_tolerance_are_ties() -> None:
    assert preferences([0.75, 1.0], [0.5, 0.5], tolerance=0.25).tolist() == [0.5, 1.0]


@given(pairs=pairs)
def test_swapping_gives_one_minus(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    assert (preferences(ours, theirs) == 1 - preferences(theirs, ours)).all()


def test_lengths_must_agree() -> None:
    with pytest.raises(MetricError, match=r"`scores` and `reference` .* but have 2 and 1\."):
        preferences([1.0, 0.0], [1.0])


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(MetricError, match="at least one example, but got 0"):
        preferences([], [])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match=r"`reference` must be finite, but example 1 is (nan|inf)"):
        preferences([1.0, 0.0], [1.0, bad])


def test_scores_must_be_a_vector() -> None:
    with pytest.raises(MetricError, match=r"one score per example, but has shape \(1, 2\)"):
        preferences([[1.0, 0.0]], [1.0])  # type: ignore[list-item]  # the mistake under test


def test_tolerance_is_at_least_zero() -> None:
    with pytest.raises(MetricError, match=r"`tolerance` must be at least 0, but got -1"):
        preferences([1.0], [1.0], tolerance=-1)
