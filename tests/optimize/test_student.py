"""A search varies the one mixture of a larger program, and returns such a program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.errors import DataError, StudyError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.optimize import Evaluator, ModelSearch, SearchSpace
from moa_dspy.optimize.evaluate import Student, mixtures_of
from moa_dspy.optimize.nodes import place_of
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool
from tests.optimize.outer import Outer, exact, outer, parse

Make = Callable[..., Any]


def test_a_larger_program_is_searched_and_returned(pool: Pool, rows: Make) -> None:
    student = outer(pool)
    search = ModelSearch(
        exact, pool, space=SearchSpace(("e0", "e1", "e2"), max_depth=1), n_trials=6
    )
    program = search.compile(student, trainset=[], valset=rows("val", 9), testset=rows("test", 27))
    assert isinstance(program, Outer)
    assert program is not student
    assert str(program.steps[0].architecture).startswith("e0 + e1 + e2 > ")
    assert type(program.steps[0]) is MixtureOfAgents
    assert program(question="new 4").answer == "4"
    assert student.steps[0].architecture == parse("e0")
    assert {type(candidate["program"]) for candidate in program.candidate_programs} == {Outer}
    # It may be searched again: what an optimizer left on it is not taken for mixtures.
    assert list(mixtures_of(program)) == ["self.steps[0]"]


def test_the_result_of_a_search_is_open_to_prompt_optimizers(pool: Pool, rows: Make) -> None:
    search = ModelSearch(exact, pool, space=SearchSpace(("e0", "e1", "e2")), n_trials=5)
    splits = {"trainset": [], "valset": rows("val", 6), "testset": rows("test", 27)}
    mixture = outer(pool).steps[0]
    for student in (mixture, outer(pool)):
        program = search.compile(student, **splits)
        # A seat learns from what it is asked, so a vote asks all.
        found = Student.of(program).mixture
        found.rules = replace(found.rules, stop_early=False)
        optimizer = dspy.BootstrapFewShot(metric=exact, max_labeled_demos=0)
        with dspy.context(lm=pool.lm("w"), adapter=PlainChat()):
            compiled = optimizer.compile(program, trainset=rows("train", 3))
        seats = Student.of(compiled).mixture.predictors()
        assert [len(seat.demos) for seat in seats] == [3] * len(seats) != []


def test_rows_without_an_input_of_the_mixture_are_refused_before_any_call(pool: Pool) -> None:
    given = [dspy.Example(text=f"new {i}", answer=str(i)).with_inputs("text") for i in range(30)]
    splits = {"trainset": [], "valset": given[:10], "testset": given[10:]}
    mixture = outer(pool).steps[0]
    for student in (mixture, dspy.Predict("question -> answer")):
        with pytest.raises(DataError, match=r"has the input 'question', but row .* has only text"):
            ModelSearch(exact, pool).compile(student, **splits)
    assert pool.calls.ledger.spending.made == 0


@pytest.mark.parametrize(
    ("mixtures", "message"),
    [
        ([], r"`student` must hold a MixtureOfAgents, .*, but is a Holder without one\."),
        (
            ["frozen"],
            r"mixtures of the Holder are frozen, at frozen: set `_compiled` of one to False",
        ),
    ],
)
def test_a_program_with_no_mixture_to_search_is_refused(
    pool: Pool, rows: Make, mixtures: list[str], message: str
) -> None:
    program = type("Holder", (dspy.Module,), {})()
    for name in mixtures:
        setattr(program, name, outer(pool).steps[0])
        getattr(program, name)._compiled = True
    with pytest.raises(StudyError, match=message):
        ModelSearch(exact, pool).compile(program, trainset=rows("train", 8))
    with pytest.raises(StudyError, match=message):
        Evaluator(program, exact).measure(parse("e0"), [dspy.Example(id="x")])


def test_a_mixture_of_another_pool_is_refused(pool: Pool, rows: Make, fails_on: Make) -> None:
    program = outer(scripted_pool({"e0": fails_on()}))
    with pytest.raises(StudyError, match="must be made with the search's own pool"):
        ModelSearch(exact, pool).compile(program, trainset=rows("train", 8))


def test_a_program_that_cannot_be_copied_is_refused(pool: Pool, rows: Make) -> None:
    class Connected(Outer):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot pickle a socket")

    with pytest.raises(StudyError, match="`student` cannot be copied: cannot pickle a socket"):
        Evaluator(Connected(outer(pool).steps[0]), exact).measure(parse("e0"), rows("val", 1))


def test_mixtures_are_found_once_and_not_in_seats(pool: Pool) -> None:
    inner = MixtureOfAgents("question -> answer", "e0", pool=pool)
    nested = MixtureOfAgents("question -> answer", "e0", pool=pool, module=lambda _: inner)
    program = Outer({"x": nested})
    program.steps = [{"x": nested}]
    program.again, program.named, program.me = nested, {"k": nested}, program
    assert mixtures_of(program) == {"self.again": nested}
    assert mixtures_of(nested) == {"self": nested}


def test_frozen_modules_are_left_alone_as_dspy_does(pool: Pool) -> None:
    first, second = outer(pool), outer(pool)
    program = Outer({"x": first, 2: second})
    paths = ["self.steps[0]", "self.named['x'].steps[0]", "self.named['2'].steps[0]"]
    program.named, program.steps = program.steps[0], [outer(pool).steps[0]]
    assert sorted(mixtures_of(program)) == sorted(paths)
    named = {name for name, _ in program.named_predictors()}
    assert {f"{path.removeprefix('self.')}.aggregator" for path in paths} < named
    second._compiled = True
    assert sorted(mixtures_of(program)) == sorted(paths[:2])
    assert sorted(mixtures_of(program, with_frozen=True)) == sorted(paths)
    # A whole that is frozen may be searched: DSPy optimizers take it as well.
    program._compiled = True
    assert sorted(mixtures_of(program)) == sorted(paths[:2])


def test_what_is_for_one_mixture_says_how_the_others_are_frozen(pool: Pool, rows: Make) -> None:
    program = Outer(outer(pool).steps[0])
    program.other = outer(pool).steps[0]
    with pytest.raises(StudyError, match=r"holds 2 mixtures, at steps\[0\], other, .*: freeze"):
        Evaluator(program, exact).measure(parse("e0"), rows("val", 1))
    program.other._compiled = True
    (outcome,) = Evaluator(program, exact).measure(parse("e0"), rows("val", 1))
    assert outcome.calls == 1


def test_equal_inputs_and_no_others_are_one_place() -> None:
    history = dspy.History(messages=[{"question": "q"}])
    same = [{"question": "q", "history": history}, {"history": history, "question": "q"}]
    assert place_of(same[0]) == place_of(same[1])
    others: list[dict[str, Any]] = [
        {"question": "q"},
        {"question": "Q"},
        {"question": ["q"]},
        {"question": dspy.History(messages=[{"question": "q"}])},
        {"question": {"messages": [{"question": "q"}]}},
    ]
    assert len({place_of(inputs) for inputs in others}) == 5
    assert place_of({"x": object()}) != place_of({"x": object()})
