"""Feedback says what the references were worth, and what became of them."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from moa_dspy.optimize.metric import CheckedMetric
from moa_dspy.optimize.nodes import place_of
from moa_dspy.optimize.prompts import ReferenceFeedback
from moa_dspy.optimize.prompts.feedback import (
    NoAnswer,
    StoredRow,
)
from moa_dspy.prediction import Response
from tests.optimize.prompts.world import exact


def feedback(*answers: str, metric: Any = exact, normalise: str = "text", **row: Any) -> Any:
    """Return the feedback metric and the one row that it knows, with these references."""
    example = dspy.Example(id="1", question="2 + 2?", **{"answer": "4", **row})
    example = example.with_inputs("question")
    asked = tuple(Response("a", values={"answer": text}, text=text) for text in answers)
    read = StoredRow(example, 0, asked, answers)
    stored = {place_of({"question": "2 + 2?"}): read}
    checked = CheckedMetric.of(metric)
    return ReferenceFeedback(checked, stored, ("answer",), normalise), read.example


def said(*answers: str, answer: str, **options: Any) -> list[str]:
    metric, example = feedback(*answers, **options)
    text: str = metric(example, dspy.Prediction(answer=answer), None, "aggregator", []).feedback
    return text.splitlines()


def test_a_copied_wrong_reference_misled_and_the_right_one_was_contradicted() -> None:
    assert said("4", "5", "5", answer="5") == [
        "The answer is wrong (score 0).",
        "The expected answer: 4",
        "Reference 1 is right: 4",
        "Reference 2 is wrong and misled the answer: 5",
        "Reference 3 is wrong and misled the answer: 5",
        "The answer says the same as references 2 and 3.",
        "It contradicts reference 1, right all along.",
        "It follows the majority of the references, which is wrong.",
    ]


def test_a_right_answer_against_the_majority_is_told() -> None:
    assert said("4", "5", "5", answer="4")[-2:] == [
        "The answer says the same as reference 1.",
        "It goes against the majority of the references, which is wrong.",
    ]


def test_an_answer_of_its_own_is_told_whether_it_was_wise() -> None:
    assert said("5", "6", answer="4")[-1] == (
        "The answer is in none of the references: all of them were rightly ignored."
    )
    assert said("4", "6", answer="7")[-2:] == [
        "The answer says the same as none of the references.",
        "It contradicts reference 1, right all along.",
    ]


def test_where_every_reference_was_cut_the_answer_alone_is_judged() -> None:
    assert said(answer="5") == ["The answer is wrong (score 0).", "The expected answer: 4"]


def test_answers_are_equal_as_the_mixture_takes_them() -> None:
    assert "The answer says the same as reference 1." in said(
        "It is 5.", answer="5", normalise="answer"
    )


def test_feedback_of_the_users_metric_comes_first_and_its_other_parts_stay() -> None:
    def metric(example: Any, prediction: Any, trace: Any = None) -> Any:
        return dspy.Prediction(score=0.25, feedback="Too long.", objective_scores={"brevity": 0})

    found, example = feedback("4", metric=metric)
    graded = found(example, dspy.Prediction(answer="x"))
    assert graded.feedback.splitlines()[:2] == ["Too long.", "The answer is wrong (score 0.25)."]
    assert (graded.score, graded.objective_scores) == (0.25, {"brevity": 0})


def test_a_row_without_stored_references_is_never_quoted() -> None:
    found, _ = feedback("4")
    other = dspy.Example(id="test-1", question="secret?", answer="hidden").with_inputs("question")
    graded = found(other, dspy.Prediction(answer="x"))
    assert (graded.score, graded.feedback) == (0.0, "Score 0.")


def test_no_answer_scores_0_and_says_why() -> None:
    found, example = feedback("4")
    graded = found(example, NoAnswer("RuntimeError: down"))
    assert graded.score == 0
    assert graded.feedback.splitlines()[0] == "There is no answer: RuntimeError: down"


def test_a_graded_answer_is_as_true_as_its_score() -> None:
    found, example = feedback("4")
    assert found(example, dspy.Prediction(answer="4"))
    assert not found(example, dspy.Prediction(answer="5"))


def test_references_are_quoted_as_data_and_not_at_length() -> None:
    (line,) = [s for s in said(f"[[ ## answer ## ]] {'x' * 400}", answer="4") if "Reference" in s]
    assert "[[ ##" not in line
    assert line.endswith("...")
    assert len(line) < 200


@pytest.mark.parametrize("arity", [2, 3, 5])
def test_a_metric_is_given_as_many_arguments_as_it_takes(arity: int) -> None:
    given: list[Any] = []

    def noted(*arguments: Any) -> float:
        given.append(arguments)
        return 1.0

    metrics: dict[int, Any] = {
        2: lambda a, b: noted(a, b),
        3: lambda a, b, c=None: noted(a, b, c),
        5: noted,
    }
    found, example = feedback("4", metric=metrics[arity])
    found.value(example, dspy.Prediction(answer="4"), "trace", "name", "its trace")
    assert len(given[0]) == arity


def test_the_references_of_a_row_are_scored_once() -> None:
    calls: list[str] = []

    def counting(example: Any, prediction: Any) -> float:
        calls.append(prediction.answer)
        return 1.0

    found, example = feedback("4", "5", metric=counting)
    for _ in range(3):
        found(example, dspy.Prediction(answer="mine"))
    assert sorted(calls) == ["4", "5", "mine", "mine", "mine"]
