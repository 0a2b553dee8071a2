from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import dspy
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.errors import MetricError, UnknownCallError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.optimize.metric import means, scores
from moa_dspy.optimize.nodes import NodeCache
from moa_dspy.prediction import Response
from moa_dspy.testing import scripted_pool

Make = Callable[..., Any]


def parse(text: str) -> Architecture:
    return Architecture.parse(text)


def test_nodes_that_architectures_share_are_asked_once_per_example(
    rows: Make, evaluator: Make, fails_on: Make
) -> None:
    pool = scripted_pool({"a": fails_on(0), "b": fails_on(1), "c": fails_on(2)})
    runner: Evaluator = evaluator(pool)
    examples = rows("val", 6)
    made = []
    for text in (
        "a",  # a: 6
        "a + b > select",  # b: 6
        "a + b > synthesize(c)",  # c that has read a and b: 6
        # a and b that have read a and b; they repeat themselves, so c reads what it has read:
        # another node, but the same request, and that is stored
        "a + b > a + b > synthesize(c)",
        "c",  # c that has read nothing: 6
        "a + b + c > vote(b)",  # nothing
        "a + b > vote(a)",  # nothing
    ):
        runner.measure(parse(text), examples)
        made.append(pool.calls.ledger.spending.made)
    assert made == [6, 12, 18, 30, 36, 36, 36]
    # Known nodes do not even ask the store: c's six above are all.
    assert pool.calls.ledger.spending.reused == 6


def test_an_outcome_is_what_production_would_cost(
    rows: Make, evaluator: Make, fails_on: Make
) -> None:
    pool = scripted_pool(
        {"a": fails_on(), "b": fails_on()}, usd_per_million_tokens={"a": 1e6, "b": 2e6}
    )
    runner: Evaluator = evaluator(pool)
    (alone,) = runner.measure(parse("a"), rows("val", 1))
    (voted,) = runner.measure(parse("a + b > select"), rows("val", 1))
    # "val 0" is 2 tokens and "0" is 1: 3 usd from a, 6 from b, known answers included
    assert (alone.calls, alone.tokens, alone.usd) == pytest.approx((1, 3, 3))
    assert (voted.calls, voted.tokens, voted.usd) == pytest.approx((2, 6, 9))
    assert (alone.layer, voted.layer) == (("0",), ("0", "0"))
    assert means([alone, voted]) | {"seconds": 0} == {
        "calls": 1.5,
        "usd": pytest.approx(6),
        "seconds": 0,
        "failures": 0,
    }


def test_more_rows_cost_only_what_is_new(rows: Make, evaluator: Make, fails_on: Make) -> None:
    pool = scripted_pool({"a": fails_on(0)})
    runner: Evaluator = evaluator(pool)
    examples = rows("val", 9)
    assert not runner.knows(parse("a"), examples)
    first = runner.measure(parse("a"), examples[:4])
    every = runner.measure(parse("a"), examples)
    assert every[:4] == first
    assert scores(every) == [0, 1, 1] * 3
    assert runner.knows(parse("a"), examples)
    assert pool.calls.ledger.spending.made == 9


def test_outcomes_stand_in_the_order_of_the_rows(
    rows: Make, evaluator: Make, fails_on: Make
) -> None:
    runner: Evaluator = evaluator(scripted_pool({"a": fails_on(0)}), num_threads=8)
    assert scores(runner.measure(parse("a"), rows("val", 30)[::-1])) == [1, 1, 0] * 10


def test_a_failed_agent_is_left_out_and_counted_once(
    rows: Make, evaluator: Make, fails_on: Make
) -> None:
    pool = scripted_pool({"a": fails_on(), "dead": OSError("down")})
    runner: Evaluator = evaluator(pool)
    outcomes = runner.measure(parse("a + dead > vote(a)"), rows("val", 5))
    assert scores(outcomes) == [1] * 5
    assert [outcome.layer for outcome in outcomes] == [(str(i),) for i in range(5)]
    runner.measure(parse("a + dead > select"), rows("val", 5))
    assert runner.failed()["failures"] == {"dead": 5}


def test_nothing_answered_scores_0_and_says_why(
    rows: Make, evaluator: Make, fails_on: Make
) -> None:
    pool = scripted_pool(
        {"a": fails_on(), "dead": OSError("down")}, usd_per_million_tokens={"a": 1e6}
    )
    runner: Evaluator = evaluator(pool)
    outcomes = runner.measure(parse("dead"), rows("val", 3))
    assert scores(outcomes) == [0, 0, 0]
    assert all("dead: " in str(outcome.failure) for outcome in outcomes)
    assert means(outcomes)["failures"] == 1
    (lost,) = runner.measure(parse("a > synthesize(dead)"), rows("val", 1))
    # Both were asked, and the proposer paid: 2 + 1 tokens. Failing does not make a mixture cheap.
    assert (lost.score, lost.calls, lost.usd) == pytest.approx((0, 2, 3))


def test_a_replay_reports_failures_as_they_were(
    rows: Make, evaluator: Make, fails_on: Make
) -> None:
    pool = scripted_pool({"a": fails_on(), "dead": OSError("down")})
    architecture = parse("a + dead > vote(a)")
    live = evaluator(pool).measure(architecture, rows("val", 2))
    pool.calls.replay_only = True
    assert evaluator(pool).measure(architecture, rows("val", 2)) == live


