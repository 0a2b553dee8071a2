from __future__ import annotations

from typing import Any

import dspy
import pytest

from moa_dspy.data import answer_match
from moa_dspy.errors import MetricError
from moa_dspy.judges import MetricJudge, judge_all


def rows() -> list[dspy.Example]:
    return [
        dspy.Example(id=str(n), question=f"{n}?", answer=n).with_inputs("question") for n in "012"
    ]


def test_the_higher_score_wins() -> None:
    # Right against wrong, right against right, wrong against right.
    run = judge_all(MetricJudge(answer_match), rows(), ["0", "1", "x"], ["x", "1", "2"])
    assert list(run.preferences) == [1.0, 0.5, 0.0]
    assert (run.report.judged, run.report.ties) == (3, 1)
    assert run.win_rate().value == 0.5


def test_programs_predictions_and_stored_texts_are_answers() -> None:
    def program(question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=question[:1])

    stored = {"0": "0", "1": dspy.Prediction(answer="no"), "2": None}
    run = judge_all(MetricJudge(answer_match), rows(), program, stored)
    assert run.preferences == pytest.approx([0.5, 1.0, float("nan")], nan_ok=True)
    assert run.report.missing == 1


def length(example: dspy.Example, prediction: Any, trace: Any = None) -> dspy.Prediction:
    return dspy.Prediction(score=len(prediction.reply), feedback="")


def test_any_scale_and_field_will_do_and_close_scores_tie() -> None:
    judge = MetricJudge(length, tolerance=1, answer_field="reply")
    run = judge_all(judge, rows(), ["aaaa", "aaa", "a"], "aa")
    assert list(run.preferences) == [1.0, 0.5, 0.5]


def test_it_is_a_metric_against_a_stored_response() -> None:
    metric = MetricJudge(answer_match).as_metric(reference_field="baseline")
    row = dspy.Example(id="1", question="?", answer="7", baseline="8").with_inputs("question")
    assert metric(row, dspy.Prediction(answer="7")).score == 1.0
    assert metric(row, dspy.Prediction(answer="9")).score == 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "high", None])
def test_a_metric_that_gives_no_number_is_an_error(value: Any) -> None:
    judge = MetricJudge(lambda example, prediction: value)
    with pytest.raises(MetricError, match="'0'"):
        judge.compare(rows()[0], "a", "b")


def test_a_tolerance_is_not_negative() -> None:
    for wrong in (-1, float("nan")):
        with pytest.raises(MetricError, match="`tolerance` must be at least 0"):
            MetricJudge(answer_match, tolerance=wrong)
