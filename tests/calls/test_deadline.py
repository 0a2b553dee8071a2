from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from moa_dspy.agent import Agent
from moa_dspy.calls import Call, Calls, Recording, call_scope, current_scope
from moa_dspy.calls.timeout import THREADS
from moa_dspy.pool import Pool
from tests.calls.fake_clock import FakeClock
from tests.servers.chat import ChatServer, Reply, serving


def pool_of(server: ChatServer, calls: Calls | None = None, **values: Any) -> Pool:
    agent = Agent(name="a", model="openai/x", api_base=server.url, **values)
    return Pool([agent], calls=calls or Calls(clock=FakeClock()))


def ask(pool: Pool, *, is_async: bool = False) -> list[str]:
    lm: Any = pool.lm("a")
    return list(asyncio.run(lm.acall("q")) if is_async else lm("q"))


def stored(pool: Pool) -> list[Call]:
    return list(pool.calls.store._calls.values())  # type: ignore[attr-defined]  # the memory


def started(task: Callable[[], Any], **scope: Any) -> Any:
    """Run ``task`` in a thread, in a scope of its own."""

    def run() -> Any:
        with call_scope(**scope):
            return task()

    return THREADS.submit(run)


@pytest.mark.parametrize("is_async", [False, True])
def test_no_request_is_sent_after_the_deadline_and_a_replay_comes_to_the_same_end(
    is_async: bool,
) -> None:
    with serving(Reply()) as server:
        pool = pool_of(server)
        passed = pytest.raises(dspy.LMTimeoutError, match="not sent: its deadline has passed")
        with call_scope(deadline=1_000.0) as scope, passed:  # this very moment
            ask(pool, is_async=is_async)
        assert server.bodies == []
        assert pool.calls.ledger.spending.made == 0
        (call,) = stored(pool)
        assert (call.attempt, call.seconds) == (0, 0.0)
        assert [facts.attempt for facts in scope.log] == [0]

        replay = pool_of(server, Calls(recording=Recording([call]), replay_only=True))
        with call_scope() as scope, pytest.raises(dspy.LMProviderError, match="has passed"):
            ask(replay, is_async=is_async)
        assert [(facts.attempt, facts.is_reused) for facts in scope.log] == [(0, True)]
        # Who has time asks after all: it was no answer.
        assert ask(pool, is_async=is_async) == ["Paris"]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_wait_that_would_outlast_the_deadline_is_not_begun(is_async: bool) -> None:
    with serving(Reply(status=503, retry_after="30")) as server:
        pool = pool_of(server)
        with call_scope(deadline=1_030.0), pytest.raises(dspy.LMServerError, match="status 503"):
            ask(pool, is_async=is_async)
        assert len(server.bodies) == 1
        assert isinstance(pool.calls.clock, FakeClock)
        assert pool.calls.clock.slept == []
        (call,) = stored(pool)
        assert call.attempt == 1, "what really failed is stored, not that there was no time left"


@pytest.mark.parametrize("is_async", [False, True])
def test_who_was_told_to_stop_neither_waits_nor_asks_again(is_async: bool) -> None:
    stop = threading.Event()
    with serving(Reply(status=503, retry_after="500")) as server:
        pool = pool_of(server, Calls())
        asking = started(lambda: ask(pool, is_async=is_async), cancelled=stop)
        server.await_request()
        stop.set()
        with pytest.raises(dspy.LMServerError, match="status 503"):
            asking.result(10)
        assert len(server.bodies) == 1
        # A second request of the same asker, as an adapter makes one, is not sent either.
        with pytest.raises(dspy.LMTimeoutError, match="its caller has stopped waiting"):
            started(lambda: ask(pool, is_async=is_async), cancelled=stop).result(10)
        assert len(server.bodies) == 1


def test_a_request_on_its_way_ends_in_the_store_though_nobody_waits_any_more() -> None:
    stop, gate = threading.Event(), threading.Event()
    with serving(Reply("Paris", wait=gate)) as server:
        pool = pool_of(server, Calls())
        late = time.monotonic() + 0.01
        asking = started(lambda: ask(pool), cancelled=stop, deadline=late)
        server.await_request()
        stop.set()
        gate.set()
        assert asking.result(10) == ["Paris"]
    assert [call.failure for call in stored(pool)] == [None]


@pytest.mark.parametrize("is_async", [False, True])
def test_who_waits_for_another_who_asks_the_same_waits_no_longer_than_its_deadline(
    is_async: bool,
) -> None:
    gate = threading.Event()
    with serving(Reply("Paris", wait=gate)) as server:
        pool = pool_of(server, Calls())
        first = started(lambda: ask(pool))
        server.await_request()
        deadline = time.monotonic() + 0.05
        with pytest.raises(dspy.LMTimeoutError, match="its deadline has passed"):
            started(lambda: ask(pool, is_async=is_async), deadline=deadline).result(10)
        gate.set()
        assert first.result(10) == ["Paris"]
        assert len(server.bodies) == 1
    # The answer takes the place of the note that somebody had no time for it.
    assert [call.failure for call in stored(pool)] == [None]


def test_a_scope_inside_another_ends_no_later() -> None:
    outer, inner = threading.Event(), threading.Event()
    with call_scope(deadline=5.0, cancelled=outer):
        with call_scope() as scope:
            assert (scope.deadline, scope.cancelled) == (5.0, (outer,))
        with call_scope(deadline=7.0, cancelled=inner) as scope:
            assert (scope.deadline, scope.cancelled) == (5.0, (outer, inner))
        with call_scope(deadline=3.0) as scope:
            assert scope.deadline == 3.0
    assert (current_scope().deadline, current_scope().cancelled) == (None, ())


def test_a_mixture_inside_an_abandoned_one_stops_too() -> None:
    outer, inner = threading.Event(), threading.Event()
    with serving(Reply(status=503, retry_after="500")) as server:
        pool = pool_of(server, Calls())

        def nested() -> list[str]:
            with call_scope(cancelled=inner):
                return ask(pool)

        asking = started(nested, cancelled=outer)
        server.await_request()
        outer.set()
        with pytest.raises(dspy.LMServerError):
            asking.result(10)
