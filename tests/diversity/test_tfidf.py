"""TF-IDF cosine, by hand and as scikit-learn computes it."""

from __future__ import annotations

from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from moa_dspy.diversity import TfidfDistance
from moa_dspy.errors import MetricError

busy = settings(deadline=None)  # a busy machine is no failure
CORPUS = ["the answer is 7", "The answer, I think, is B.", "so what", "B B B or not_b"]
RESPONSES = ["The answer is B", "the the answer: 7!", "Größe is naïve", "", "so, so... what?"]
words = st.lists(st.sampled_from(["a", "B", "b", "c7", "é", "_", "!", "the"]), max_size=8)
texts = st.lists(words.map(" ".join), min_size=2, max_size=6)


def sklearn_cosines(responses: list[str], corpus: list[str]) -> np.ndarray:
    vectorizer = TfidfVectorizer(token_pattern=r"\w+").fit(corpus)
    vectors = vectorizer.transform(responses).toarray()
    cosines = vectors @ vectors.T
    blank = [r.strip() for r in responses]
    # Copies without a known word are copies here; scikit-learn has no direction for them.
    return np.where(np.equal.outer(blank, blank), 1.0, cosines)


def test_tfidf_of_two_responses_by_hand() -> None:
    # a is in both, weight 1; b and c in one of two, weight ln(3/2) + 1: cosine 1 / (1 + w ** 2)
    alone = log(3 / 2) + 1
    assert TfidfDistance()(["a b", "A c."]) == pytest.approx(1 - 1 / (1 + alone**2))


def test_tfidf_of_a_fitted_corpus_by_hand() -> None:
    # Of 3 documents a is in 2 and b in 1; z is unknown and not counted
    a, b = log(4 / 3) + 1, log(4 / 2) + 1
    metric = TfidfDistance.fitted_on(["a b", "a", "c"])
    assert metric(["a b", "a z"]) == pytest.approx(1 - a / sqrt(a**2 + b**2))


def test_counts_weigh() -> None:
    # (2, 0) and (1, w): cosine 2 / (2 sqrt(1 + w ** 2))
    alone = log(3 / 2) + 1
    assert TfidfDistance()(["a a", "a b"]) == pytest.approx(1 - 1 / sqrt(1 + alone**2))


def test_similarities_are_scikit_learns() -> None:
    np.testing.assert_allclose(
        TfidfDistance().similarities(RESPONSES), sklearn_cosines(RESPONSES, RESPONSES), atol=1e-9
    )
    np.testing.assert_allclose(
        TfidfDistance.fitted_on(CORPUS).similarities(RESPONSES),
        sklearn_cosines(RESPONSES, CORPUS),
        atol=1e-9,
    )


@pytest.mark.slow
@busy
@given(responses=texts)
def test_similarities_are_scikit_learns_on_generated_texts(responses: list[str]) -> None:
    responses = [*responses, "word"]  # scikit-learn refuses an empty vocabulary
    ours = TfidfDistance().similarities(responses)
    np.testing.assert_allclose(ours, sklearn_cosines(responses, responses), atol=1e-9)
    fitted = TfidfDistance.fitted_on(CORPUS).similarities(responses)
    np.testing.assert_allclose(fitted, sklearn_cosines(responses, CORPUS), atol=1e-9)


@busy
@given(responses=texts)
def test_pairs_are_documents_of_their_own(responses: list[str]) -> None:
    pair = [f"the {responses[0]}", responses[-1]]  # scikit-learn refuses an empty vocabulary
    ours = TfidfDistance().pairs([pair[0], *responses])[0, -1]
    assert ours == pytest.approx(sklearn_cosines(pair, pair)[0, 1], abs=1e-9)


def test_the_metric_is_the_mean_over_pairs() -> None:
    cosines = sklearn_cosines(RESPONSES, RESPONSES)
    expected = 1 - cosines[np.triu_indices(len(RESPONSES), k=1)].mean()
    assert TfidfDistance()(RESPONSES) == pytest.approx(expected, abs=1e-9)


def test_texts_without_words() -> None:
    assert TfidfDistance()(["?!", "?!"]) == 0.0
    assert TfidfDistance()(["?!", "..."]) == 1.0
    assert TfidfDistance()(["", " "]) == 0.0
    assert TfidfDistance.fitted_on(["a"])(["unknown", "words"]) == 1.0


def test_refuses_an_empty_corpus() -> None:
    with pytest.raises(MetricError, match="`corpus` must have at least one document"):
        TfidfDistance.fitted_on([])
