"""A larger program is measured whole; what its mixture has been asked is not asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from moa_dspy.calls import Budget, Ledger
from moa_dspy.errors import BudgetReachedError, StudyError
from moa_dspy.optimize import Evaluator
from moa_dspy.optimize.metric import scores
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool
from tests.optimize.outer import Outer, exact, outer, parse

Make = Callable[..., Any]


def test_nodes_are_reused_where_the_mixture_is_asked_the_same(pool: Pool, rows: Make) -> None:
    runner = Evaluator(outer(pool), exact, 4)
    made = []
    for text in ("e0", "e0 + e1 > select", "e0 + e1 + e2 > select", "e1 + e2 > vote(e1)", "e2"):
        runner.measure(parse(text), rows("val", 6))
        made.append(pool.calls.ledger.spending.made)
    assert made == [6, 12, 18, 18, 18]
    # Not even the store was asked.
    assert pool.calls.ledger.spending.reused == 0


def test_outcomes_of_a_larger_program_are_those_of_its_mixture(pool: Pool, rows: Make) -> None:
    program = outer(pool)
    for text in ("e0", "e0 + e1 + e2 > vote(e0)", "e0 + e1 > e2 > synthesize(e1)"):
        inside = Evaluator(program, exact).measure(parse(text), rows("val", 6))
        alone = Evaluator(program.steps[0], exact).measure(parse(text), rows("val", 6))
        assert inside == alone


def test_calls_of_the_rest_of_the_program_count_as_the_seats_do(pool: Pool, rows: Make) -> None:
    runner = Evaluator(outer(pool, writer="w"), exact)
    (first,) = runner.measure(parse("e0"), rows("val", 1))
    (second,) = runner.measure(parse("e1 + e2 > select"), rows("val", 1))
    # "val 0" is 2 tokens. w repeats it: 4. e0 says "no0 0x": 4; e1 and e2 say "0": 3 each.
    assert (first.calls, first.tokens, first.usd) == pytest.approx((2, 8, 8))
    assert (second.calls, second.tokens, second.usd) == pytest.approx((3, 10, 10))
    assert (first.layer, second.layer) == (("no0 0x",), ("0", "0"))
    # w was asked once, and then it was in the store.
    spending = pool.calls.ledger.spending
    assert (spending.made, spending.reused) == (4, 1)


class Twice(Outer):
    def forward(self, question: str) -> Any:
        self.steps[0](question="first 1")
        return self.steps[0](question=question)


class InThreads(Outer):
    def forward(self, question: str) -> Any:
        pairs = [(self.steps[0], {"question": question})] * 2
        return dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs)[0]


def test_a_mixture_may_be_asked_several_times(pool: Pool, rows: Make) -> None:
    mixture = outer(pool).steps[0]
    twice = Evaluator(Twice(mixture), exact)
    outcomes = twice.measure(parse("e0"), rows("val", 3))
    assert scores(outcomes) == [0, 1, 1]
    assert [outcome.calls for outcome in outcomes] == [2, 2, 2]
    # "first 1" once, as the other two are in the store, and three questions.
    assert pool.calls.ledger.spending.made == 4


def test_a_mixture_may_be_asked_in_threads_of_dspy(pool: Pool, rows: Make) -> None:
    runner = Evaluator(InThreads(outer(pool).steps[0]), exact)
    assert scores(runner.measure(parse("e0 + e1 > vote(e1)"), rows("val", 6))) == [1, 0, 1] * 2


class Awaited(dspy.Module):
    """Can only be awaited, as a program in a web server is."""

    def __init__(self, mixture: Any) -> None:
        super().__init__()
        self.mixture = mixture

    async def aforward(self, question: str) -> Any:
        found = await self.mixture.acall(question=question)
        return dspy.Prediction(answer=found.answer)


def test_a_program_that_can_only_be_awaited_is_measured(pool: Pool, rows: Make) -> None:
    mixture, vote = outer(pool).steps[0], parse("e0 + e1 + e2 > vote(e0)")
    whole = Evaluator(mixture, exact).measure(vote, rows("val", 6))
    assert Evaluator(Awaited(mixture), exact).measure(vote, rows("val", 6)) == whole

    async def in_a_notebook() -> Any:
        return Evaluator(Awaited(mixture), exact, 1).measure(vote, rows("val", 6))

    assert asyncio.run(in_a_notebook()) == whole


@pytest.mark.parametrize("n_others", [0, 1])
def test_a_models_failure_in_the_rest_of_the_program_is_an_outcome(
    rows: Make, fails_on: Make, n_others: int
) -> None:
    pool = scripted_pool({"a": fails_on(), "dead": OSError("down")})
    program = outer(pool, writer="dead" if n_others else None)
    text = "a" if n_others else "dead"
    outcomes = Evaluator(program, exact).measure(parse(text), rows("val", 2))
    assert scores(outcomes) == [0, 0]
    assert all("down" in str(outcome.failure) for outcome in outcomes)


def test_a_budget_ends_a_larger_program_as_it_ends_a_mixture(pool: Pool, rows: Make) -> None:
    program = outer(pool, writer="w")
    pool.calls.ledger = Ledger(Budget(calls=1))
    # The writer's call is allowed and the seat's is not; of the next question, not the writer's.
    for split in ("val", "new"):
        with pytest.raises(BudgetReachedError):
            Evaluator(program, exact).measure(parse("e0"), rows(split, 1))
        assert pool.calls.ledger.spending.made == 1


def test_a_program_that_fails_by_itself_is_an_error_that_names_the_example(
    pool: Pool, rows: Make
) -> None:
    class Broken(Outer):
        def forward(self, question: str) -> Any:
            return {}[self.steps[0](question=question).answer]

    with pytest.raises(StudyError, match=r"The program raised KeyError on example 'val-1': '1'"):
        Evaluator(Broken(outer(pool).steps[0]), exact).measure(parse("e0"), rows("val", 3)[1:])
