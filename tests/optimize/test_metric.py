"""A metric is checked once, the same for a search and for the tuning of prompts."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from moa_dspy.errors import BudgetReachedError, MetricError, StudyError
from moa_dspy.optimize.metric import CheckedMetric, Outcome, arity_of, own_seconds
from moa_dspy.testing import scripted_pool

ROW = dspy.Example(id="7", question="2 + 2?").with_inputs("question")
ANSWER = dspy.Prediction(answer="4")


@pytest.mark.parametrize("arity", [2, 3, 5])
def test_it_is_given_as_many_arguments_as_it_takes(arity: int) -> None:
    given: list[int] = []

    def noted(*arguments: Any) -> bool:
        given.append(len(arguments))
        return True

    metrics: dict[int, Any] = {
        2: lambda a, b: noted(a, b),
        3: lambda a, b, c=None: noted(a, b, c),
        5: noted,
    }
    assert CheckedMetric.of(metrics[arity]).score(ROW, ANSWER, "trace", "name", "its trace") == 1.0
    assert given == [arity]


class ModuleMetric(dspy.Module):
    """A metric as DSPy's own are, such as SemanticF1."""

    def forward(self, example: Any, pred: Any, trace: Any = None) -> float:
        return float(pred.answer == "4")


def test_a_module_is_given_as_many_arguments_as_its_forward_takes() -> None:
    assert arity_of(ModuleMetric(), "`metric` must be a function", most=5) == 3
    assert arity_of(dspy.evaluate.SemanticF1(), "`metric` must be a function", most=5) == 3
    assert CheckedMetric.of(ModuleMetric()).score(ROW, ANSWER) == 1.0


def test_its_value_is_kept_whole_and_its_score_is_a_number() -> None:
    value = dspy.Prediction(score=0.25, feedback="Too long.")
    metric = CheckedMetric.of(lambda example, prediction: value)
    assert metric.value(ROW, ANSWER) is value
    assert metric.score(ROW, ANSWER) == 0.25


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, r"must return a number in \[0, 1\], but gave 1.5 on '7'"),
        (float("nan"), r"must return a number in \[0, 1\], but gave nan on '7'"),
        (None, r"must return a number in \[0, 1\], but gave None on '7'"),
        ("good", r"must return a number in \[0, 1\], but gave 'good' on '7'"),
        (dspy.Prediction(feedback="no"), r"but gave a Prediction without a number on '7'"),
        ({"score": 1.0}, r"but gave a dict without a number on '7'"),
        ((1.0, "right"), r"but gave a tuple without a number on '7'"),
    ],
)
def test_what_is_no_score_is_an_error_that_names_the_example(value: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        CheckedMetric.of(lambda example, prediction: value).score(ROW, ANSWER)


def test_a_budget_that_ends_inside_is_that_and_no_fault_of_the_metric() -> None:
    def judged(example: Any, prediction: Any) -> float:
        raise BudgetReachedError("The budget of 3 calls is reached.")

    with pytest.raises(BudgetReachedError, match="of 3 calls"):
        CheckedMetric.of(judged).score(ROW, ANSWER)


def test_a_signature_that_does_not_fit_is_refused() -> None:
    with pytest.raises(StudyError, match=r"but <lambda> has the signature \(example\)"):
        CheckedMetric.of(lambda example: 1.0)


class Asynchronous:
    async def __call__(self, example: Any, prediction: Any) -> float:
        return 1.0


@pytest.mark.parametrize("metric", [Asynchronous.__call__, Asynchronous()])
def test_an_async_metric_is_refused_before_any_call(metric: Any) -> None:
    with pytest.raises(StudyError, match=r"but (__call__|Asynchronous) is async"):
        CheckedMetric.of(metric)


def test_a_call_takes_time_beside_the_wait_for_its_answer() -> None:
    pool = scripted_pool({"a": "x", "b": "x"})
    found = {name: [Outcome(1.0, ("x",), calls=1, usd=0.0, seconds=2.0)] * 10 for name in "ab"}
    # 20 answers of 2 seconds, 4 at a time: 10 seconds. The other 6 of 16 are 0.3 of each call.
    assert own_seconds(found, pool, 4, seconds=16.0, n_made=20) == pytest.approx(0.3)
    # Half were stored: 5 seconds were waited, and 3 are 0.3 of each of 10 calls.
    assert own_seconds(found, pool, 4, seconds=8.0, n_made=10) == pytest.approx(0.3)
    assert own_seconds(found, pool, 4, seconds=8.0, n_made=0) == 0.0
    # Other machines helped.
    assert own_seconds(found, pool, 4, seconds=1.0, n_made=20) == 0.0
