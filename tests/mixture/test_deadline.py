from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.calls import Call, Calls, call_scope
from moa_dspy.errors import ArchitectureError, LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.prediction import Answer
from moa_dspy.testing import scripted_pool

LATE = "Late: no answer within 0.2 s."


class Shelf:
    """A store that says what it holds, and when something comes in."""

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.arrived = threading.Event()

    def get(self, key: str, /) -> Call | None:
        return self.calls.get(key)

    def put(self, call: Call, /) -> Call:
        self.calls.setdefault(call.key, call)
        if call.agent == "slow":
            self.arrived.set()
        return self.calls[call.key]


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What the slow agent waits for."""
    event = threading.Event()
    yield event
    event.set()


def pool_of(release: threading.Event, shelf: Shelf | None = None) -> Pool:
    def wait(_: str) -> str:
        assert release.wait(60)
        return "slow"

    scripts: dict[str, Any] = {"fast": "fast", "slow": wait, "last": lambda prompt: prompt}
    return scripted_pool(scripts, calls=Calls(shelf))


def mixture(pool: Pool, **options: Any) -> MixtureOfAgents:
    options = {"deadline_seconds": 0.2, **options}
    text = "fast + slow > synthesize(last)"
    return MixtureOfAgents("question -> answer", text, pool=pool, adapter=PlainChat(), **options)


def told(answer: Answer) -> list[tuple[str, str, str | None]]:
    return [(r.agent, r.text, r.failure) for r in answer.layers[0]]


def test_a_layer_goes_on_without_its_straggler_which_is_counted(release: threading.Event) -> None:
    found = mixture(pool_of(release))(question="q")
    assert told(found.mixture) == [("fast", "fast", None), ("slow", "", LATE)]
    assert found.answer == 'q\n\nResponses from models:\n1. "fast"'
    assert [r.agent for r in found.mixture.failures] == ["slow"]


def test_an_abandoned_straggler_finishes_into_the_store_and_changes_nothing_else(
    release: threading.Event,
) -> None:
    shelf = Shelf()
    with dspy.context(trace=[]), call_scope() as scope:
        found = mixture(pool_of(release, shelf))(question="q")
        answered, trace, log = str(found), list(dspy.settings.trace), list(scope.log)
        assert not shelf.arrived.is_set()
        release.set()
        assert shelf.arrived.wait(30)
        assert str(found) == answered
        time.sleep(0.2)  # what it might write, it would write after it is stored
        assert dspy.settings.trace == trace
        assert scope.log == log
        assert [facts.agent for facts in log] == ["fast", "last"]
        assert len(trace) == 2
    assert {call.agent for call in shelf.calls.values()} == {"fast", "slow", "last"}


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stored_answer_is_as_late_as_it_was_when_it_was_made(
    release: threading.Event, is_async: bool
) -> None:
    shelf = Shelf()
    release.set()
    live = mixture(pool_of(release, shelf), deadline_seconds=30)(question="q")
    assert told(live.mixture)[1] == ("slow", "slow", None)
    # The same calls, of which one took a minute.
    (slow,) = [call for call in shelf.calls.values() if call.agent == "slow"]
    object.__setattr__(slow, "seconds", 60.0)
    for seconds, failure in ((59.0, "Late: no answer within 59 s."), (61.0, None)):
        pool = pool_of(release, shelf)
        # Without the late one the aggregator is asked something new.
        pool.calls.replay_only = failure is None
        program = mixture(pool, deadline_seconds=seconds)
        replay = asyncio.run(program.acall(question="q")) if is_async else program(question="q")
        assert told(replay.mixture)[1] == ("slow", "" if failure else "slow", failure)
        # What is late was waited for until the deadline, as a live straggler is.
        assert replay.mixture.layers[0][1].seconds == min(60.0, seconds)


def test_below_the_quorum_a_straggler_is_a_cause(release: threading.Event) -> None:
    with pytest.raises(LayerFailedError, match=r"Layer 1: 1 of 2 agents answered\. slow: Late: "):
        mixture(pool_of(release), quorum=2)(question="q")


def test_a_quorum_wider_than_a_layer_asks_for_all_of_it() -> None:
    pool = scripted_pool({"a": "x", "b": "y"})
    program = MixtureOfAgents(
        "question -> answer", "a > vote", pool=pool, adapter=PlainChat(), quorum=2
    )
    assert program(question="q").answer == "x"


class Slow:
    """An engine for coroutines that never answers, and says that it was cancelled."""

    def __init__(self) -> None:
        self.started, self.cancelled = asyncio.Event(), asyncio.Event()

    async def complete(self, request: Any) -> Any:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def with_engine(pool: Pool, engine: Slow) -> Pool:
    lm: Any = pool.lm("slow")
    lm._async_engine_spec._build = lambda: engine
    return pool


def test_a_straggler_among_tasks_is_cancelled(release: threading.Event) -> None:
    async def run() -> tuple[Answer, Slow]:
        engine = Slow()
        program = mixture(with_engine(pool_of(release), engine))
        return (await program.acall(question="q")).mixture, engine

    answer, engine = asyncio.run(run())
    assert told(answer) == [("fast", "fast", None), ("slow", "", LATE)]
    assert engine.cancelled.is_set()


@pytest.mark.parametrize("deadline", [None, 60.0])
def test_cancelling_the_caller_cancels_every_proposer(
    release: threading.Event, deadline: float | None
) -> None:
    async def run() -> Slow:
        engine = Slow()
        program = mixture(with_engine(pool_of(release), engine), deadline_seconds=deadline)
        task = asyncio.create_task(program.acall(question="q"))
        await engine.started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return engine

    assert asyncio.run(run()).cancelled.is_set()


def test_a_deadline_that_is_none_is_an_error_at_once() -> None:
    with pytest.raises(ArchitectureError, match=r"must be positive, or None .* got 0"):
        mixture(scripted_pool(dict.fromkeys(["fast", "slow", "last"], "x")), deadline_seconds=0)
