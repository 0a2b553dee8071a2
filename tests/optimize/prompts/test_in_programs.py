"""Prompts of a mixture inside a larger program: the program is run and scored whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy
import pytest

from moa_dspy import ModelSearch
from moa_dspy.errors import StudyError
from moa_dspy.optimize import PromptOptions, ReferenceDemos, SearchSpace, optimize_aggregator
from tests.optimize.prompts.optimizers import copro, gepa, mipro, simba
from tests.optimize.prompts.world import exact, make_world, mixture, rows

MIPRO = {"num_trials": 4, "minibatch": False}


class Outer(dspy.Module):
    """Puts the question in other words, and says the answer in lower case."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, question: str) -> Any:
        found = self.answer(question=f"Tell me: {question}")
        return dspy.Prediction(said=found.answer.lower())


def whole(example: Any, prediction: Any, *_: Any) -> float:
    """Scores the program's own output: a reference has no field of that name."""
    return float(prediction.said == example.answer.lower())


def feedback(example: Any, prediction: Any, *_: Any) -> Any:
    return dspy.Prediction(score=whole(example, prediction), feedback="Think CAREFULLY.")


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (copro, {}),
        pytest.param(gepa, {}, marks=pytest.mark.slow),
        pytest.param(mipro, MIPRO, marks=pytest.mark.slow),
        pytest.param(simba, {}, marks=pytest.mark.slow),
    ],
)
def test_the_aggregator_of_a_program_is_tuned(make: Any, options: Mapping[str, Any]) -> None:
    world = make_world()
    program = Outer(mixture(world))
    before = program.answer.aggregator.signature.instructions
    result = optimize_aggregator(
        program,
        make(world.outsider),
        rows("train", 8),
        rows("val", 18),
        metric=feedback if make is gepa else whole,
        compile_options=options,
    )
    # 6 of 18 rows are won, and none is lost.
    assert (result.accepted, result.val.before.estimate, result.val.after.estimate) == (
        True,
        12 / 18,
        1.0,
    )
    assert type(result.program) is Outer
    found = result.program(question="task 3")
    assert found.said == "q3"
    assert program.answer.aggregator.signature.instructions == before
    # Proposers were asked once for each of 26 rows, whatever the prompt of their reader.
    assert (world.log.counts["a"], world.log.counts["b"]) == (26, 26)
    assert result.calls_of("proposers").made == 2 * 26


def test_the_readers_of_a_layer_of_a_program_are_tuned() -> None:
    world = make_world()
    program = Outer(mixture(world, "a + b > c + d > select"))
    result = optimize_aggregator(
        program, copro(world.outsider), rows("train"), rows("val", 18), metric=whole, layer=2
    )
    assert (result.accepted, result.val.after.estimate) == (True, 1.0)
    readers = result.program.answer.layers[1].proposers
    assert [one.signature.instructions for one in readers] == ["Think CAREFULLY."] * 2


def test_gepa_is_shown_references_of_a_program_without_a_verdict_on_them() -> None:
    world = make_world()
    optimize_aggregator(
        Outer(mixture(world)), gepa(world.outsider), rows("train"), rows("val", 3), metric=whole
    )
    reflected = "\n".join(world.log.prompts("g"))
    assert "Reference 1: Q1" in reflected or "Reference 1: wrong 3" in reflected
    assert "misled" not in reflected


@pytest.mark.slow
def test_a_search_tunes_the_prompts_of_a_programs_mixture() -> None:
    world = make_world()
    space = SearchSpace(("a", "b", "c"), ("synthesize",), aggregators=("c",), max_depth=1)
    search = ModelSearch(
        whole,
        world.pool,
        space=space,
        n_trials=12,
        prompts=PromptOptions(optimizer=copro(world.outsider), rounds=1, top=1),
    )
    found = search.compile(
        Outer(mixture(world)),
        trainset=rows("train"),
        valset=rows("val", 18),
        testset=rows("test", 18),
    )
    (prompt,) = search.result.prompts
    assert (prompt["text"], prompt["accepted"]) == ("Think CAREFULLY.", True)
    assert found(question="task 3").said == "q3"


def test_examples_of_references_need_the_mixture_alone() -> None:
    world = make_world()
    search = ModelSearch(exact, world.pool, prompts=PromptOptions(optimizer="demos"))
    with pytest.raises(StudyError, match="need a student that is the mixture itself"):
        search.compile(
            Outer(mixture(world)), trainset=rows("train"), valset=rows("val"), testset=rows("test")
        )
    with pytest.raises(StudyError, match="need a student that is the mixture itself"):
        optimize_aggregator(
            Outer(mixture(world)), ReferenceDemos(), rows("train"), rows("val"), metric=whole
        )
    assert world.log.counts == {"a": 0, "b": 0, "c": 0, "g": 0}
