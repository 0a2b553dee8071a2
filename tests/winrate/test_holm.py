from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.errors import MetricError
from moa_dspy.winrate import holm, paired_interval, simultaneous_intervals

p_values = st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=6)


def test_holm_by_hand() -> None:
    # Sorted .01 .03 .04: 3 x .01, 2 x .03, 1 x .04 raised to .06; the order of names is kept
    adjusted = holm({"a": 0.04, "b": 0.01, "c": 0.03})
    assert adjusted == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert list(adjusted) == ["a", "b", "c"]


@given(p_values=p_values)
def test_holm_is_monotone_and_capped(p_values: dict[str, float]) -> None:
    adjusted = holm(p_values)
    in_order = [adjusted[name] for name in sorted(p_values, key=lambda key: p_values[key])]
    assert in_order == sorted(in_order)
    assert all(p_values[name] <= adjusted[name] <= 1 for name in p_values)


def test_holm_refuses_what_is_no_p_value() -> None:
    with pytest.raises(MetricError, match=r"in \[0, 1\], but 'a' is nan"):
        holm({"a": float("nan")})


def test_simultaneous_intervals_share_the_error() -> None:
    pick, other = [1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]
    both = simultaneous_intervals(pick, {"x": other, "y": pick}, confidence=0.9)
    # 10 % over two comparisons: 5 % each
    assert both["x"] == paired_interval(pick, other, confidence=0.95)
    assert list(both) == ["x", "y"]


def test_no_comparison_gives_no_interval() -> None:
    assert simultaneous_intervals([1.0], {}) == {}
    assert holm({}) == {}