def test_a_metric_may_return_a_prediction_with_a_score(
    rows: Make, evaluator: Make, fails_on: Make
) -> None:
    def graded(example: dspy.Example, prediction: dspy.Prediction) -> dspy.Prediction:
        return dspy.Prediction(score=0.25 + 0.5 * (prediction.answer == example.answer))

    runner: Evaluator = evaluator(scripted_pool({"a": fails_on(0)}), graded)
    assert scores(runner.measure(parse("a"), rows("val", 3))) == [0.25, 0.75, 0.75]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"must return a number in \[0, 1\], but gave nan on 'val-2'"),
        (1.5, r"must return a number in \[0, 1\], but gave 1.5 on 'val-2'"),
        (-0.1, r"must return a number in \[0, 1\], but gave -0.1 on 'val-2'"),
        (None, r"must return a number in \[0, 1\], but gave None on 'val-2'"),
        (KeyError("gold"), r"raised KeyError on example 'val-2': 'gold'"),
    ],
)
def test_a_metric_without_a_number_is_an_error_that_names_the_example(
    rows: Make, evaluator: Make, fails_on: Make, value: Any, message: str
) -> None:
    def metric(example: dspy.Example, prediction: dspy.Prediction) -> Any:
        if example.id != "val-2":
            return 1.0
        if isinstance(value, Exception):
            raise value
        return value

    runner: Evaluator = evaluator(scripted_pool({"a": fails_on()}), metric)
    with pytest.raises(MetricError, match=message):
        runner.measure(parse("a"), rows("val", 4))


def test_a_call_that_nobody_recorded_names_agent_and_example(
    rows: Make, evaluator: Make, fails_on: Make
) -> None:
    pool = scripted_pool({"a": fails_on(), "b": fails_on()})
    evaluator(pool).measure(parse("a + b > vote(a)"), rows("val", 2))
    pool.calls.replay_only = True
    with pytest.raises(UnknownCallError, match="agent 'a' for example 'val-2'"):
        evaluator(pool).measure(parse("a + b > vote(a)"), rows("val", 3))


def test_what_is_stored_is_read_without_threads(
    rows: Make, evaluator: Make, fails_on: Make
) -> None:
    scored_by: set[int] = set()

    def metric(example: dspy.Example, prediction: dspy.Prediction) -> float:
        scored_by.add(threading.get_ident())
        return float(prediction.answer == example.answer)

    pool, examples = scripted_pool({"a": fails_on(0), "b": fails_on(1)}), rows("val", 9)
    mixture = parse("a + b > synthesize(a)")
    first = evaluator(pool, metric).measure(mixture, examples)
    assert len(scored_by) > 1
    scored_by.clear()
    again = evaluator(pool, metric).measure(mixture, examples)
    assert scored_by == {threading.get_ident()}
    assert scores(again) == scores(first)
    assert [outcome.calls for outcome in again] == [outcome.calls for outcome in first]
    assert pool.calls.ledger.spending.reused == pool.calls.ledger.spending.made == 27


def test_after_the_first_that_is_not_stored_all_others_are_asked_at_once(
    rows: Make, evaluator: Make
) -> None:
    # The first that is not stored is asked alone; each of c and d waits for the other.
    together = threading.Barrier(2, timeout=20)

    def meets(prompt: str) -> str:
        together.wait()
        return prompt

    pool = scripted_pool({"a": "x", "b": "x", "c": meets, "d": meets})
    (row,) = rows("val", 1)
    evaluator(pool).measure(parse("a"), [row])
    runner: Evaluator = evaluator(pool)
    runner.measure(parse("a"), [row])
    assert runner.node_cache.is_stored
    (outcome,) = runner.measure(parse("a + b + c + d > select"), [row])
    assert (outcome.calls, outcome.failure) == (4, None)
    assert not runner.node_cache.is_stored


def test_a_module_that_asks_no_model_is_not_taken_for_stored(rows: Make) -> None:
    class Looks(dspy.Module):
        def __init__(self, signature: Any) -> None:
            super().__init__()
            self.signature = signature

        def forward(self, **inputs: Any) -> dspy.Prediction:
            return dspy.Prediction(answer=inputs["question"])

    student = MixtureOfAgents(
        "question -> answer", "a", pool=scripted_pool({"a": "x"}), module=Looks
    )
    runner = Evaluator(student, lambda example, prediction: 1.0)
    runner.measure(parse("a"), rows("val", 3))
    assert not runner.node_cache.is_stored


def test_a_question_that_two_threads_ask_at_once_fails_once_and_is_answered_if_one_was() -> None:
    question: Any = SimpleNamespace(node="propose:a:0")
    cache = NodeCache()
    failed = Response("a", failure="HTTP 500", finish_reason="length")
    for response in (failed, failed):
        cache.put("row", [question], [response])
    assert cache.failures == {("a", "HTTP 500"): 1}
    assert cache.cut == {("a", "length"): 1}
    answered = Response("a", values={"answer": "x"}, text="x")
    for response in (answered, failed):
        cache.put("row", [question], [response])
    assert cache.known(question.node, "row") is answered
    assert cache.failures == {("a", "HTTP 500"): 1}
