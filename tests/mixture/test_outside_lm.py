"""An LM that somebody sets on a mixture never answers in a seat, whatever else is done to it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import teleprompt

from tests.mixture.world import World, exact, make_world, program_of, rows, seats_of

EVERYWHERE = pytest.mark.parametrize("where", ["alone", "inside"])


def assert_agents_answer(world: World, program: Any, *, n: int = 1) -> None:
    """Ask once; each agent was asked ``n`` times in all, and the outsider never for an answer."""
    with dspy.context(lm=world.outsider):
        assert program(question=f"task {2 * n}").answer == f"Q{2 * n}"
    assert {name: world.log.counts[name] for name in "abc"} == dict.fromkeys("abc", n)
    for agent in "abc":
        assert set(world.log.by(agent)) == {"answer"}
    assert "answer" not in world.log.by("g")


def reset(program: Any) -> Any:
    for predictor in program.predictors():
        predictor.reset()
    return program


COPIES: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda program: program,
    "copy.deepcopy": copy.deepcopy,
    "deepcopy": lambda program: program.deepcopy(),
    "reset_copy": lambda program: program.reset_copy(),
    "reset": reset,
    "a copy of a copy": lambda program: program.deepcopy().reset_copy().deepcopy(),
}


@EVERYWHERE
@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("is_set", [False, True])
def test_no_copy_and_no_reset_loses_an_agent(where: str, copied: str, is_set: bool) -> None:
    world = make_world()
    program = program_of(world, where)
    if is_set:
        program.set_lm(world.outsider)
    assert_agents_answer(world, COPIES[copied](program))


@EVERYWHERE
def test_set_lm_is_for_the_plain_predictors_of_a_program(where: str) -> None:
    world, other = make_world(), make_world()
    program = program_of(world, where)
    program.set_lm(other.outsider)
    assert_agents_answer(world, program)
    # The outer program's own predictor asks what was set, not what is in the settings.
    assert world.log.counts["g"] == 0
    assert other.log.by("g") == ({"rewritten": 1} if where == "inside" else {})


@EVERYWHERE
def test_a_teachers_lm_is_for_the_plain_predictors_of_a_program(where: str) -> None:
    world, other = make_world(), make_world()
    optimizer = teleprompt.BootstrapFewShot(
        metric=exact,
        teacher_settings={"lm": other.outsider},
        max_bootstrapped_demos=2,
        max_labeled_demos=0,
    )
    with dspy.context(lm=world.outsider):
        program = optimizer.compile(program_of(world, where), trainset=rows())
    # Right on tasks 0 and 2, wrong on 1: three questions make two traces.
    assert world.log.counts == {"a": 3, "b": 3, "c": 3, "g": 0}
    assert other.log.by("g") == ({"rewritten": 3} if where == "inside" else {})
    for seat in seats_of(program).values():
        assert [demo.answer[-2:] for demo in seat.demos] == ["Q0", "Q2"]


@EVERYWHERE
def test_a_teacher_of_other_agents_shows_what_its_agents_said(where: str) -> None:
    world, school = make_world(), make_world()
    teacher = program_of(school, where)
    optimizer = teleprompt.BootstrapFewShot(metric=exact, max_labeled_demos=0)
    with dspy.context(lm=world.outsider):
        program = optimizer.compile(program_of(world, where), teacher=teacher, trainset=rows())
    assert {name: world.log.counts[name] for name in "abc"} == dict.fromkeys("abc", 0)
    assert {name: school.log.counts[name] for name in "abc"} == dict.fromkeys("abc", 6)
    assert_agents_answer(world, program)
    assert [demo.answer for demo in seats_of(program)["layers[0].proposers[1]"].demos] == [
        "b says Q0",
        "b says Q2",
        "b says Q4",
    ]


@pytest.mark.parametrize("is_set", [False, True])
def test_dspys_own_files_restore_a_larger_program(tmp_path: Path, is_set: bool) -> None:
    world = make_world()
    program, restored = program_of(world, "inside"), program_of(world, "inside")
    seats_of(program)["aggregator"].demos = [dspy.Example(question="task 1", answer="Q1")]
    if is_set:
        program.mixture.set_lm(dspy.LM("openai/nobody", api_key="a key"))
    program.save(tmp_path / "state.json")
    assert "a key" not in (tmp_path / "state.json").read_text("utf-8")
    restored.load(tmp_path / "state.json")
    # An LM that was set is not the agents', so it does not come back with their prompts.
    assert all(seat.lm is None for seat in seats_of(restored).values())
    assert_agents_answer(world, restored)
    assert [demo["answer"] for demo in seats_of(restored)["aggregator"].demos] == ["Q1"]


def test_the_lm_of_a_mixture_is_its_last_agents() -> None:
    world = make_world()
    mixture = world.mixture()
    assert mixture.get_lm() is world.pool.lm("c")
    mixture.set_lm(world.outsider)
    assert mixture.get_lm() is world.pool.lm("c")
    for text, agent in (("a", "a"), ("a + b > select", "a"), ("b > vote", "b")):
        other = mixture.with_architecture(mixture.architecture.parse(text))
        assert other.get_lm() is world.pool.lm(agent)


def test_a_larger_program_has_the_lm_that_was_set_on_it() -> None:
    world = make_world()
    program = program_of(world, "inside")
    assert program.get_lm() is None
    program.set_lm(world.outsider)
    assert program.get_lm() is world.outsider
