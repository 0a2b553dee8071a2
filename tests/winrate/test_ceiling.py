from __future__ import annotations

import pytest

from moa_dspy.errors import MetricError
from moa_dspy.winrate import co_failure, oracle


def test_oracle_is_the_best_per_example() -> None:
    assert oracle({"a": [0.0, 1.0, 0.2], "b": [1.0, 0.0, 0.3]}).tolist() == [1.0, 1.0, 0.3]


def test_co_failure_counts_examples_that_nobody_gets() -> None:
    # Best scores 0.5, 0.4, 1.0, 0.0: two of four below one half
    result = co_failure({"a": [0.5, 0.4, 0.0, 0.0], "b": [0.0, 0.1, 1.0, 0.0]})
    assert result.estimate == 0.5
    # Clopper-Pearson for 2 of 4: 0.0676 to 0.9324
    assert (result.low, result.high) == pytest.approx((0.0676, 0.9324), abs=1e-4)


def test_no_co_failure_in_20() -> None:
    # The upper end u solves (1 - u)^20 = 0.025
    result = co_failure({"a": [1.0] * 20})
    assert (result.low, result.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))


def test_only_co_failures() -> None:
    result = co_failure({"a": [0.0] * 20}, confidence=0.9)
    assert (result.low, result.high) == pytest.approx((0.05 ** (1 / 20), 1.0))


def test_candidates_must_share_the_examples() -> None:
    with pytest.raises(MetricError, match=r"but have \{'a': 2, 'b': 1\}"):
        oracle({"a": [1.0, 0.0], "b": [1.0]})
    with pytest.raises(MetricError, match="at least one candidate, but got 0"):
        oracle({})
