"""Frozen proposers: an optimizer sees the aggregator alone, and nothing is lost."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import dspy
import pytest

from moa_dspy.architecture import Architecture
from moa_dspy.layers import all_predictors
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.program_file import save_program
from tests.mixture.optimizers import CAREFULLY, OPTIMIZERS
from tests.mixture.world import SEATS, Outer, World, make_world, program_of, seats_of

PROPOSERS = list(SEATS)[:2]
EVERYWHERE = pytest.mark.parametrize("where", ["alone", "inside"])
OLD = "An old instruction."


def mixture_of(program: Any) -> Any:
    return getattr(program, "mixture", program)


def proposers_of(program: Any) -> list[Any]:
    return list(mixture_of(program).layers[0].proposers)


def prepare(program: Any) -> None:
    """Give every proposer something that an optimizer would change or reset."""
    for seat in proposers_of(program):
        seat.demos = [dspy.Example(question="task 8", answer="an old answer")]
        seat.signature = seat.signature.with_instructions(OLD)
    mixture_of(program).are_proposers_frozen = True


@cache
def compiled(name: str, where: str) -> tuple[World, Any]:
    world = make_world(CAREFULLY)
    with dspy.context(lm=world.outsider):
        student = program_of(world, where)
        prepare(student)
        return world, OPTIMIZERS[name](world, student)


@pytest.mark.slow
@EVERYWHERE
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_changes_the_aggregator_alone(name: str, where: str) -> None:
    world, program = compiled(name, where)
    with dspy.context(lm=world.outsider):
        assert [program(question=f"task {n}").answer for n in (7, 9)] == ["Q7", "Q9"]
    for seat in proposers_of(program):
        assert [demo["answer"] for demo in seat.demos] == ["an old answer"]
        assert seat.signature.instructions == OLD
    for agent in "abc":
        assert set(world.log.by(agent)) == {"answer"}
    assert "answer" not in world.log.by("g")
    # A proposer has one prompt per task, so it is asked once about each.
    assert world.log.counts["a"] == world.log.counts["b"] <= 8


@EVERYWHERE
def test_predictors_are_the_aggregators_until_the_layers_are_free_again(where: str) -> None:
    program = program_of(make_world(), where)
    mixture = mixture_of(program)
    assert not mixture.are_proposers_frozen
    mixture.are_proposers_frozen = True
    assert list(seats_of(program)) == ["aggregator"]
    assert mixture.deepcopy().are_proposers_frozen
    assert [name for name, _ in all_predictors(mixture)] == list(SEATS)
    mixture.are_proposers_frozen = False
    assert list(seats_of(program)) == list(SEATS)


@EVERYWHERE
def test_a_reset_keeps_what_frozen_proposers_were_taught(where: str) -> None:
    world = make_world()
    program = program_of(world, where)
    prepare(program)
    program.set_lm(world.outsider)
    for seat in proposers_of(program.reset_copy()):
        assert (len(seat.demos), seat.signature.instructions, seat.lm) == (1, OLD, None)


@EVERYWHERE
def test_a_new_rollout_asks_frozen_proposers_anew(where: str) -> None:
    world = make_world(temperature=0.7)
    program = program_of(world, where)
    prepare(program)
    with dspy.context(lm=world.outsider):
        best = dspy.BestOfN(program, N=3, reward_fn=lambda args, found: 0.0, threshold=1.0)
        best(question="task 2")
    assert {name: world.log.counts[name] for name in "abc"} == {"a": 3, "b": 3, "c": 3}


@EVERYWHERE
def test_dspys_state_holds_frozen_proposers_as_if_they_were_free(
    tmp_path: Path, where: str
) -> None:
    program, restored = (program_of(make_world(), where) for _ in range(2))
    prepare(program)
    frozen = program.dump_state()
    mixture_of(program).are_proposers_frozen = False
    assert program.dump_state() == frozen
    dspy.Module.save(program, tmp_path / "state.json")
    mixture_of(restored).are_proposers_frozen = True
    restored.load(tmp_path / "state.json")
    for seat in proposers_of(restored):
        assert [demo["answer"] for demo in seat.demos] == ["an old answer"]
        assert seat.signature.instructions == OLD


def test_a_program_file_holds_frozen_proposers(tmp_path: Path) -> None:
    program = make_world().mixture()
    prepare(program)
    save_program(program, tmp_path / "program.json")
    loaded = MixtureOfAgents.load(tmp_path / "program.json", pool=program.pool)
    assert not loaded.are_proposers_frozen
    for seat in proposers_of(loaded):
        assert [demo["answer"] for demo in seat.demos] == ["an old answer"]


def test_another_architecture_of_a_frozen_mixture_is_frozen() -> None:
    mixture = make_world().mixture()
    for is_frozen in (False, True):
        mixture.are_proposers_frozen = is_frozen
        other = mixture.with_architecture(Architecture.parse("a > b > synthesize(c)"))
        assert other.are_proposers_frozen is is_frozen


def test_a_single_agent_has_nothing_to_freeze() -> None:
    mixture = make_world().mixture().with_architecture(Architecture.parse("a"))
    mixture.are_proposers_frozen = True
    assert not mixture.are_proposers_frozen
    assert [name for name, _ in mixture.named_predictors()] == ["aggregator"]


def test_a_frozen_mixture_in_a_larger_program_leaves_the_rest_free() -> None:
    program = Outer(make_world().mixture())
    program.mixture.are_proposers_frozen = True
    assert [name for name, _ in program.named_predictors()] == ["rewrite", "mixture.aggregator"]
