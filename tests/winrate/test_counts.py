"""Examples that count less than one: tests, intervals and numbers needed."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moa_dspy.errors import MetricError
from moa_dspy.winrate import (
    cost_verdict,
    decision_interval,
    non_inferiority_p,
    paired_interval,
    sign_flip_mid_p,
)
from moa_dspy.winrate.intervals import tango_interval
from moa_dspy.winrate.tests import examples_needed, power_of

unit = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
pairs = st.lists(st.tuples(unit, unit), min_size=2, max_size=12)


@given(pairs)
@example([(0.0, 0.0), (0.0004, 0.0)])  # finer than a step: a tie
def test_a_count_of_one_changes_nothing(pairs: list[tuple[float, float]]) -> None:
    a, b = [left for left, _ in pairs], [right for _, right in pairs]
    ones, gaps = [1.0] * len(pairs), [left - right for left, right in pairs]
    plain, counted = decision_interval(a, b), decision_interval(a, b, counts=ones)
    assert (counted.low, counted.high) == pytest.approx((plain.low, plain.high), abs=1e-6)
    assert sign_flip_mid_p(gaps, counts=ones) == pytest.approx(sign_flip_mid_p(gaps), abs=1e-9)
    assert non_inferiority_p(a, b, counts=ones) == pytest.approx(non_inferiority_p(a, b), abs=1e-6)
    assert examples_needed(gaps, counts=ones) == examples_needed(gaps)
    assert power_of(gaps, counts=ones) == pytest.approx(power_of(gaps))


@given(pairs, pairs)
def test_interval_and_tests_agree_on_what_counts_less(
    new: list[tuple[float, float]], old: list[tuple[float, float]]
) -> None:
    a, b = [left for left, _ in new + old], [right for _, right in new + old]
    counts = [1.0] * len(new) + [0.4] * len(old)
    gaps = [left - right for left, right in new + old]
    found = decision_interval(a, b, counts=counts)
    assert (found.low > 0) == (sign_flip_mid_p(gaps, counts=counts) <= 0.05)
    assert (found.high < 0) == (sign_flip_mid_p([-gap for gap in gaps], counts=counts) <= 0.05)
    mean = sum(c * gap for c, gap in zip(counts, gaps, strict=True)) / sum(counts)
    assert found.estimate == pytest.approx(mean)
    # Swapped systems mirror it.
    mirrored = decision_interval(b, a, counts=counts)
    assert (-mirrored.high, -mirrored.low) == pytest.approx((found.low, found.high))


def test_right_or_wrong_examples_enter_tangos_interval_as_often_as_they_count() -> None:
    # 3 wins and 1 loss of 10 that count 1, 2 wins and 2 losses of 10 that count 1/2.
    a = [1.0] * 3 + [0.0] * 7 + [1.0] * 2 + [0.0] * 8
    b = [0.0] * 3 + [1.0] + [0.0] * 6 + [0.0] * 2 + [1.0] * 2 + [0.0] * 6
    found = paired_interval(a, b, confidence=0.9, counts=[1.0] * 10 + [0.5] * 10)
    assert (found.low, found.high) == pytest.approx(tango_interval(4, 2, 15, confidence=0.9))


def test_examples_that_tie_say_nothing_however_they_count() -> None:
    gaps = [1.0] * 5 + [0.0] * 5
    # 5 of 5 won: half of 1 / 32.
    assert sign_flip_mid_p(gaps, counts=[1.0] * 5 + [0.4] * 5) == pytest.approx(1 / 64)
    assert sign_flip_mid_p([0.0, 0.0], counts=[1.0, 0.4]) == 1.0


def test_losses_alone_are_counted_exactly() -> None:
    # 2 of 40 lost, 20 of them and one loss at 1/2: 1.5 of 30.
    a, b = [0.0] * 40, [1.0] + [0.0] * 19 + [1.0] + [0.0] * 19
    counts = [1.0] * 20 + [0.5] * 20
    low = decision_interval(a, b, counts=counts).low
    p = non_inferiority_p(a, b, margin=-low, counts=counts)
    assert p == pytest.approx(0.05, abs=1e-6)
    found = cost_verdict(
        a[:20], b[:20], val=(a[20:], b[20:]), costs={"usd": 1.0}, single_costs={"usd": 2.0}
    )
    assert found.kind == "not_shown"
    assert found.n_more > 0


@pytest.mark.parametrize("counts", [[1.0], [1.0, 0.0], [1.0, 1.5]])
def test_counts_are_one_number_per_example(counts: list[float]) -> None:
    with pytest.raises(MetricError, match="`counts` must be"):
        decision_interval([1.0, 0.0], [0.0, 0.0], counts=counts)
