"""Who wants other answers gets them: each rollout asks every sampled agent once more."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy import teleprompt

from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.testing import scripted_pool
from tests.mixture.optimizers import CAREFULLY
from tests.mixture.world import (
    Log,
    World,
    exact,
    make_world,
    number,
    program_of,
    reply,
    rows,
    seats_of,
)

EVERYWHERE = pytest.mark.parametrize("where", ["alone", "inside"])


def never(args: dict[str, Any], prediction: Any) -> float:
    return 0.0


def agents(world: World) -> dict[str, int]:
    return {name: world.log.counts[name] for name in "abc"}


@EVERYWHERE
@pytest.mark.parametrize(
    ("wrapper", "temperature", "n"),
    [
        (dspy.BestOfN, 0.7, 3),
        (dspy.Refine, 0.7, 3),
        # Greedy agents are asked once a prompt; Refine adds a hint to the later ones.
        (dspy.BestOfN, 0.0, 1),
        (dspy.Refine, 0.0, 2),
    ],
)
def test_three_attempts_ask_each_sampled_agent_three_times(
    where: str, wrapper: Any, temperature: float, n: int
) -> None:
    world = make_world({"advice": '{"nobody": "hint"}'}, temperature=temperature)
    with dspy.context(lm=world.outsider):
        best = wrapper(program_of(world, where), N=3, reward_fn=never, threshold=1.0)
        assert best(question="task 1").answer == "unknown"
        assert agents(world) == dict.fromkeys("abc", n)
        best(question="task 1")
    # The same rollouts again are in the store.
    assert agents(world) == dict.fromkeys("abc", n)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_rollout_of_the_settings_lm_is_one_of_every_seat(is_async: bool) -> None:
    world = make_world(temperature=0.7)
    mixture = world.mixture()
    for rollout in (None, 1, 2, 2, 1, None):
        with dspy.context(lm=world.outsider.copy(rollout_id=rollout)):
            if is_async:
                asyncio.run(mixture.acall(question="task 1"))
            else:
                mixture(question="task 1")
    assert world.log.counts == {"a": 3, "b": 3, "c": 3, "g": 0}


def test_samples_of_one_agent_are_new_in_every_rollout() -> None:
    asked: Counter[str] = Counter()

    def script(prompt: str) -> str:
        asked["a"] += 1
        return reply(prompt, {"answer": f"answer {asked['a']}"})

    pool = scripted_pool({"a": script}, temperature=0.7)
    mixture = MixtureOfAgents("question -> answer", "a*3 > vote", pool=pool)
    best = dspy.BestOfN(mixture, N=2, reward_fn=never, threshold=1.0)
    first = best(question="q").mixture.layers[0]
    assert asked["a"] == 6
    assert len({response.text for response in first}) == 3


@EVERYWHERE
def test_a_second_round_of_bootstrapping_asks_anew(where: str) -> None:
    world = make_world(temperature=0.7)
    optimizer = teleprompt.BootstrapFewShot(metric=exact, max_labeled_demos=0, max_rounds=3)
    with dspy.context(lm=world.outsider):
        optimizer.compile(program_of(world, where), trainset=rows(2))
    # Task 0 is right at once; task 1 is wrong in all of the three rounds.
    assert agents(world) == {"a": 4, "b": 4, "c": 4}
    assert "answer" not in world.log.by("g")


def moody(name: str, log: Log) -> Callable[[str], str]:
    """An aggregator that, unless it is told to be careful, is right the second time only."""
    times: Counter[int] = Counter()

    def script(prompt: str) -> str:
        log.note(name, "answer", prompt)
        times[number(prompt)] += 1
        knows = "CAREFULLY" in prompt or times[number(prompt)] == 2
        return reply(prompt, {"answer": f"Q{number(prompt)}" if knows else "unknown"})

    return script


@EVERYWHERE
def test_simba_learns_from_rollouts_that_differ(where: str) -> None:
    world = make_world(CAREFULLY, temperature=0.7, last=moody)
    options: Any = {"bsize": 4, "num_candidates": 4, "max_steps": 1, "num_threads": 1}
    with dspy.context(lm=world.outsider):
        optimizer = teleprompt.SIMBA(metric=exact, max_demos=0, **options)
        program = optimizer.compile(program_of(world, where), trainset=rows(4), seed=0)
    # The only change that it makes is advice, and what it may compare are rollouts.
    assert world.log.by("g")["module_advice"] >= 1
    instructions = [seat.signature.instructions for seat in seats_of(program).values()]
    assert ["CAREFULLY" in text for text in instructions] == [False, False, True]
    assert "answer" not in world.log.by("g")
    assert all(seat.lm is None for seat in seats_of(program).values())
