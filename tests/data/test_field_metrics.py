from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import dspy
import pytest

from moa_dspy.data import FIELD_METRICS, FieldMetric, fields_read
from moa_dspy.errors import MetricError, StudyError


def score(name: str, right: Any, given: Any, **options: Any) -> float:
    metric = FieldMetric.of(name, "question -> answer", **options)
    return metric(dspy.Example(answer=right), dspy.Prediction(answer=given))


@pytest.mark.parametrize(
    ("right", "given", "expected"),
    [
        ("Paris", "paris ", 1),
        ("Paris", "It is Paris", 0),
        (["Paris", "Paname"], "paname", 1),
        (["red", "blue"], ["red", "blue"], 1),
        (3, "3", 1),
        ("3", 3, 1),
        ("Paris", None, 0),
    ],
)
def test_exact_match_takes_the_whole_text(right: Any, given: Any, expected: float) -> None:
    assert score("exact_match", right, given) == expected


@pytest.mark.parametrize(
    ("right", "given", "expected"),
    [
        ("New York", "She lives in new york, I think.", 1),
        ("cat", "Concatenate them.", 0),
        (["no", "cat"], "A cat.", 1),
        ("cat", "", 0),
    ],
)
def test_contains_looks_for_whole_words(right: Any, given: Any, expected: float) -> None:
    assert score("contains", right, given) == expected


def test_f1_counts_words_as_squad_does() -> None:
    # {quick, fox} of the 3 words {quick, brown, fox}: precision 1, recall 2/3, f1 4/5
    assert score("f1", "the quick brown fox", "a quick fox") == pytest.approx(4 / 5)
    assert score("f1", ["cow", "quick fox"], "Quick fox!") == 1
    assert score("f1", "cow", "fox") == 0


@pytest.mark.parametrize(
    ("right", "given", "tolerance", "expected"),
    [
        ("1,204.50", "That makes $1204.5", 0.0, 1),
        (100, "It is 101.", 0.01, 1),
        (100, "It is 101.1.", 0.01, 0),
        ("0", "0.001", 0.1, 0),
        ("0.5", "1/2", 0.0, 1),
        ("12 %", "about 12%", 0.0, 1),
        ("7", "no number", 0.5, 0),
        # A hyphen between two numbers is no sign.
        ("5-10", "10", 0, 1),
        ("5-10", "-10", 0, 0),
        ("x=-10", "-10", 0, 1),
        ("-5", "It fell to -5 degrees", 0.0, 1),
    ],
)
def test_numeric_match_is_within_a_share_of_the_right_number(
    right: Any, given: Any, tolerance: float, expected: float
) -> None:
    assert score("numeric_match", right, given, tolerance=tolerance) == expected


def test_a_right_answer_without_number_is_an_error() -> None:
    with pytest.raises(MetricError, match=r"must hold a number, but is 'many'"):
        score("numeric_match", "many", "3")


class Mood(Enum):
    GOOD = "good"
    BAD = "not good"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("The answer is B: a river.", 1),
        ("A or B", 0),
        ("A bridge? No.\nSo it is B.", 1),
        ("C", 0),
        ("a banana", 0),
        ("", 0),
    ],
)
def test_choice_counts_the_only_choice_that_is_named(given: str, expected: float) -> None:
    annotation = Literal["A", "B", "C"]
    signature = dspy.Signature({
        "question": (str, dspy.InputField()),
        "answer": (annotation, dspy.OutputField()),
    })  # fmt: skip
    metric = FieldMetric.of("choice", signature)
    assert metric.choices == {"answer": ("A", "B", "C")}
    assert metric(dspy.Example(answer="B"), dspy.Prediction(answer=given)) == expected


def test_a_longer_choice_hides_the_one_inside_it() -> None:
    metric = FieldMetric("choice", {"mood": 1}, choices={"mood": ("good", "not good")})
    row = dspy.Example(mood="good")
    assert metric(row, dspy.Prediction(mood="It is not good")) == 0
    assert metric(row, dspy.Prediction(mood="It is GOOD")) == 1
    assert (
        FieldMetric.of(
            "choice",
            dspy.Signature({"q": (str, dspy.InputField()), "mood": (Mood, dspy.OutputField())}),
        )(row, dspy.Prediction(mood=Mood.GOOD))
        == 1
    )


