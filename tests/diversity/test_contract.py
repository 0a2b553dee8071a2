"""What every diversity metric promises; a new entry in DIVERSITY_METRICS is picked up by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa_dspy.diversity import DIVERSITY_METRICS, DiversityMetric, PairwiseMetric

busy = settings(deadline=None)  # a busy machine is no failure
# Every code point, lone surrogates included.
characters = st.characters(exclude_categories=()) | st.sampled_from("aAb1 .,-\n\ud800")
text = st.text(characters, max_size=20)
responses = st.lists(text, max_size=6)
every_metric = pytest.mark.parametrize(
    "metric", [m() for m in DIVERSITY_METRICS.values()], ids=list(DIVERSITY_METRICS)
)


@every_metric
@busy
@given(texts=responses)
def test_is_bounded(metric: DiversityMetric, texts: list[str]) -> None:
    assert 0.0 <= metric(texts) <= 1.0


@every_metric
@busy
@given(copied=text, n=st.integers(0, 5))
def test_is_zero_on_copies(metric: DiversityMetric, copied: str, n: int) -> None:
    assert metric([copied] * n) == 0.0


@every_metric
@busy
@given(data=st.data(), texts=responses)
def test_ignores_order(metric: DiversityMetric, data: st.DataObject, texts: list[str]) -> None:
    assert metric(data.draw(st.permutations(texts))) == pytest.approx(metric(texts), abs=1e-12)


@every_metric
def test_is_one_on_texts_that_share_nothing(metric: DiversityMetric) -> None:
    assert metric(["aaaa", "bbbb", "cccc"]) == pytest.approx(1.0, abs=1e-12)


@every_metric
def test_fewer_than_two_responses_have_no_diversity(metric: DiversityMetric) -> None:
    assert metric([]) == 0.0
    assert metric(["word"]) == 0.0
    assert metric([""]) == 0.0


@every_metric
def test_an_empty_text_shares_nothing_but_with_its_copies(metric: DiversityMetric) -> None:
    assert metric(["", ""]) == 0.0
    assert metric(["", "two words"]) == pytest.approx(1.0, abs=1e-12)


@every_metric
def test_lone_surrogates_are_text(metric: DiversityMetric) -> None:
    assert metric(["\ud800 word", "\ud800 word"]) == 0.0
    assert 0.0 < metric(["\ud800 word", "\udfff other"]) <= 1.0


@every_metric
def test_huge_texts_are_scored(metric: DiversityMetric) -> None:
    words = [f"w{i}" for i in range(30_000)]
    texts = [" ".join(words), " ".join(reversed(words)), "x" * 200_000]
    assert 0.0 < metric(texts) <= 1.0


@pytest.mark.slow
@every_metric
@busy
@given(texts=responses)
def test_pairs_are_judged_as_if_alone(metric: DiversityMetric, texts: list[str]) -> None:
    if isinstance(metric, PairwiseMetric):
        alone = [[1 - metric([a, b]) for b in texts] for a in texts]
        np.testing.assert_allclose(
            metric.pairs(texts), np.array(alone).reshape(len(texts), len(texts)), atol=1e-12
        )


@every_metric
@busy
@given(texts=responses)
def test_changes_nothing(metric: DiversityMetric, texts: list[str]) -> None:
    before = list(texts)
    metric(texts)
    assert texts == before


def test_names_are_sorted() -> None:
    assert list(DIVERSITY_METRICS) == sorted(DIVERSITY_METRICS)
