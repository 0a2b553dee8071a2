from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.architecture import Architecture
from moa_dspy.calls import Budget
from moa_dspy.errors import MoaError, PoolError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import ModelSearch, SearchSpace
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool

Make = Callable[..., Any]


def exact(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return bool(prediction.answer == example.answer)


@pytest.fixture
def experts(fails_on: Make) -> Callable[[], Pool]:
    """Return what makes three agents whose errors are disjoint."""
    return lambda: scripted_pool({f"e{i}": fails_on(i, says=f"no{i}") for i in range(3)})


def test_a_predict_may_be_the_student_with_its_demos(rows: Make, experts: Make) -> None:
    pool = experts()
    found = ModelSearch(exact, pool, n_trials=5)
    splits = {"trainset": [], "valset": rows("val", 9), "testset": rows("test", 9)}
    with dspy.context(adapter=PlainChat()):
        student = dspy.Predict("question -> answer")
        student.demos = rows("train", 2)
        program = found.compile(student, teacher=student, **splits)
        assert program(question="new 4").answer == "4"
    assert found.result.test["pick"].score == 1
    assert [len(seat.demos) for seat in program.predictors()] == [2] * program.architecture.calls


def test_a_module_that_does_more_than_a_predict_is_no_student_on_its_own(experts: Make) -> None:
    agent = dspy.ReAct("question -> answer", tools=[str.upper])
    with pytest.raises(StudyError, match=r"is a ReAct without one\. Name the predictor .* react"):
        ModelSearch(exact, experts()).compile(agent, trainset=rows_of(9))


def test_prompts_of_the_student_that_the_search_drops_are_named(
    experts: Make, student: Make, caplog: pytest.LogCaptureFixture
) -> None:
    pool = experts()
    tuned = student(pool)
    tuned.aggregator.demos = rows_of(2)
    search = ModelSearch(exact, pool, budget=Budget(calls=1))
    for given, n_warnings in ((tuned, 1), (student(pool), 1)):
        with pytest.raises(MoaError, match="budget"):
            search.compile(given, trainset=[], valset=rows_of(2), testset=rows_of(4)[2:])
        assert caplog.text.count("that `student` has in aggregator are not used") == n_warnings


def rows_of(n: int) -> list[dspy.Example]:
    return [dspy.Example(question=f"q {i}", answer="1").with_inputs("question") for i in range(n)]


def test_compile_refuses_what_it_does_not_know(experts: Make, rows: Make, student: Make) -> None:
    pool = experts()
    found = ModelSearch(exact, pool)
    splits = {"trainset": [], "valset": rows("val", 2), "testset": rows("test", 2)}
    with pytest.raises(StudyError, match=r"'demos' of compile; it takes trainset, .* and teacher"):
        found.compile(student(pool), demos=3, **splits)
    with pytest.raises(StudyError, match=r"`student` must hold a MixtureOfAgents.* is a Layer"):
        found.compile(type("Layer", (dspy.Module,), {})(), **splits)
    with pytest.raises(StudyError, match="`student` must be made with the search's own pool"):
        found.compile(student(experts()), **splits)
    with pytest.raises(StudyError, match="There is no result yet: call `compile` first"):
        _ = found.result
    assert pool.calls.ledger.spending.made == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_trials": 0}, "must be at least 1 .* got 0, 8 and 0.2"),
        ({"num_threads": 0}, "must be at least 1 .* got 40, 0 and 0.2"),
        ({"random_share": 1.0}, r"`random_share` in \[0, 1\), but got 40, 8 and 1.0"),
        ({"min_gain": 0.0}, r"`min_gain` must be in \(0, 1\) .* got 0.0 and 0.0"),
        (
            {"diversity_weight": -1.0},
            r"`diversity_weight` at least 0 and finite, but got 0.03 and -1",
        ),
        ({"min_gain": float("nan")}, r"`min_gain` must be in \(0, 1\) .* got nan and 0.0"),
        ({"diversity_weight": float("nan")}, "`diversity_weight` at least 0 and finite.* nan"),
        ({"diversity_weight": float("inf")}, "`diversity_weight` at least 0 and finite.* inf"),
        ({"random_share": float("nan")}, r"`random_share` in \[0, 1\), but got 40, 8 and nan"),
        ({"seed": -1}, r"`seed` must be a whole number in \[0, 4294967295\], but got -1"),
        ({"seed": 2**32}, r"`seed` must be .* but got 4294967296"),
        ({"seed": 2**70}, r"`seed` must be .* but got a number beyond 64 bits"),
        ({"seed": 1.5}, r"`seed` must be .* but got 1.5"),
        ({"objectives": ()}, "`objectives` must name at least one of .*score"),
        ({"objectives": ("beauty",)}, "`objectives`: unknown 'beauty'; known ones are calls, "),
        ({"objectives": ("calls", "usd", "calls")}, "`objectives` names calls more than once"),
        ({"diversity": "sk-" + "x" * 40}, "`diversity`: unknown a text of 43 characters; known"),
        ({"diversity": "hue"}, "`diversity`: unknown 'hue'; known ones are .*jaccard"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    experts: Make, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        ModelSearch(exact, experts(), **options)


def test_a_space_with_an_agent_that_the_pool_lacks_is_refused(experts: Make) -> None:
    with pytest.raises(PoolError, match="Unknown agent 'z'; the pool has e0, e1, e2"):
        ModelSearch(exact, experts(), space=SearchSpace(("e0", "z")))


@pytest.mark.slow
def test_a_listed_mixture_is_tried_and_handed_back_in_its_own_order_of_seats(rows: Make) -> None:
    # Who reads "z" first answers right: only the listed order of seats does. One question is
    # answered alone, as a study in which all agents score 0 everywhere would stop.
    def reads(prompt: str) -> str:
        number = prompt.split()[1]
        return number if '1. "z' in prompt or number == "0" else "no"

    def once(prompt: str) -> str:
        # A study in which every agent scores 0 everywhere would stop.
        return "0" if prompt.split()[1] == "0" else "a says no"

    pool = scripted_pool({"z": "z says no", "a": once, "m": reads})
    listed = Architecture.parse("z + a > synthesize(m)")
    space = SearchSpace(tuple(pool), max_depth=0, listed=(listed,))
    search = ModelSearch(exact, pool, space=space, n_trials=12)
    student = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
    splits = {"trainset": [], "valset": rows("val", 20), "testset": rows("test", 20)}
    program = search.compile(student, **splits)
    assert str(search.result.pick) == str(program.architecture) == str(listed)
    assert program(question="new 4").answer == "4"
