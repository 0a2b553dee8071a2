from __future__ import annotations

import random

import pytest
from dspy import lm15

from moa_dspy.calls.lm.stream import WholeMarkers, words

BEGIN, END = "[[ ## answer ## ]]", "[[ ## completed ## ]]"


def pieces(texts: list[str]) -> list[str]:
    markers = WholeMarkers()
    out = [delta for text in texts for delta in markers.feed(lm15.TextDelta(text=text))]
    return [delta.text for delta in (*out, *markers.flush())]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 100])
def test_a_marker_is_one_piece_however_the_text_was_split(size: int) -> None:
    text = f"{BEGIN}\nParis [1], a[0] and [ [ ##\n\n{END}"
    found = pieces([text[n : n + size] for n in range(0, len(text), size)])
    assert "".join(found) == text
    assert [piece for piece in found if "##" in piece and "[[" in piece] == [BEGIN, END]


def test_nothing_is_held_back_that_cannot_become_a_marker() -> None:
    markers = WholeMarkers()

    def passed(text: str) -> str:
        return "".join(delta.text for delta in markers.feed(lm15.TextDelta(text=text)))

    assert passed("see [1") == "see [1"
    assert passed("] or [") == "] or "
    assert passed("[") == ""
    assert passed("link]]") == "[[link]]"
    assert passed("[[ ## an") == ""
    assert passed(" answer") == "[[ ## an answer", "two words are no field"
    assert passed("[[ ## " + "x" * 60) == ""
    assert passed("x" * 20) == "[[ ## " + "x" * 80, "longer than any field's name"


def test_a_field_that_came_in_one_piece_is_cut_where_it_begins_and_ends() -> None:
    assert pieces([f"{BEGIN}\nParis\n\n{END}"]) == [BEGIN, "\nParis\n\n", END]
    assert pieces(["<answer>\nParis\n</answer>"]) == ["<answer>", "\nParis\n", "</answer>"]
    assert pieces(['{"answer": "Paris"}']) == ["{", '"answer": ', '"Paris"}']


def test_any_text_comes_through_whole_whatever_its_split() -> None:
    choice = random.Random(3)
    for _ in range(300):
        text = "".join(choice.choices('[]# ab\n<>/":', k=60)) + BEGIN * choice.randint(0, 1)
        cuts = sorted(choice.choices(range(len(text)), k=12))
        split = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert "".join(pieces(split)) == text


def test_scores_stay_with_the_text_and_other_parts_are_not_mixed_in() -> None:
    score = lm15.TokenLogprob(token="x", logprob=-1.0)
    markers = WholeMarkers()
    first = lm15.TextDelta(text=f"a{BEGIN}[", logprobs=(score,))
    second = lm15.TextDelta(text="[ b", logprobs=(score,))
    other = lm15.TextDelta(text="c[", part_index=1)
    out = [d for delta in (first, second, other) for d in markers.feed(delta)]
    assert [d.text for d in out] == ["a", BEGIN, "[[ b", "c"]
    assert sum(len(d.logprobs) for d in out) == 2
    assert [d.part_index for d in (*out, *markers.flush())][-2:] == [1, 1]


def test_words_are_the_text() -> None:
    text = "\n One two\n\nthree  "
    assert [d.text for d in words(lm15.TextDelta(text=text))] == [
        "\n ",
        "One ",
        "two\n\n",
        "three  ",
    ]
