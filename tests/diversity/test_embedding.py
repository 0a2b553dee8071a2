"""Embedding distance with scripted embedders, and the hashed n-grams that need none."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

import dspy
import numpy as np
import pytest
from numpy.typing import NDArray

from moa_dspy.diversity import EmbeddingDistance, HashedNgrams
from moa_dspy.errors import MetricError

VECTORS = {"east": [2.0, 0.0], "north": [0.0, 1.0], "north east": [1.0, 1.0], "west": [-1.0, 0.0]}


@dataclass
class Compass:
    asked: list[list[str]] = field(default_factory=list)

    def __call__(self, texts: list[str]) -> list[list[float]]:
        self.asked.append(list(texts))
        return [VECTORS.get(text, [0.0, 0.0]) for text in texts]


def test_distance_is_one_minus_the_cosine() -> None:
    # 45 degrees; the length of a vector does not count
    expected = 1 - 1 / sqrt(2)
    assert EmbeddingDistance(Compass())(["east", "north east"]) == pytest.approx(expected)


def test_distance_is_the_mean_over_pairs() -> None:
    # Right angle, and twice 45 degrees
    expected = (1 + 2 * (1 - 1 / sqrt(2))) / 3
    assert EmbeddingDistance(Compass())(["north", "east", "north east"]) == pytest.approx(expected)


def test_opposed_embeddings_count_as_unrelated() -> None:
    assert EmbeddingDistance(Compass())(["east", "west"]) == 1.0
    assert EmbeddingDistance(Compass()).similarities(["east", "west"])[0, 1] == pytest.approx(-1)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_length_of_a_vector_does_not_count(scale: float) -> None:
    metric = EmbeddingDistance(lambda _: np.array([[scale, 0.0], [scale, scale]]))
    assert metric(["a", "b"]) == pytest.approx(1 - 1 / sqrt(2))


def test_is_asked_once_for_distinct_texts_that_are_not_blank() -> None:
    compass = Compass()
    EmbeddingDistance(compass)(["west", " east ", "", "east", "\n", "west"])
    assert compass.asked == [["east", "west"]]


def test_blank_texts_are_never_sent() -> None:
    compass = Compass()
    assert EmbeddingDistance(compass)(["", " "]) == 0.0
    assert compass.asked == []
    assert EmbeddingDistance(compass)(["", "east"]) == 1.0


def test_lone_surrogates_are_sent_as_replacement_characters() -> None:
    compass = Compass()
    EmbeddingDistance(compass)(["a\ud800", "b"])
    assert compass.asked == [["a\ufffd", "b"]]


def test_takes_a_dspy_embedder() -> None:
    def embed(texts: list[str]) -> NDArray[np.float32]:
        return np.array([VECTORS[text] for text in texts], dtype=np.float32)

    metric = EmbeddingDistance(dspy.Embedder(embed, caching=False))
    assert metric(["east", "north"]) == 1.0
    assert metric(["east", "north east"]) == pytest.approx(1 - 1 / sqrt(2), abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (
            [[1.0]],
            r"must return \(2, dimensions\) numbers for 2 texts, but returned shape \(1, 1\)",
        ),
        ([1.0, 2.0], r"returned shape \(2,\)"),
        ([[], []], r"returned shape \(2, 0\)"),
        ([[1.0], [float("nan")]], "finite numbers, but returned NaN"),
    ],
)
def test_refuses_what_is_not_one_row_for_each_text(rows: list[object], complaint: str) -> None:
    with pytest.raises(MetricError, match=complaint):
        EmbeddingDistance(lambda _: np.array(rows))(["a", "b"])


def test_hashed_ngrams_count() -> None:
    # abab: aba, bab; one n-gram each way in 4,096 places
    vectors = HashedNgrams()(["abab", "ab", ""])
    assert vectors.shape == (3, 4_096)
    assert np.abs(vectors).sum(axis=1).tolist() == [2, 1, 0]
    # ABABA: aba twice, bab once
    assert sorted(np.abs(HashedNgrams()(["ABABA"])[0]))[-2:] == [1, 2]


def test_hashed_ngrams_are_the_same_everywhere() -> None:
    # Pinned: stored values of one release must be comparable with those of the next.
    (row,) = HashedNgrams()(["abc"])
    assert [(int(i), int(row[i])) for i in np.flatnonzero(row)] == [(656, -1)]


def test_hashed_cosine_is_close_to_the_exact_one() -> None:
    a, b = "the quick brown fox jumps over the lazy dog", "a lazy dog sleeps; the brown fox jumps"
    grams = [[t[i : i + 3] for i in range(len(t) - 2)] for t in (a, b)]
    places = sorted({g for text in grams for g in text})
    exact = np.array([[text.count(g) for g in places] for text in grams], dtype=np.float64)
    expected = exact[0] @ exact[1] / np.sqrt((exact[0] @ exact[0]) * (exact[1] @ exact[1]))
    assert 1 - EmbeddingDistance()([a, b]) == pytest.approx(expected, abs=0.05)


def test_refuses_sizes_below_one() -> None:
    with pytest.raises(MetricError, match=r"`n` must be at least 1, but got 0\."):
        HashedNgrams(n=0)
    with pytest.raises(MetricError, match=r"`n_dimensions` must be at least 1, but got 0\."):
        HashedNgrams(n_dimensions=0)
