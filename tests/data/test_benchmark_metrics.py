from __future__ import annotations

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa_dspy.data import answer_letter, bbh_match, gsm8k_match, last_number, mmlu_pro_match
from moa_dspy.errors import MetricError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Tom pays 3 * 6 = 18.\n#### 18", "18"),
        ("A: 1,234", "1234"),
        ("It costs $1,200.50.", "1200.5"),
        ("a total of \\$1{,}200", "1200"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("a loss of \u22125 euros", "-5"),
        ("5-3", "3"),
        ("5 - 3", "3"),
        ("- 3 apples", "3"),
        ("10% off", "10"),
        ("\\boxed{7.0}", "7"),
        (".50", "0.5"),
        ("007", "7"),
        ("-0", "0"),
        ("1,2", "2"),
        ("\uff14\uff12", "42"),
        ("\u20ac 9", "9"),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_has_one_spelling(text: str, number: str | None) -> None:
    assert last_number(text) == number


@given(st.integers(), st.sampled_from(["{}", "{:,}", "${:,}", "#### {}", "so {}.00 is it."]))
def test_a_number_is_the_same_however_it_is_written(number: int, layout: str) -> None:
    assert last_number(layout.format(number)) == str(number)


@given(st.text(st.characters()))
def test_no_text_breaks_a_metric(text: str) -> None:
    prediction = dspy.Prediction(answer=text)
    for metric, right in ((gsm8k_match, "42"), (bbh_match, "(B)"), (mmlu_pro_match, "B")):
        assert metric(dspy.Example(answer=right), prediction) in (0.0, 1.0)


@pytest.mark.parametrize(
    ("right", "given_", "score"),
    [
        ("(B)", "(B)", 1.0),
        ("(B)", "So the answer is (B).", 1.0),
        ("(B)", "**Answer:** (B) the second", 1.0),
        ("(B)", "The answer is:\n\n(B) 12/25", 1.0),
        ("(B)", "B", 1.0),
        ("(B)", "Thinking...\nB) the second", 1.0),
        ("(B)", "(A) is wrong.\n(B)", 1.0),
        ("(B)", "(A)", 0.0),
        ("(A)", "A small old cat", 0.0),
        ("no", "No.", 1.0),
        ("no", "I looked.\n\nAnswer: **no**", 1.0),
        ("no", "yes", 0.0),
        ("no", "no idea", 0.0),
        ("8", "the answer is 8.", 1.0),
        ("8", "18", 0.0),
        ("] ) >", "Answer: ] ) >", 1.0),
        ("ant bee cat", "ant bee  cat", 1.0),
        ("ant bee cat", "cat", 0.0),
        ("True", None, 0.0),
        ("True", "The answer is", 0.0),
    ],
)
def test_big_bench_hard_wants_exactly_the_final_answer(
    right: str, given_: str | None, score: float
) -> None:
    assert bbh_match(dspy.Example(answer=right), dspy.Prediction(answer=given_)) == score


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("so the answer is (C).\n\nQuestion: next\nthe answer is (D).", "C"),
        ("The answer is B", "B"),
        ("The answer is: **J**", "J"),
        ("A is wrong. Answer: (D)", "D"),
        ("It must be E, not F", "F"),
        ("C", "C"),
        ("(H)", "H"),
        ("I'd say so", None),
        ("The answer is (K).", None),
        ("the answer is big", None),
        ("", None),
    ],
)
def test_the_chosen_letter_is_found_in_the_documented_order(text: str, letter: str | None) -> None:
    assert answer_letter(text) == letter


def test_a_right_answer_of_another_kind_is_an_error_and_no_zero() -> None:
    prediction = dspy.Prediction(answer="B")
    with pytest.raises(MetricError, match="must be a letter A to J, but is '42'"):
        mmlu_pro_match(dspy.Example(answer="42"), prediction)
    with pytest.raises(MetricError, match="must hold a number, but is 'B'"):
        gsm8k_match(dspy.Example(answer="B"), prediction)
