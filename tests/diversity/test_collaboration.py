"""What models make of each other's answers, on examples with known answers."""

from __future__ import annotations

from math import isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from moa_dspy.diversity import (
    AggregatorRecord,
    ModelRecord,
    collaboration_report,
    proposal_similarity,
    spearman,
)
from moa_dspy.errors import MetricError

busy = settings(deadline=None)  # a busy machine is no failure
# Ranks (1, 2, 3) against (1, 2, 3), (3, 2, 1), (1.5, 1.5, 3): 1, -1 and sqrt(3) / 2; a constant.
SIMILARITIES = [[0.1, 0.2, 0.9], [0.1, 0.2, 0.9], [0.1, 0.2, 0.9], [0.5, 0.5, 0.5]]
PREFERENCES = [[0.0, 0.4, 0.5], [1.0, 0.4, 0.0], [0.0, 0.0, 1.0], [0.1, 0.2, 0.3]]


def test_spearman_by_hand() -> None:
    # 1 - 6 x (0 + 1 + 1) / (3 x 8) without ties
    assert spearman([1, 2, 3], [10, 30, 20]) == pytest.approx(0.5)
    # Ranks 1, 2, 3 and 1.5, 1.5, 3: 1.5 / sqrt(2 x 1.5)
    assert spearman([1, 2, 3], [0, 0, 1]) == pytest.approx(sqrt(3) / 2)


@busy
@given(pairs=st.lists(st.tuples(st.integers(0, 5), st.floats(-1, 1)), min_size=2, max_size=9))
def test_spearman_is_scipys(pairs: list[tuple[int, float]]) -> None:
    first, second = ([float(p[i]) for p in pairs] for i in (0, 1))
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert isnan(spearman(first, second))
        return
    expected = spearmanr(first, second)[0]
    assert spearman(first, second) == pytest.approx(expected, abs=1e-12)


def test_spearman_refuses_what_cannot_be_ranked() -> None:
    with pytest.raises(MetricError, match=r"same length are needed, but got \(1,\) and \(2,\)"):
        spearman([1], [1, 2])
    with pytest.raises(MetricError, match="Only finite numbers"):
        spearman([1, nan], [1, 2])


def test_correlations_are_averaged_over_examples() -> None:
    report = collaboration_report({"a": AggregatorRecord(SIMILARITIES, PREFERENCES)})
    sample = report.correlations["a"]
    assert sample.values == pytest.approx((1, -1, sqrt(3) / 2))
    assert (sample.n, sample.n_left_out) == (3, 1)
    assert sample.mean == pytest.approx(sqrt(3) / 6)
    # Squares sum to 2 + 3/4, minus 3 x 1/12: 5/2 over 2 degrees of freedom, over 3 examples
    assert sample.standard_error == pytest.approx(sqrt(5 / 2 / 2 / 3))


def test_missing_proposals_are_not_ranked() -> None:
    record = AggregatorRecord([[1, 2, nan], [1, nan, nan]], [[5, 6, 0], [5, 6, 0]])
    sample = collaboration_report({"a": record}).correlations["a"]
    assert (sample.values, sample.n_left_out) == ((1.0,), 1)


def test_an_aggregator_that_copies_the_best_is_seen() -> None:
    proposals = [["one two three", "one four", "five"], ["x", "y z", "x y z w"]]
    similarities = proposal_similarity("jaccard", ["one two three", "x y z w"], proposals)
    # By hand: 1, 1/4, 0 and 1/4, 1/2, 1
    record = AggregatorRecord(similarities, [[0.9, 0.5, 0.1], [0.1, 0.5, 0.9]])
    assert collaboration_report({"a": record}).correlations["a"].values == pytest.approx((1, 1))


def test_gains_are_split_by_whether_all_references_are_worse() -> None:
    record = ModelRecord(
        alone=[0.5, 0.5, 0.5, 0.5, nan],
        with_references=[0.7, 0.4, 0.9, 0.6, 1.0],
        # All worse; one better; a tie is not worse; one worse and one missing; all worse
        references=[[0.1, 0.2], [0.1, 0.6], [0.5, 0.5], [0.4, nan], [0.1, 0.1]],
    )
    gain = collaboration_report({}, models={"m": record}).gains["m"]
    assert gain.overall.values == pytest.approx((0.2, -0.1, 0.4, 0.1))
    assert gain.overall.n_left_out == 1
    assert gain.all_worse.values == pytest.approx((0.2, 0.1))
    assert gain.not_all_worse.values == pytest.approx((-0.1, 0.4))
    # Mean 0.15; deviations 0.05 each: sqrt(0.005 / 1 / 2)
    assert gain.all_worse.mean == pytest.approx(0.15)
    assert gain.all_worse.standard_error == pytest.approx(0.05)


def test_examples_without_references_are_in_neither_half() -> None:
    gain = collaboration_report(
        {}, models={"m": ModelRecord([0.5, 0.5], [1, 0], [[nan], [0.1]])}
    ).gains["m"]
    assert (gain.overall.n, gain.all_worse.n, gain.not_all_worse.n) == (2, 1, 0)
    assert isnan(gain.not_all_worse.mean)
    assert isnan(gain.all_worse.standard_error)


def test_a_split_by_the_models_own_score_is_biased_and_by_a_second_answer_is_not() -> None:
    # A world without any gain: all scores are draws of one distribution.
    alone, with_references, again, reference = np.random.default_rng(7).random((4, 4_000))
    halves = {
        name: collaboration_report(
            {}, models={"m": ModelRecord(alone, with_references, reference[:, None], quality)}
        ).gains["m"]
        for name, quality in (("own", None), ("second", again))
    }
    # E[alone | alone > reference] = 2/3 against 1/2
    assert halves["own"].all_worse.mean == pytest.approx(1 / 2 - 2 / 3, abs=0.04)
    assert halves["own"].is_split_by_own_score
    assert halves["second"].all_worse.mean == pytest.approx(0, abs=0.04)
    assert not halves["second"].is_split_by_own_score


def test_report_reads_as_text() -> None:
    report = collaboration_report(
        {"agg": AggregatorRecord(SIMILARITIES, PREFERENCES)},
        models={"m": ModelRecord([0.5, 0.5], [1, 0.5], [[0.1], [0.1]])},
    )
    assert str(report).splitlines() == [
        "Similarity to a proposal against its preference, Spearman:",
        "  agg: +0.2887 +- 0.6455 (n = 3, 1 left out)",
        "Score with references minus score alone:",
        "  m: +0.2500 +- 0.2500 (n = 2)",
        "    all references worse: +0.2500 +- 0.2500 (n = 2)",
        "    one as good or better: +nan +- nan (n = 0)",
        "Split by the score alone: by chance, too low where all are worse.",
    ]
    assert str(collaboration_report({})) == ""


def test_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(MetricError, match=r"'a': `preferences` must have shape \(1, 2\), but has"):
        collaboration_report({"a": AggregatorRecord([[1, 2]], [[1, 2, 3]])})
    with pytest.raises(MetricError, match="'a': `similarities` must have 2 axes, but has 1"):
        collaboration_report({"a": AggregatorRecord([1, 2], [1, 2])})
    with pytest.raises(MetricError, match="'m': `references` must have 1 examples, but has 2"):
        collaboration_report({}, models={"m": ModelRecord([1], [1], [[1], [1]])})
    with pytest.raises(MetricError, match="'m': `alone` must be finite or NaN"):
        collaboration_report({}, models={"m": ModelRecord([float("inf")], [1], [[1]])})
