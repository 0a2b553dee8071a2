"""Values of the diversity metrics that can be found by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.diversity import (
    Disagreement,
    DistinctShare,
    JaccardDistance,
    LevenshteinDistance,
    NgramJaccardDistance,
)
from moa_dspy.errors import MetricError


def table_distance(a: str, b: str) -> int:
    """Fill the textbook table, as the slow and obvious reference."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def test_jaccard_of_half_overlap() -> None:
    # {a, b} and {b, c}: 1 shared of 3 -> 2/3
    assert JaccardDistance()(["a b", "B  c"]) == pytest.approx(2 / 3)


def test_jaccard_is_the_mean_over_pairs() -> None:
    # {a, b}-{b, c}: 2/3; {a, b}-{a, b}: 0; {b, c}-{a, b}: 2/3 -> 4/9
    assert JaccardDistance()(["a b", "b c", "b a"]) == pytest.approx(4 / 9)


def test_jaccard_of_words_and_none() -> None:
    assert JaccardDistance()(["a", " "]) == 1.0


def test_ngram_jaccard_of_one_shared_gram() -> None:
    # abcd: {abc, bcd}; bcde: {bcd, cde}: 1 shared of 3 -> 2/3
    assert NgramJaccardDistance()(["abcd", "BCDE"]) == pytest.approx(2 / 3)


def test_ngram_jaccard_of_short_texts() -> None:
    # Shorter than 3: one gram each, {ab} and {ac}
    assert NgramJaccardDistance()(["ab", "ac"]) == 1.0
    # With n = 1: {a, b} and {a, c} -> 2/3
    assert NgramJaccardDistance(n=1)(["ab", "ac"]) == pytest.approx(2 / 3)


def test_distinct_counts_normalised_texts() -> None:
    # "a b", "a b" again in other dress, "c", "d": 3 distinct of 4 -> 2/3
    assert DistinctShare()(["a b", " A\n b", "c", "d"]) == pytest.approx(2 / 3)


def test_disagreement_counts_pairs() -> None:
    # 3 pairs of (yes, yes, no): 2 differ
    assert Disagreement()(["Yes", " yes", "no"]) == pytest.approx(2 / 3)


def test_disagreement_on_final_answers() -> None:
    last = Disagreement(normalise=lambda text: text.split()[-1])
    assert last(["it must be 7", "so 7", "I say 8"]) == pytest.approx(2 / 3)


def test_levenshtein_of_the_textbook_pair() -> None:
    # kitten -> sitten -> sittin -> sitting: 3 edits, longer length 7
    assert LevenshteinDistance()(["kitten", "sitting"]) == pytest.approx(3 / 7)


@given(a=st.text("abc", max_size=12), b=st.text("abc", max_size=12))
def test_levenshtein_is_what_the_table_says(a: str, b: str) -> None:
    expected = table_distance(a, b) / max(len(a), len(b), 1)
    assert LevenshteinDistance()([a, b]) == pytest.approx(expected)


def test_levenshtein_reads_only_the_beginning() -> None:
    assert LevenshteinDistance()(["x" * 2_000 + "a", "x" * 2_000 + "b"]) == 0.0
    # Of "aab" and "aac" two characters are read and are the same
    assert LevenshteinDistance(n_characters=2)(["aab", "aac"]) == 0.0


def test_refuses_lengths_below_one() -> None:
    with pytest.raises(MetricError, match=r"`n` must be at least 1, but got 0\."):
        NgramJaccardDistance(n=0)
    with pytest.raises(MetricError, match=r"`n_characters` must be at least 1, but got 0\."):
        LevenshteinDistance(n_characters=0)
