"""DSPy's optimizers on a mixture, alone and in a larger program: who is asked, what is made."""

from __future__ import annotations

from functools import cache
from typing import Any

import dspy
import pytest

from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.testing import scripted_pool
from tests.mixture.optimizers import CAREFULLY, OPTIMIZERS
from tests.mixture.world import (
    SEATS,
    Outer,
    World,
    make_world,
    number,
    program_of,
    reply,
    seats_of,
)

EVERYWHERE = pytest.mark.parametrize("where", ["alone", "inside"])
BOOTSTRAPPING = {
    "BootstrapFewShot",
    "BootstrapFewShotWithOptuna",
    "SIMBA",
    "InferRules",
    "BetterTogether",
}


@cache
def compiled(name: str, where: str) -> tuple[World, Any, Any]:
    """Return the world after an optimizer was there, its student and what it made."""
    return compiled_anew(name, where)


def compiled_anew(name: str, where: str) -> tuple[World, Any, Any]:
    world = make_world(CAREFULLY)
    with dspy.context(lm=world.outsider):
        student = program_of(world, where)
        return world, student, OPTIMIZERS[name](world, student)


@pytest.mark.slow
@EVERYWHERE
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_seat_asks_its_own_agent_while_and_after_it_is_optimized(
    name: str, where: str
) -> None:
    world, _, program = compiled(name, where)
    with dspy.context(lm=world.outsider):
        # Odd numbers, and new ones: only what the optimizer made helps the aggregator.
        assert [program(question=f"task {n}").answer for n in (7, 9)] == ["Q7", "Q9"]
    for agent in "abc":
        assert set(world.log.by(agent)) == {"answer"}
    assert "answer" not in world.log.by("g")
    assert sum(world.log.counts[agent] for agent in "abc") == world.pool.calls.ledger.spending.made


@EVERYWHERE
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_one_agent_said_is_no_other_agents_example(name: str, where: str) -> None:
    world, _, program = compiled(name, where)
    for seat, agent in SEATS.items():
        demos = [demo for demo in seats_of(program)[seat].demos if demo.get("augmented")]
        assert bool(demos) or name not in BOOTSTRAPPING
        signature = "Q" if agent == "c" else f"{agent} says Q"
        assert all(demo["answer"].startswith(signature) for demo in demos)
    assert not any("b says" in prompt for prompt in world.log.prompts("a"))
    assert not any("a says" in prompt for prompt in world.log.prompts("b"))


@EVERYWHERE
@pytest.mark.parametrize("name", sorted({*OPTIMIZERS} - {"InferRules"}))
def test_the_student_stays_as_it_was(name: str, where: str) -> None:
    # InferRules writes into signatures, which copies share: DSPy's own, and so with any program.
    world, student, _ = compiled(name, where)
    new = seats_of(program_of(world, where))
    for seat, predictor in seats_of(student).items():
        assert predictor.demos == []
        assert predictor.signature.equals(new[seat].signature)


def test_rules_are_written_into_no_signature_of_the_users() -> None:
    world, _, _ = compiled("InferRules", "alone")
    assert not any(
        "CAREFULLY" in seat.signature.instructions for seat in seats_of(world.mixture()).values()
    )


@pytest.mark.parametrize(
    ("name", "where", "counts"),
    [
        ("LabeledFewShot", "alone", {"a": 0, "b": 0, "c": 0, "g": 0}),
        ("LabeledFewShot", "inside", {"a": 0, "b": 0, "c": 0, "g": 0}),
        # Labeled examples make c right on tasks 0 and 1, and then there are two traces.
        ("BootstrapFewShot", "alone", {"a": 2, "b": 2, "c": 2, "g": 0}),
        ("BootstrapFewShot", "inside", {"a": 2, "b": 2, "c": 2, "g": 2}),
    ],
)
def test_calls_are_as_many_as_the_traces(name: str, where: str, counts: dict[str, int]) -> None:
    world, _, _ = compiled_anew(name, where)
    assert world.log.counts == counts


@EVERYWHERE
def test_gepa_reflects_on_each_agents_own_answers(where: str) -> None:
    world, _, _ = compiled("GEPA", where)
    reflected = [p for p in world.log.prompts("g") if "`new_instruction`" in p]
    about = [p for p in reflected if '"references"' not in p and "says" in p]
    assert len(about) >= 2
    for prompt in about:
        assert ("a says" in prompt) != ("b says" in prompt)


@EVERYWHERE
def test_bootstrapped_examples_stand_in_the_order_of_the_tasks(where: str) -> None:
    _, _, program = compiled("BootstrapFewShot", where)
    for seat in seats_of(program).values():
        assert [demo["answer"][-2:] for demo in seat.demos] == ["Q0", "Q1"]


@pytest.mark.parametrize("name", ["GEPA", "MIPROv2", "BootstrapFewShot", "SIMBA"])
def test_optimizers_see_every_member_of_a_vote_that_stops_early(name: str) -> None:
    # All three agree, so that a vote asks two of them: the third learned nothing.
    world = make_world(CAREFULLY)
    scripts = {
        name_of_agent: lambda prompt: reply(prompt, {"answer": f"Q{number(prompt)}"})
        for name_of_agent in "abc"
    }
    pool = scripted_pool(scripts, temperature=0.0, reads_all=True)
    vote = MixtureOfAgents("question -> answer", "a + b + c > vote", pool=pool)
    assert len(vote(question="task 1").mixture.layers[0]) == 2
    world.pool = pool
    with dspy.context(lm=world.outsider):
        made = OPTIMIZERS[name](world, Outer(vote))
    demos = [len(seat.demos) for seat in seats_of(made).values()]
    assert len(demos) == 3
    # What one member was shown all were: none is left out because it was not needed.
    assert len(set(demos)) == 1
    assert len(vote(question="task 2").mixture.layers[0]) == 2
