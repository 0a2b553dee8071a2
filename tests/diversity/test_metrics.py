"""Values of the diversity metrics that can be found by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from moa_dspy.diversity import (
    Disagreement,
    DistinctNgrams,
    DistinctShare,
    JaccardDistance,
    LevenshteinDistance,
    NgramJaccardDistance,
)
from moa_dspy.errors import MetricError

busy = settings(deadline=None)  # a busy machine is no failure


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


@busy
@given(a=st.text("abc", max_size=12), b=st.text("abc", max_size=12))
def test_levenshtein_is_what_the_table_says(a: str, b: str) -> None:
    expected = table_distance(a, b) / max(len(a), len(b), 1)
    assert LevenshteinDistance()([a, b]) == pytest.approx(expected)


@busy
@given(a=st.text(max_size=30), b=st.text(max_size=30))
def test_levenshtein_is_what_rapidfuzz_says(a: str, b: str) -> None:
    expected = 1 - Levenshtein.normalized_similarity(a, b)
    assert LevenshteinDistance()([a, b]) == pytest.approx(expected, abs=1e-9)


def grams(text: str) -> set[str]:
    folded = text.casefold()
    return {folded[i : i + 3] for i in range(max(len(folded) - 2, 1))}


@busy
@given(a=st.text("aAb ", max_size=12), b=st.text("aAb ß\U0001f600", max_size=12))
def test_ngram_jaccard_is_what_sets_say(a: str, b: str) -> None:
    expected = 1 - len(grams(a) & grams(b)) / len(grams(a) | grams(b))
    assert NgramJaccardDistance()([a, b]) == pytest.approx(expected, abs=1e-12)


def test_long_ngrams_of_a_large_alphabet_are_told_apart() -> None:
    # 600 - 5 = 595 grams each, 594 shared, 596 in all
    text = "".join(chr(0x4E00 + 31 * i) for i in range(600))
    expected = 1 - 594 / 596
    assert NgramJaccardDistance(n=6)([text, text[:-1] + "!"]) == pytest.approx(expected)


def test_distinct_ngrams_of_two_is_dice() -> None:
    # {a b, b c} and {b c, c d}: 1 - 2 x 1 / (2 + 2)
    assert DistinctNgrams()(["a b c", "B c d"]) == pytest.approx(1 / 2)


def test_distinct_ngrams_rescales_distinct_n() -> None:
    # Bigrams: 2 + 2 + 1 = 5, of them distinct {ab, bc, cd, xy} = 4: distinct-2 is 4/5,
    # and (3 x 4/5 - 1) / (3 - 1) = 7/10
    assert DistinctNgrams()(["a b c", "b c d", "x y"]) == pytest.approx(7 / 10)


def test_distinct_ngrams_ignores_repetition_inside_a_response() -> None:
    # {a} and {b}, however often
    assert DistinctNgrams(n=1)(["a a a a", "b"]) == 1.0
    # Fewer than 2 words: one n-gram each
    assert DistinctNgrams()(["a", "b"]) == 1.0
    assert DistinctNgrams()(["a", "a a"]) == 1.0


def test_levenshtein_reads_only_the_beginning() -> None:
    assert LevenshteinDistance()(["x" * 2_000 + "a", "x" * 2_000 + "b"]) == 0.0
    # Of "aab" and "aac" two characters are read and are the same
    assert LevenshteinDistance(n_characters=2)(["aab", "aac"]) == 0.0


def test_refuses_lengths_below_one() -> None:
    with pytest.raises(MetricError, match=r"`n` must be at least 1, but got 0\."):
        NgramJaccardDistance(n=0)
    with pytest.raises(MetricError, match=r"`n` must be at least 1, but got 0\."):
        DistinctNgrams(n=0)
    with pytest.raises(MetricError, match=r"`n_characters` must be at least 1, but got 0\."):
        LevenshteinDistance(n_characters=0)
