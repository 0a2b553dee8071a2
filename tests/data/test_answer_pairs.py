from __future__ import annotations

from pathlib import Path

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.aggregators import NORMALISERS, ballot_of
from moa_dspy.data import answer_match, answers, version_match
from moa_dspy.data.answers import answer_words

LINES = (Path(__file__).parent / "answer_pairs.tsv").read_text("ascii").splitlines()[1:]
PAIRS = [tuple(line.encode().decode("unicode_escape").split("\t")) for line in LINES]
"""The right answer, a reply, and "1" if the reply is right."""


def test_the_table_is_large_and_has_no_pair_twice() -> None:
    assert len(PAIRS) >= 120
    assert len({pair[:2] for pair in PAIRS}) == len(PAIRS)


@pytest.mark.parametrize(("gold", "given", "right"), PAIRS)
def test_a_reply_is_right_as_the_table_says(gold: str, given: str, right: str) -> None:
    row, prediction = dspy.Example(answer=gold), dspy.Prediction(answer=given)
    assert answer_match(row, prediction) == float(right)


ONE_WORD = [pair for pair in PAIRS if len(answer_words(pair[0])) == 1]


@pytest.mark.parametrize(("gold", "given", "right"), ONE_WORD)
def test_a_vote_takes_for_equal_what_scores_alike(gold: str, given: str, right: str) -> None:
    first, second = (
        ballot_of({"answer": text}, ["answer"], NORMALISERS["answer"]) for text in (gold, given)
    )
    assert (first == second) is (right == "1")


@pytest.mark.parametrize(
    ("gold", "given", "right"),
    [
        ("3.10", "3.1", 0.0),
        ("3.10", "Python 3.10.", 1.0),
        ("42.0", "42", 0.0),
        ("007", "7", 0.0),
        ("3.10.1", "3.10.1", 1.0),
        ("1000", "1,000", 1.0),
        ("-5", "5", 0.0),
    ],
)
def test_versions_are_compared_as_they_are_written(gold: str, given: str, right: float) -> None:
    row, prediction = dspy.Example(answer=gold), dspy.Prediction(answer=given)
    assert version_match(row, prediction) == right
    assert answer_match(row, prediction, as_written=True) == right


@given(st.text(st.sampled_from("aeXkpmt 0 1 5'_-.,:;#%&|~()[]{}$?@\"\\"), max_size=30))
def test_rules_that_a_plain_line_is_spared_would_change_nothing(line: str) -> None:
    assert len(answers._PLAIN_LINE) == 5
    for pattern, spelling in answers._LINE:
        if (pattern, spelling) not in answers._PLAIN_LINE:
            assert pattern.sub(spelling, line) == line
