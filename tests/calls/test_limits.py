from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import dspy
import pytest

from moa_dspy.agent import Agent
from moa_dspy.calls import Calls, Limiter, call_scope
from moa_dspy.calls.timeout import THREADS
from moa_dspy.pool import Pool
from tests.servers.chat import ChatServer, Reply, serving

NAMES = tuple("abcdef")


def one_at_a_time(server: list[ChatServer]) -> Callable[[dict[str, Any]], Reply]:
    """Script a server that cannot do two things at once, as a small local one."""

    def script(body: dict[str, Any]) -> Reply:
        if server[0].n_now > 1:
            return Reply(status=503)
        time.sleep(0.01)  # long enough for the others to come in between
        return Reply(f"I am {body['model']}", status=503 if server[0].n_now > 1 else 200)

    return script


def pool_of(server: ChatServer, **values: Any) -> Pool:
    base = {"api_base": server.url, "num_retries": 0, **values}
    agents = [Agent(name=n, model=f"openai/{n}", **base) for n in NAMES[:-1]]
    # One agent of the endpoint says what holds for all of them; it comes last.
    narrow = {"max_concurrent": 1, **base}
    return Pool([*agents, Agent(name=NAMES[-1], model=f"openai/{NAMES[-1]}", **narrow)])


def in_threads(pool: Pool) -> list[str]:
    with ThreadPoolExecutor(len(NAMES)) as threads:
        lms: list[Any] = [pool.lm(name) for name in NAMES]
        return [answer[0] for answer in threads.map(lambda lm: lm("q"), lms)]


def in_tasks(pool: Pool, names: tuple[str, ...] = NAMES) -> list[str]:
    async def together() -> list[str]:
        lms: list[Any] = [pool.lm(name) for name in names]
        return [answer[0] for answer in await asyncio.gather(*(lm.acall("q") for lm in lms))]

    return asyncio.run(together())


def in_tasks_of_two_loops(pool: Pool) -> list[str]:
    halves = [THREADS.submit(partial(in_tasks, pool, part)) for part in (NAMES[:3], NAMES[3:])]
    return [answer for half in halves for answer in half.result(30)]


@pytest.mark.parametrize("ask", [in_threads, in_tasks, in_tasks_of_two_loops])
def test_a_server_that_does_one_thing_at_a_time_is_asked_one_thing_at_a_time(
    ask: Callable[[Pool], list[str]],
) -> None:
    running: list[ChatServer] = []
    with serving(one_at_a_time(running)) as server:
        running.append(server)
        pool = pool_of(server)
        assert ask(pool) == [f"I am {name}" for name in NAMES]
        assert (len(server.bodies), server.n_most) == (6, 1)
    assert pool.calls.ledger.spending.made == 6


def test_another_endpoint_has_slots_of_its_own() -> None:
    gate = threading.Event()
    with serving(Reply(wait=gate)) as slow, serving(Reply("Rome")) as quick:
        options: dict[str, Any] = {"model": "openai/x", "max_concurrent": 1, "num_retries": 0}
        agents = [Agent(name=n, api_base=s.url, **options) for n, s in (("s", slow), ("q", quick))]
        pool = Pool(agents)
        lms: list[Any] = [pool.lm("s"), pool.lm("q")]
        waiting = THREADS.submit(lambda: lms[0]("q"))
        slow.await_request()
        assert lms[1]("q") == ["Rome"]
        gate.set()
        assert waiting.result(10) == ["Paris"]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stored_answer_takes_no_slot(is_async: bool) -> None:
    gate = threading.Event()
    with serving([Reply("Rome"), Reply("Paris", wait=gate)]) as server:
        pool = Pool([Agent(name="a", model="openai/x", api_base=server.url, max_concurrent=1)])
        lm: Any = pool.lm("a")
        assert lm("known") == ["Rome"]
        waiting = THREADS.submit(lambda: lm("new"))
        server.await_request()
        server.await_request()
        assert (asyncio.run(lm.acall("known")) if is_async else lm("known")) == ["Rome"]
        gate.set()
        assert waiting.result(10) == ["Paris"]


