from __future__ import annotations

import numpy as np
import pytest

from moa_dspy.errors import MetricError
from moa_dspy.winrate import paired_bootstrap, paired_interval

GENERATOR = np.random.default_rng(0)
A, B = GENERATOR.beta(2, 1, 400), GENERATOR.beta(2, 1.5, 400)


def test_agrees_with_students_on_many_spread_out_scores() -> None:
    resampled, students = paired_bootstrap(A, B), paired_interval(A, B)
    assert resampled.estimate == students.estimate
    assert (resampled.low, resampled.high) == pytest.approx(
        (students.low, students.high), abs=0.002
    )


def test_two_examples_by_hand() -> None:
    # Means of two draws from 0 and 1: 0, 1/2, 1 with chances 1/4, 1/2, 1/4
    whole, half = (paired_bootstrap([0.0, 1.0], [0.0, 0.0], confidence=c) for c in (0.95, 0.4))
    assert (whole.low, whole.estimate, whole.high) == (0.0, 0.5, 1.0)
    assert (half.low, half.high) == (0.5, 0.5)


def test_swapping_mirrors_and_the_scale_carries_over() -> None:
    one, other = paired_bootstrap(A, B), paired_bootstrap(10 * B, 10 * A)
    assert (10 * one.low, 10 * one.high) == pytest.approx((-other.high, -other.low))


def test_the_seed_decides() -> None:
    assert paired_bootstrap(A, B, seed=1) == paired_bootstrap(A, B, seed=1)
    assert paired_bootstrap(A, B, seed=1) != paired_bootstrap(A, B, seed=2)


def test_refuses_what_resampling_cannot_answer() -> None:
    with pytest.raises(MetricError, match=r"All 3 differences are 0\.5: resampling sees no noise"):
        paired_bootstrap([1.0, 1.0, 1.0], [0.5, 0.5, 0.5])
    with pytest.raises(MetricError, match="`n_resamples` must be at least 1000, but got 10"):
        paired_bootstrap(A, B, n_resamples=10)
