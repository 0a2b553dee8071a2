from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.errors import ArchitectureError
from moa_dspy.references import Cut, ReferenceLimits, count_tokens, fit

NO_LIMITS = ReferenceLimits()


def words(text: str) -> int:
    """A token is a word, so numbers can be derived by hand."""
    return len(text.split())


def numbered(n: int) -> str:
    return " ".join(str(i) for i in range(100, 100 + n))


def prompt(references: list[str]) -> int:
    """Ten tokens of a prompt without references, and one more for the number of each."""
    return 10 + sum(1 + words(reference) for reference in references)


def test_what_keeps_to_all_limits_is_read_as_it_is() -> None:
    texts = ["a b", "", " spaced  out\n"]
    limits = ReferenceLimits(per_reference=2, total=4)
    assert fit(texts, limits=limits, room=17, measure=prompt, count=words) == (texts, ())
    assert fit(texts, limits=NO_LIMITS) == (texts, ())
    assert fit([], limits=limits) == ([], ())


def test_one_that_is_too_long_loses_its_end_and_says_so() -> None:
    texts, cuts = fit(
        [numbered(50), numbered(20)],
        limits=ReferenceLimits(per_reference=20),
        count=words,
        agents=["a", "b"],
    )
    # 19 words and the mark.
    assert texts == [f"{numbered(19)} [cut]", numbered(20)]
    assert cuts == (Cut(reference=1, agent="a", tokens=50, kept_tokens=20),)


def test_the_longest_are_cut_first_and_to_the_same_length() -> None:
    # 100 tokens in all: 10 and 20 are whole, 70 are left for two.
    texts, cuts = fit(
        [numbered(90), numbered(10), numbered(60), numbered(20)],
        limits=ReferenceLimits(total=100),
        count=words,
    )
    assert [words(text) for text in texts] == [35, 10, 35, 20]
    assert [(cut.reference, cut.agent) for cut in cuts] == [(1, None), (3, None)]


def test_the_limit_of_each_comes_before_that_of_all() -> None:
    texts, _ = fit(
        [numbered(90), numbered(30)],
        limits=ReferenceLimits(per_reference=40, total=100),
        count=words,
    )
    assert [words(text) for text in texts] == [40, 30]


def test_the_room_is_that_of_the_built_prompt() -> None:
    # A window of 100, 20 for the reply, 10 of prompt and 2 of numbers: 68 for two texts.
    texts, cuts = fit(
        [numbered(50), numbered(50)],
        agents=["a", "b"],
        limits=NO_LIMITS,
        room=100 - 20,
        measure=prompt,
        count=words,
    )
    assert prompt(texts) == 80
    assert [(cut.agent, cut.tokens, cut.kept_tokens) for cut in cuts] == [
        ("a", 50, 34),
        ("b", 50, 34),
    ]


def test_a_reference_that_could_say_nothing_is_left_out_the_last_first() -> None:
    # 44 of room less 10: two of 16 and their numbers; a third would leave 10 to each.
    texts, cuts = fit(
        [numbered(40), "short", numbered(40), numbered(40)],
        limits=NO_LIMITS,
        room=46,
        measure=prompt,
        count=words,
    )
    assert [words(text) for text in texts] == [16, 1, 16]
    assert cuts[-1] == Cut(reference=4, agent=None, tokens=40, kept_tokens=0)


@pytest.mark.parametrize("room", [9, 0, -5])
def test_a_prompt_without_any_room_has_no_reference_and_raises_nothing(room: int) -> None:
    texts, cuts = fit(["a", "b"], limits=NO_LIMITS, room=room, measure=prompt, count=words)
    assert texts == []
    assert [cut.kept_tokens for cut in cuts] == [0, 0]


CHARACTERS = ["👩\u200d💻", "👍🏽", "🇩🇪", "🇫🇷", "e\u0301", "\ud83d\ude00", "東", "❤\ufe0f"]
"""As people see them: each but one is several code points."""


def test_no_character_is_cut_in_half() -> None:
    starts = ["".join(CHARACTERS[:n]) for n in range(1, len(CHARACTERS) + 1)]
    # A token is a code point: the mark has six, the first character three.
    for length in range(9, 22):
        (read,), _ = fit([starts[-1] + "x" * 9], limits=ReferenceLimits(length), count=len)
        assert read.removesuffix(" [cut]") in starts


def test_no_number_and_no_word_is_cut_in_half() -> None:
    for length in range(9, 30):
        texts, _ = fit(["so it is 123456, more"], limits=ReferenceLimits(length), count=len)
        assert texts[0].removesuffix(" [cut]") in {
            "so",
            "so it",
            "so it is",
            "so it is 123456,",
            "so it is 123456, more",
        }


texts = st.lists(st.text(max_size=300), max_size=5)
limit = st.none() | st.integers(1, 200)


@given(texts, limit, limit, st.none() | st.integers(-10, 400))
def test_every_limit_is_kept_and_every_cut_is_told(
    given_texts: list[str], each: int | None, total: int | None, room: int | None
) -> None:
    def measure(references: list[str]) -> int:
        return 7 + sum(3 + 2 * count_tokens(reference) for reference in references)

    limits = ReferenceLimits(each, total)
    read, cuts = fit(given_texts, limits=limits, room=room, measure=measure)
    sizes = [count_tokens(text) for text in read]
    assert each is None or all(size <= each for size in sizes)
    assert total is None or sum(sizes) <= total
    assert room is None or measure(read) <= room or not read
    reported = {cut.reference - 1 for cut in cuts}
    whole = [text for i, text in enumerate(given_texts) if i not in reported]
    assert [text for text in read if not text.endswith(" [cut]")] == [
        text for text in whole if not text.endswith(" [cut]")
    ]
    assert len(read) == len(given_texts) - sum(cut.kept_tokens == 0 for cut in cuts)
    assert all(cut.tokens == count_tokens(given_texts[cut.reference - 1]) for cut in cuts)


@pytest.mark.parametrize("limits", [{"per_reference": 0}, {"total": -1}])
def test_a_limit_below_one_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ArchitectureError, match="must be at least 1, but got"):
        ReferenceLimits(**limits)