@pytest.mark.parametrize("is_async", [False, True])
def test_who_waits_for_a_slot_waits_no_longer_than_its_deadline(is_async: bool) -> None:
    gate = threading.Event()
    with serving(Reply(wait=gate)) as server:
        pool = Pool([Agent(name="a", model="openai/x", api_base=server.url, max_concurrent=1)])
        lm: Any = pool.lm("a")
        first = THREADS.submit(lambda: lm("first"))
        server.await_request()
        passed = pytest.raises(dspy.LMTimeoutError, match="its deadline has passed")
        with call_scope(deadline=time.monotonic() + 0.05), passed:
            asyncio.run(lm.acall("second")) if is_async else lm("second")
        gate.set()
        assert first.result(10) == ["Paris"]
        assert lm("third") == ["Paris"], "the place in the queue was given up"
        assert len(server.bodies) == 2


def test_a_slot_is_free_again_after_an_error_and_after_a_cancellation() -> None:
    gate = threading.Event()
    with serving([Reply(status=400), Reply(wait=gate), Reply("Rome")]) as server:
        pool = Pool([Agent(name="a", model="openai/x", api_base=server.url, max_concurrent=1)])
        lm: Any = pool.lm("a")
        with pytest.raises(dspy.LMInvalidRequestError):
            lm("fails")

        async def cancelled() -> None:
            asking = asyncio.create_task(lm.acall("hangs"))
            queued = asyncio.create_task(lm.acall("queued"))
            await asyncio.to_thread(server.await_request)
            await asyncio.to_thread(server.await_request)
            for task in (queued, asking):
                task.cancel()
            await asyncio.gather(asking, queued, return_exceptions=True)

        asyncio.run(cancelled())
        assert lm("next") == ["Rome"]
        assert len(server.bodies) == 3
        gate.set()


def test_slots_are_given_in_the_order_of_asking() -> None:
    limiter = Limiter(2)
    tickets = [limiter.acquire() for _ in range(5)]
    assert [ticket.done() for ticket in tickets] == [True, True, False, False, False]
    limiter.release(tickets[3])  # gives up its place
    limiter.release(tickets[0])
    assert [ticket.done() for ticket in tickets] == [True, True, True, False, False]
    limiter.release(tickets[1])
    assert tickets[4].done()


def test_the_smallest_limit_that_is_given_counts_and_none_is_no_limit() -> None:
    limiters = Calls().limiters
    assert limiters.of("e").limit is None
    assert [limiters.of("e", n).limit for n in (3, None, 2, 5)] == [3, 3, 2, 2]
    assert limiters.of("other").limit is None
    tickets = [limiters.of("other").acquire() for _ in range(9)]
    assert all(ticket.done() for ticket in tickets)
    # Who is inside stays; the next comes in when there are fewer than the new limit.
    limiters.of("other", 8)
    waiting = limiters.of("other").acquire()
    for ticket in tickets[:2]:
        assert not waiting.done()
        limiters.of("other").release(ticket)
    assert waiting.done()


def test_agents_of_one_endpoint_share_its_slots_whatever_their_model_and_key() -> None:
    base: dict[str, Any] = {"api_base": "http://one/v1"}
    local: dict[str, Any] = {"model": "local/x", "sha256": "0" * 64, "max_concurrent": 1}

    def remote(**values: Any) -> Agent:
        return Agent(**{"model": "openai/x", **values})

    agents = [
        remote(name="a", max_concurrent=4, **base),
        remote(name="b", api_base="http://one/v1/", model="hosted_vllm/y", api_key_env="PATH"),
        remote(name="c", max_concurrent=2, **base),
        remote(name="d", max_concurrent=9),
        remote(name="e", model="openai/z"),
        remote(name="f", model="groq/z"),
        Agent(name="g", weights="x.gguf", **local),
        Agent(name="h", weights="/else/where.gguf", **local),
    ]
    pool = Pool(agents)
    lms: list[Any] = [pool.lm(name) for name in pool]
    limiters = [lm.engine.caller.limiter for lm in lms]
    # Of all agents, the ones that come later included: the LM of a is made and used before.
    assert [limiter.limit for limiter in limiters] == [2, 2, 2, 9, 9, None, 1, 1]
    assert len({id(limiter) for limiter in limiters}) == 4
