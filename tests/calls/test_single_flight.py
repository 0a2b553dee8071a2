from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from moa_dspy.calls import AgentCalls, Call, Calls

CALLER = AgentCalls("a", "served/a")
SAMPLED = {"messages": ["hello"], "config": {"temperature": 0.7, "max_tokens": 10}}


class Endpoint:
    """Answers and counts."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> dict[str, Any]:
        self.asked += 1
        return {"text": f"answer {self.asked}"}


def never() -> dict[str, Any]:
    raise AssertionError("a request was made")


@pytest.mark.parametrize("n_threads", [16])
def test_threads_that_ask_the_same_at_once_make_one_call(n_threads: int) -> None:
    calls, endpoint = Calls(), Endpoint()
    ask, start = calls.prepare(CALLER, SAMPLED), threading.Barrier(n_threads)

    def work(_: int) -> str | None:
        start.wait()
        return calls.answer(ask, endpoint).response

    with ThreadPoolExecutor(n_threads) as threads:
        answers = set(threads.map(work, range(n_threads)))
    assert (endpoint.asked, len(answers)) == (1, 1)
    assert (calls.ledger.spending.made, calls.ledger.spending.reused) == (1, n_threads - 1)


def test_tasks_that_ask_the_same_at_once_make_one_call() -> None:
    calls, endpoint = Calls(), Endpoint()
    ask = calls.prepare(CALLER, SAMPLED)

    async def send() -> dict[str, Any]:
        await asyncio.sleep(0)
        return endpoint()

    async def work() -> list[Call]:
        return await asyncio.gather(*(calls.aanswer(ask, send) for _ in range(16)))

    assert len({call.response for call in asyncio.run(work())}) == 1
    assert (endpoint.asked, calls.ledger.spending.made, calls.ledger.spending.reused) == (1, 1, 15)


class Overtaken:
    """A memory in which somebody else answers between the look and the leap."""

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.overtake: Any = None

    def get(self, key: str, /) -> Call | None:
        found = self.calls.get(key)
        if found is None and self.overtake is not None:
            overtake, self.overtake = self.overtake, None
            overtake()
        return found

    def put(self, call: Call, /) -> None:
        self.calls[call.key] = call


def test_an_answer_that_landed_just_after_the_look_is_not_asked_for_again() -> None:
    store = Overtaken()
    calls = Calls(store)
    ask = calls.prepare(CALLER, SAMPLED)
    store.overtake = lambda: calls.answer(ask, Endpoint())
    calls.answer(ask, never)

    async def anever() -> dict[str, Any]:
        return never()

    store.calls.clear()
    store.overtake = lambda: calls.answer(ask, Endpoint())
    asyncio.run(calls.aanswer(ask, anever))
    assert calls.ledger.spending.made == 2


def test_a_cancelled_task_leaves_the_way_free_for_the_next() -> None:
    calls, endpoint = Calls(), Endpoint()
    ask = calls.prepare(CALLER, SAMPLED)

    async def hang() -> dict[str, Any]:
        await asyncio.Event().wait()
        return never()

    async def send() -> dict[str, Any]:
        return endpoint()

    async def work() -> Call:
        first = asyncio.create_task(calls.aanswer(ask, hang))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(calls.aanswer(ask, send))
        await asyncio.sleep(0)
        first.cancel()
        return await waiting

    assert asyncio.run(work()).failure is None
    # The cancelled request was on its way: it counts, though nothing came back.
    assert (endpoint.asked, calls.ledger.spending.made) == (1, 2)