def test_choice_of_plain_text_is_read_from_the_end() -> None:
    assert score("choice", "billing", "The label is billing.") == 1
    assert score("choice", "billing", "billing or refund") == 0


@pytest.mark.parametrize(
    ("right", "given", "expected"),
    [
        ('{"a": 1, "b": "x"}', '```json\n{"b": "X", "a": 1.0}\n```', 1),
        ({"a": 1, "b": 2}, '{"a": 1, "b": 3}', 1 / 2),
        ({"a": 1}, '{"a": 1, "b": 3}', 1 / 2),
        ("[1, 2]", [1, 2], 1),
        ("[1, 2]", "[2, 1]", 0),
        ({"a": 1}, "no idea", 0),
        ({"a": 1}, None, 0),
    ],
)
def test_json_match_is_the_share_of_equal_keys(right: Any, given: Any, expected: float) -> None:
    assert score("json_match", right, given) == expected


def test_json_match_needs_json() -> None:
    with pytest.raises(MetricError, match=r"must be JSON, but is 'a: 1'"):
        score("json_match", "a: 1", "{}")


def test_several_fields_are_weighed() -> None:
    signature = "question -> reasoning, label, place"
    row = dspy.Example(label="x", place="y")
    found = dspy.Prediction(label="x", place="z", reasoning="")
    # Equal weights without `reasoning`: 1 of 2; else 3 of 4.
    assert FieldMetric.of("exact_match", signature)(row, found) == 1 / 2
    weighed = FieldMetric.of("exact_match", signature, weights={"label": 3, "place": 1})
    assert weighed(row, found) == 3 / 4
    assert weighed(row, dspy.Prediction(label="x")) == 3 / 4
    assert fields_read(weighed) == ("label", "place")


@pytest.mark.parametrize("name", sorted(FIELD_METRICS))
def test_a_row_without_a_right_answer_is_an_error(name: str) -> None:
    with pytest.raises(MetricError, match="right answer"):
        score(name, None, "x")


def test_options_that_do_not_fit_are_named() -> None:
    with pytest.raises(StudyError, match=r"'lable' is not an output of the signature, .* label"):
        FieldMetric.of("f1", "question -> label", weights={"lable": 1})
    with pytest.raises(StudyError, match=r"`task.tolerance` can only be set with `numeric_match`"):
        FieldMetric.of("f1", "question -> label", tolerance=0.1)
    with pytest.raises(StudyError, match=r"in \[0, 1\), but got 1.5"):
        FieldMetric.of("numeric_match", "question -> label", tolerance=1.5)
    with pytest.raises(StudyError, match=r"a number above 0, but got \{'label': 0\}"):
        FieldMetric.of("f1", "question -> label", weights={"label": 0})
    with pytest.raises(StudyError, match=r"Unknown metric 'f2'; known ones are choice, contains"):
        FieldMetric.of("f2", "question -> label")


@pytest.mark.parametrize(
    ("right", "given", "expected"),
    [
        ("3.456,50", "7.999,50", 0),
        ("3.456,50", "Das sind 3456,5 Euro.", 1),
        ("3.456,50", "3456.50", 1),
        ("1,5", "2,5", 0),
        ("1,5", "\u20ac 1.50", 1),
        ("0,125", "0.125", 1),
        ("0,125", "125", 0),
        ("1.234.567", "1234567", 1),
        ("12,34,567", "99,34,567", 0),
        ("12,34,567", "1,234,567", 1),
        ("1,500 kg", "1500 kg", 1),
        (4, "It is at (3,4)", 1),
        (3, "1,2,3", 1),
    ],
)
def test_a_decimal_comma_and_points_between_thousands_are_read_as_one_number(
    right: Any, given: str, expected: float
) -> None:
    assert score("numeric_match", right, given) == expected


@pytest.mark.parametrize(
    ("right", "given", "expected"),
    [
        (["sport", "art"], ["Art", "sport"], 1),
        (["sport", "art"], '["art", "sport"]', 1),
        ("art; sport", "sport, art.", 1),
        (["sport", "art"], "- sport\n- news", 0.5),  # 1 shared, of 2 and 2
        (["sport"], "sport, art, news", 0.5),  # 1 shared, of 1 and 3
        ([], "", 1),
        (["art"], None, 0),
    ],
)
def test_labels_are_compared_as_sets(right: Any, given: Any, expected: float) -> None:
    assert score("labels", right, given) == expected
