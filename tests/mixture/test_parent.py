"""What happens in a mixture reaches who called it, in every way of calling it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Final

import dspy
import pytest
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback

from tests.mixture.world import World, exact, make_world, program_of, rows, seats_of

EVERYWHERE = pytest.mark.parametrize("where", ["alone", "inside"])
AGENTS: Final = ["agent/a", "agent/b", "agent/c"]


def by_asyncify(program: Any, **inputs: Any) -> Any:
    async def ask() -> Any:
        return await dspy.asyncify(program)(**inputs)

    return asyncio.run(ask())


def by_acall(program: Any, **inputs: Any) -> Any:
    return asyncio.run(program.acall(**inputs))


def by_syncify(program: Any, **inputs: Any) -> Any:
    return dspy.syncify(program, in_place=False)(**inputs)


WAYS: Final[dict[str, Callable[..., Any]]] = {
    "call": lambda program, **inputs: program(**inputs),
    "acall": by_acall,
    "asyncify": by_asyncify,
    "syncify": by_syncify,
}
ALL_WAYS = pytest.mark.parametrize("way", WAYS)


def names_of(world: World, where: str) -> list[str]:
    """LMs in the order in which a program asks them."""
    return AGENTS if where == "alone" else [str(world.outsider.model), *AGENTS]


@EVERYWHERE
@ALL_WAYS
def test_usage_of_every_agent_reaches_the_tracker(where: str, way: str) -> None:
    world = make_world()
    with dspy.context(lm=world.outsider), dspy.track_usage() as tracker:
        WAYS[way](program_of(world, where), question="task 2")
    usage = tracker.get_total_tokens()
    assert sorted(usage) == sorted(names_of(world, where))
    for name, tokens in usage.items():
        (prompt,) = world.log.prompts(name[-1])
        assert tokens["prompt_tokens"] == len(prompt.split())
        assert tokens["completion_tokens"] > 0


@EVERYWHERE
@pytest.mark.parametrize("n_threads", [1, 3])
def test_in_threads_each_prediction_has_its_own_usage(where: str, n_threads: int) -> None:
    world = make_world()
    evaluate = dspy.Evaluate(devset=rows(3), metric=exact, num_threads=n_threads)
    with dspy.context(lm=world.outsider, track_usage=True):
        evaluated = [found for _, found, _ in evaluate(program_of(world, where)).results]
        pairs = [(program_of(world, where), row.inputs()) for row in rows(3)]
        parallel = dspy.Parallel(num_threads=n_threads, disable_progress_bar=True)(pairs)
    for prediction in [*evaluated, *parallel]:
        usage = prediction.get_lm_usage()
        # One call of each: two markers of 5 words, and the answer; a proposer's has 3.
        assert {name: tokens["completion_tokens"] for name, tokens in usage.items()} == {
            name: 13 if name in AGENTS[:2] else 11 for name in names_of(world, where)
        }


@EVERYWHERE
@ALL_WAYS
def test_the_trace_has_the_programs_own_predictors_in_seat_order(where: str, way: str) -> None:
    world = make_world()
    program = program_of(world, where)
    for outside in (None, world.outsider):
        program.set_lm(outside)
        with dspy.context(lm=world.outsider, trace=[]):
            WAYS[way](program, question="task 2")
            trace = dspy.settings.trace
        assert [id(module) for module, _, _ in trace] == [
            id(predictor) for predictor in program.predictors()
        ]
        answers = [found.answer for _, _, found in trace if "answer" in found]
        assert answers == ["a says Q2", "b says Q2", "Q2"]


@EVERYWHERE
@pytest.mark.parametrize("way", ["call", "acall", "asyncify"])
def test_the_history_of_a_program_has_every_call(where: str, way: str) -> None:
    world = make_world()
    program = program_of(world, where)
    with dspy.context(lm=world.outsider):
        WAYS[way](program, question="task 2")
        WAYS[way](program, question="task 3")
    asked = [entry["model"] for entry in program.history]
    assert sorted(asked) == sorted(names_of(world, where) * 2)
    assert asked[-1] == "agent/c"
    for seat, name in zip(seats_of(program).values(), AGENTS, strict=True):
        assert [entry["model"] for entry in seat.history] == [name] * 2


class Family(BaseCallback):
    """Notes of every call by whom it was made, and that it ended."""

    def __init__(self) -> None:
        self.parents: dict[str, str | None] = {}
        self.names: dict[str, str] = {}
        self.ended: list[str] = []
        self.lock = threading.Lock()

    def _start(self, call_id: str, name: str) -> None:
        with self.lock:
            self.parents[call_id], self.names[call_id] = ACTIVE_CALL_ID.get(), name

    def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self._start(call_id, type(instance).__name__)

    def on_lm_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self._start(call_id, str(instance.model))

    def on_module_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
        self.ended.append(call_id)

    def on_lm_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
        self.ended.append(call_id)

    def path(self, call_id: str | None) -> list[str]:
        if call_id is None:
            return []
        return [*self.path(self.parents.get(call_id)), self.names.get(call_id, "?")]


@EVERYWHERE
@ALL_WAYS
def test_callbacks_know_who_called(where: str, way: str) -> None:
    world, family = make_world(), Family()
    program = program_of(world, where)
    with dspy.context(lm=world.outsider, callbacks=[family]):
        WAYS[way](program, question="task 2")
    paths = [family.path(call_id) for call_id in family.names]
    to_lms = sorted([step for step in path if step != "?"] for path in paths if "/" in path[-1])
    # What DSPy makes synchronous it runs itself, in the place of the program.
    top = "SyncWrapper" if way == "syncify" else type(program).__name__
    between = ["MixtureOfAgents"] if where == "inside" else []
    expected = [[top, *between, "Predict", name] for name in AGENTS]
    if where == "inside":
        expected.append([top, "Predict", str(world.outsider.model)])
    assert to_lms == sorted(expected)
    assert sorted(family.ended) == sorted(family.names)
