from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.judges.pairwise import read_number, read_verdict, second_share


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("1", "1"),
        (" 2.\n", "2"),
        ("**2**", "2"),
        ("[[1]]", "1"),
        ('"1"', "1"),
        ("Response 2", "2"),
        ("response_1", "1"),
        ("Response 2 is better.", "2"),
        ("The better response is 1", "1"),
        ("Verdict: 2", "2"),
        ("0", "0"),
        ("tie", "0"),
        ("Tie.", "0"),
        ("", None),
        ("3", None),
        ("12", None),
        ("-1", None),
        ("1 or 2", None),
        ("2 reasons speak for response 1", None),
        ("Response 1 is better than response 2", None),
        ("Both", None),
    ],
)
def test_a_verdict_is_the_whole_text_or_none(text: str, verdict: str | None) -> None:
    assert read_verdict(text, allows_ties=True) == verdict
    assert read_verdict(text, allows_ties=False) == (None if verdict == "0" else verdict)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7.0),
        ("7.5", 7.5),
        ("10", 10.0),
        ("Grade: 7", 7.0),
        ("Rating: [[8]]", 8.0),
        ("**9**/10", 9.0),
        ("9 out of 10", 9.0),
        ("My final score is 3.", 3.0),
        ("0", None),
        ("11", None),
        ("-3", None),
        ("4/5", None),
        ("100", None),
        ("seven", None),
        ("7 or 8", None),
        ("7 because it is short", None),
        ("", None),
    ],
)
def test_a_grade_is_the_whole_text_or_none(text: str, number: float | None) -> None:
    assert read_number(text, best=10) == number


def test_the_scale_of_a_grade_is_the_judges() -> None:
    assert read_number("4/5", best=5) == 4
    assert read_number("6", best=5) is None


@given(st.text())
def test_reading_never_fails(text: str) -> None:
    assert read_verdict(text, allows_ties=True) in ("0", "1", "2", None)
    number = read_number(text, best=10)
    assert number is None or 1 <= number <= 10


def token(text: str, probability: float, **alternatives: float) -> SimpleNamespace:
    top = [
        SimpleNamespace(token=t.replace("_", " "), logprob=math.log(p))
        for t, p in alternatives.items()
    ]
    return SimpleNamespace(token=text, logprob=math.log(probability), top_logprobs=top)


def logprobs(*tokens: Any) -> SimpleNamespace:
    return SimpleNamespace(content=list(tokens))


def share(*tokens: Any, verdict: str = "2", allows_ties: bool = False) -> float | None:
    return second_share(logprobs(*tokens), verdict, allows_ties=allows_ties)


def test_a_share_is_that_of_the_verdicts_alone() -> None:
    # P(2) = .6, P(1) = .2, the rest is no verdict: .6 / .8
    logprob = token("2", 0.6, **{"2": 0.6, "1": 0.2, "The": 0.1})
    assert share(logprob) == pytest.approx(0.75)
    # Ties take half: (.6 + .1 / 2) / (.6 + .2 + .1), and nothing where there are none.
    tied = token("2", 0.6, **{"2": 0.6, "1": 0.2, "0": 0.1})
    assert share(tied, allows_ties=True) == pytest.approx(0.65 / 0.9)
    assert share(tied) == pytest.approx(0.75)


def test_spellings_add_up_and_the_chosen_token_counts_once() -> None:
    # " 2" and "2" are one verdict: (.3 + .3) / (.3 + .3 + .2); "2" is chosen and listed.
    spelled = token("2", 0.3, **{"2": 0.3, "_2": 0.3, "1": 0.2})
    assert share(spelled) == pytest.approx(0.75)
    # Chosen, but not listed: .3 / (.3 + .2)
    assert share(token("2", 0.3, **{"1": 0.2})) == pytest.approx(0.6)


def test_the_last_token_with_the_verdict_counts() -> None:
    mentioned = token("2", 0.9, **{"2": 0.9, "1": 0.1})
    said = token("2", 0.5, **{"2": 0.5, "1": 0.5})
    assert share(mentioned, token(" is", 1.0, **{"_is": 1.0}), said) == pytest.approx(0.5)


def test_without_alternatives_there_is_no_share() -> None:
    assert second_share(None, "2", allows_ties=False) is None
    assert share() is None
    assert share(token("2", 0.9)) is None
    assert share(token("12", 0.9, **{"12": 0.9})) is None
    assert share(token("2", 1e-300, **{"2": 1e-300}), verdict="1") is None
    lost = SimpleNamespace(token="2", logprob=-math.inf, top_logprobs=[])
    lost.top_logprobs = [SimpleNamespace(token="2", logprob=-math.inf)]
    assert share(lost) is None
