"""A task that is cancelled while a thread works for it loses nothing and keeps nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.calls import AgentCalls, Call, CallEstimate, Calls, CallStore, Ledger, Spending
from moa_dspy.calls.budget import MemoryBudget

CALLER = AgentCalls("a", "served/a")
REQUEST = {"messages": ["hello"]}


class Slow:
    """Somebody else's work, which waits to be let go.

    Attributes:
        begun: Set when it is asked for.
        go: To be set.
    """

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.begun.set()
        assert self.go.wait(60)


class SlowStore:
    """A shared shelf whose claims, or whose puts, take as long as they are made to."""

    def __init__(
        self, store: CallStore, *, claim: Slow | None = None, put: Slow | None = None
    ) -> None:
        self._store, self._claim, self._put = store, claim, put

    def get(self, key: str, /) -> Call | None:
        return self._store.get(key)

    def put(self, call: Call, /) -> Call:
        if self._put is not None:
            self._put.wait()
        return self._store.put(call)

    def claim(self, key: str, /) -> bool:
        if self._claim is not None:
            self._claim.wait()
        return self._store.claim(key)

    def release(self, key: str, /) -> None:
        self._store.release(key)


class SlowBudget(MemoryBudget):
    """A backend whose reservations take as long as they are made to."""

    def __init__(self, slow: Slow) -> None:
        super().__init__()
        self._slow = slow

    def reserve(
        self, estimate: CallEstimate, *, limits: Mapping[str, float], key: str | None
    ) -> str | None:
        self._slow.wait()
        return super().reserve(estimate, limits=limits, key=key)


async def respond() -> dict[str, Any]:
    return {"text": "answer", "usage": {"input_tokens": 3, "output_tokens": 2}}


def cancel_during(slow: Slow, calls: Calls) -> None:
    """Ask, and cancel the asking task while ``slow`` is at work."""

    async def main() -> None:
        task = asyncio.create_task(calls.aanswer(calls.prepare(CALLER, REQUEST), respond))
        await asyncio.to_thread(slow.begun.wait, 60)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done(), "a thread cannot be stopped, so it is waited for"
        slow.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calls.sqlite"


@pytest.fixture
def key() -> Callable[[], str]:
    return lambda: Calls().prepare(CALLER, REQUEST).key


def test_a_claim_that_was_taken_for_a_cancelled_task_is_given_back(
    path: Path, key: Callable[[], str]
) -> None:
    slow, store = Slow(), CallStore(path)
    cancel_during(slow, Calls(SlowStore(store, claim=slow)))
    other = CallStore(path)
    assert other.claim(key())
    other.close()
    store.close()


def test_a_reservation_that_was_made_for_a_cancelled_task_is_taken_back(path: Path) -> None:
    slow, store = Slow(), CallStore(path)
    book = SlowBudget(slow)
    cancel_during(slow, Calls(store, ledger=Ledger(backend=book)))
    assert book.totals().calls == 0
    store.close()


def test_an_answer_that_arrived_before_its_task_was_cancelled_is_stored_and_settled(
    path: Path, key: Callable[[], str]
) -> None:
    slow, store, book = Slow(), CallStore(path), MemoryBudget()
    cancel_during(slow, Calls(SlowStore(store, put=slow), ledger=Ledger(backend=book)))
    reopened = CallStore(path)
    stored = reopened.get(key())
    assert stored is not None
    assert stored.failure is None
    spent = book.spending()
    assert (spent.made, book.totals().calls) == (1, 1)
    assert spent == Spending(made=1, tokens=5, seconds=spent.seconds)
    assert reopened.claim(key())
    reopened.close()
    store.close()
