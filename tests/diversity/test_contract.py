"""What every diversity metric promises; a new entry in METRICS is picked up by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.diversity import METRICS, DiversityMetric

responses = st.lists(st.text(max_size=20), max_size=6)
every_metric = pytest.mark.parametrize("metric", [m() for m in METRICS.values()], ids=list(METRICS))


@every_metric
@given(texts=responses)
def test_is_bounded(metric: DiversityMetric, texts: list[str]) -> None:
    assert 0.0 <= metric(texts) <= 1.0


@every_metric
@given(text=st.text(max_size=20), n=st.integers(0, 5))
def test_is_zero_on_copies(metric: DiversityMetric, text: str, n: int) -> None:
    assert metric([text] * n) == 0.0


@every_metric
@given(data=st.data(), texts=responses)
def test_ignores_order(metric: DiversityMetric, data: st.DataObject, texts: list[str]) -> None:
    assert metric(data.draw(st.permutations(texts))) == pytest.approx(metric(texts), abs=1e-12)


@every_metric
def test_is_one_on_texts_that_share_nothing(metric: DiversityMetric) -> None:
    assert metric(["aaaa", "bbbb", "cccc"]) == 1.0


@every_metric
@given(texts=responses)
def test_changes_nothing(metric: DiversityMetric, texts: list[str]) -> None:
    before = list(texts)
    metric(texts)
    assert texts == before


def test_names_are_sorted() -> None:
    assert list(METRICS) == sorted(METRICS)
