from __future__ import annotations

import dspy
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moa_dspy.data import METRICS, answer_match, normalise_answer, normalise_text

TEXTS = st.text(st.characters()) | st.text(st.sampled_from("ab1290.,:;-+*$%\"'()[]\n \u2212\u0130"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", "42"),
        ("The answer is 42.", "42"),
        ("**42.0**", "42"),
        ("1,204", "1204"),
        ("1,204.50 coins.", "coins"),
        ("$1,204.50", "1204.5"),
        ("007", "7"),
        (".5", "0.5"),
        ("-5", "-5"),
        ("\u22125", "-5"),
        ("-0.0", "0"),
        ("5-", "5"),
        ("It costs 85%", "85"),
        ("17 * 3 = 51", "51"),
        ("\\boxed{51}", "51"),
        ("Answer:51", "51"),
        ("10:30", "10:30"),
        ("1e5", "100000"),
        ("\uff14\uff12", "42"),
        ("'Paris'.", "paris"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("first\nsecond", "second"),
        ("42\n```\n\n", "42"),
        ("don't!", "don't"),
        ("mother-in-law", "mother-in-law"),
        ("+ -", "-"),
        (" \n ", ""),
        ("", ""),
    ],
)
def test_the_answer_is_the_last_word_or_number(text: str, answer: str) -> None:
    assert normalise_answer(text) == answer


@given(TEXTS)
@example("9" * 5000)
@example("\ud800")
def test_normalising_never_raises_and_again_changes_nothing(text: str) -> None:
    for normalise in (normalise_answer, normalise_text):
        once = normalise(text)
        assert normalise(once) == once


@given(st.integers(), st.sampled_from(["{}", "{:,}", "{}.0", "It is {}.", "**{}**", "x = {}"]))
def test_a_number_is_the_same_however_it_is_written(number: int, layout: str) -> None:
    assert normalise_answer(layout.format(number)) == str(number)


def test_whole_texts_keep_every_word() -> None:
    assert normalise_text("  New\n York! ") == "new york!"


def scored(right: object, given_: object) -> float:
    score: float = answer_match(dspy.Example(answer=right), dspy.Prediction(answer=given_))
    return score


@pytest.mark.parametrize(
    ("right", "given_"),
    [
        ("Paris", "paris"),
        ("42", "The answer is 42."),
        ("42", "42.0"),
        (1204, "1,204"),
        ("2.5", 2.50),
        ("New York", "It is New York."),
        ("+", "**+**".strip("*")),
        ("yes", "Let me see.\nYes!"),
    ],
)
def test_the_right_answer_scores_one(right: object, given_: object) -> None:
    assert scored(right, given_) == 1.0


@pytest.mark.parametrize(
    ("right", "given_"),
    [
        ("42", "24"),
        ("42", "-42"),
        ("42", "142"),
        ("42", "42 or 43"),
        ("Paris", "Paris\nRome"),
        ("New York", "York"),
        ("none", None),
        ("42", ""),
        ("", ""),
        ("+", "-"),
    ],
)
def test_any_other_answer_scores_zero(right: object, given_: object) -> None:
    assert scored(right, given_) == 0.0


@given(TEXTS)
def test_a_single_word_matches_exactly_when_its_normal_form_does(text: str) -> None:
    # This is why a vote over normal forms never splits answers that score alike.
    assert scored("42", text) == float(normalise_answer(text) == "42")


def test_a_forgotten_field_is_an_error_and_no_zero() -> None:
    with pytest.raises(AttributeError, match="answer"):
        answer_match(dspy.Example(answer="42"), dspy.Prediction(text="42"))


RIGHT = {"bbh_match": "(B)", "mmlu_pro_match": "B"}
"""A right answer of each metric that does not take a number."""


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_fits_evaluation_and_optimizers(name: str) -> None:
    right = RIGHT.get(name, "42")
    row, prediction = dspy.Example(answer=right), dspy.Prediction(answer=f"The answer is {right}.")
    assert METRICS[name](row, prediction) == 1.0
    assert METRICS[name](row, prediction, [], "predict", []) == 1.0
    for wrong in ("", None, "no idea"):
        assert METRICS[name](row, dspy.Prediction(answer=wrong)) == 0.0
