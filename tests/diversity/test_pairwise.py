"""Similarities between models equal those of each pair on each question."""

from __future__ import annotations

import numpy as np
import pytest

from moa_dspy.diversity import (
    DIVERSITY_METRICS,
    JaccardDistance,
    TfidfDistance,
    pairwise_similarity,
    proposal_similarity,
)
from moa_dspy.errors import MetricError

TEXTS = [
    ["The answer is 7.", "It rains in Spain, mostly on the plain.", "", "yes"],
    ["the answer is 8", "Rain in Spain stays mainly in the plain!", "", "Yes, yes: \ud800"],
    ["I do not know", "It rains in Spain, mostly on the plain.", "words", "no"],
]


@pytest.mark.parametrize("name", DIVERSITY_METRICS)
def test_equals_the_metric_on_each_pair(name: str) -> None:
    metric = DIVERSITY_METRICS[name]()
    expected = [
        [np.mean([1 - metric([a, b]) for a, b in zip(x, y, strict=True)]) for y in TEXTS]
        for x in TEXTS
    ]
    np.testing.assert_allclose(pairwise_similarity(name, TEXTS), expected, atol=1e-12)


def test_is_the_mean_over_questions() -> None:
    # {a, b}-{b, c}: 1/3; {a}-{a}: 1
    similarities = pairwise_similarity("jaccard", [["a b", "a"], ["b c", "a"]])
    np.testing.assert_allclose(similarities, [[1, 2 / 3], [2 / 3, 1]])


def test_takes_a_metric() -> None:
    fitted = TfidfDistance.fitted_on(["a b", "b"])
    expected = 1 - fitted(["a b", "b"])
    assert pairwise_similarity(fitted, [["a b"], ["b"]])[0, 1] == pytest.approx(expected)
    # A metric without a form for all pairs at once is asked pair by pair
    half = pairwise_similarity(lambda _: 0.25, [["a"], ["b"]])
    assert half.tolist() == [[1, 0.75], [0.75, 1]]


@pytest.mark.parametrize("texts", [[], [[], []], [["a"], ["a", "b"]]])
def test_refuses_ragged_and_empty_tables(texts: list[list[str]]) -> None:
    with pytest.raises(MetricError, match="equally long and not empty, but has"):
        pairwise_similarity("jaccard", texts)


def test_refuses_unknown_names() -> None:
    with pytest.raises(MetricError, match="Unknown diversity metric 'bleu'; known ones are bleu_3"):
        pairwise_similarity("bleu", [["a"]])


def test_aggregates_against_their_proposals() -> None:
    # {a, b} against {a} and {c}: 1/2 and 0; {d} against {d}: 1, and no second proposal
    cells = proposal_similarity(JaccardDistance(), ["a b", "d"], [["a", "c"], ["d"]])
    np.testing.assert_allclose(cells, [[1 / 2, 0], [1, np.nan]])
    assert proposal_similarity("jaccard", [], []).shape == (0, 0)


def test_refuses_aggregates_without_proposals() -> None:
    with pytest.raises(MetricError, match="one list for each of 2 aggregates, but there are 1"):
        proposal_similarity("jaccard", ["a", "b"], [["a"]])
