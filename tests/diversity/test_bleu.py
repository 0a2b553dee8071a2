"""BLEU between responses, by hand and as sacrebleu computes it."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from moa_dspy.diversity import BleuDistance
from moa_dspy.errors import MetricError

busy = settings(deadline=None)  # a busy machine is no failure
EXAMPLES = [
    "The cat sat on the mat. It was 3.14 m wide, 2-fold; \"so what?\" she said & left.",
    "the cat sat on the mat, it was 3.14m wide - two-fold: 'so what?'",
    "Costs: $1,000.50 (or 20%)...\nSee https://example.org/a_b?c=d#e -\nnext &quot;line&amp;&quot;",
    "a a a a b a a\n\n* item [1]\n* item [2] {x|y} ~ ^ `code` <skipped>",
    "word",
    "Größe 10,5 cm – élan, 東京は大きい。 \u2028 and\ttabs  ",
]  # fmt: skip


def sacrebleu_distance(a: str, b: str, order: int) -> float:
    bleu = BLEU(max_ngram_order=order, effective_order=True, tokenize="13a", smooth_method="exp")
    both = bleu.sentence_score(a, [b]).score + bleu.sentence_score(b, [a]).score
    return 1 - min(both / 200, 1.0)


def test_bleu_by_hand() -> None:
    # 3 of 4 words, 2 of 3 bigrams, 1 of 2 trigrams: (3/4 x 2/3 x 1/2) ** (1/3), both ways
    assert BleuDistance(order=3)(["a b c d", "a b c e"]) == pytest.approx(1 - (1 / 4) ** (1 / 3))
    # and 0 of 1 four-grams, smoothed to 1/2: (1/4 x 1/2) ** (1/4)
    expected = 1 - (1 / 8) ** (1 / 4)
    assert BleuDistance(order=4)(["a b c d", "a b c e"]) == pytest.approx(expected)
    # Four words have no five-gram, so order 5 changes nothing
    assert BleuDistance(order=5)(["a b c d", "a b c e"]) == pytest.approx(expected)


def test_bleu_is_the_mean_of_both_ways() -> None:
    # "a b" as hypothesis: all matches, brevity exp(1 - 4/2)
    # "a b c d" as hypothesis: 2/4, 1/3, then smoothed (1/2) / 2 and (1/4) / 1
    there, back = exp(-1), (2 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** (1 / 4)
    assert BleuDistance()(["a b", "a b c d"]) == pytest.approx(1 - (there + back) / 2)


def test_bleu_clips_repeated_words() -> None:
    # Order 1: "a a a" has 1 of 3 in "a b"; "a b" has 1 of 2 in "a a a", brevity exp(1 - 3/2)
    expected = 1 - (1 / 3 + 1 / 2 * exp(-1 / 2)) / 2
    assert BleuDistance(order=1)(["a a a", "a b"]) == pytest.approx(expected)


@pytest.mark.parametrize("order", [1, 3, 4, 5])
@pytest.mark.parametrize("a", EXAMPLES)
@pytest.mark.parametrize("b", EXAMPLES)
def test_bleu_is_sacrebleus_sentence_bleu(a: str, b: str, order: int) -> None:
    assert BleuDistance(order)([a, b]) == pytest.approx(sacrebleu_distance(a, b, order), abs=1e-9)


@pytest.mark.slow
@busy
@given(data=st.data(), order=st.integers(1, 5))
def test_bleu_is_sacrebleus_on_generated_texts(data: st.DataObject, order: int) -> None:
    # sacrebleu gives 0 to copies without a token; here they are copies.
    texts = st.text('aAb01 .,-&;\n"<>é', max_size=40).filter(lambda t: bool(t.strip()))
    a, b = data.draw(texts), data.draw(texts)
    assert BleuDistance(order)([a, b]) == pytest.approx(sacrebleu_distance(a, b, order), abs=1e-9)


def test_texts_without_tokens() -> None:
    assert BleuDistance()(["<skipped>", "<skipped>"]) == 0.0
    assert BleuDistance()(["<skipped>", ""]) == 1.0
    assert BleuDistance()(["", " \n"]) == 0.0


def test_refuses_an_order_below_one() -> None:
    with pytest.raises(MetricError, match=r"`order` must be at least 1, but got 0\."):
        BleuDistance(order=0)
