from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.calls import (
    AgentCalls,
    Budget,
    CallEstimate,
    Calls,
    CallStore,
    Ledger,
    budget_share,
    call_scope,
    current_scope,
    entered,
    spending_under,
)
from moa_dspy.calls.scope import DeadlineError, waiting_for_budget
from moa_dspy.errors import BudgetReachedError, StudyError

CALLER = AgentCalls("a", "served/a", usd_per_completion_token=0.5)


def respond() -> dict[str, Any]:
    return {"text": "answer", "usage": {"input_tokens": 4, "output_tokens": 3}}


def ask(calls: Calls, number: int) -> None:
    request = calls.prepare(CALLER, {"number": number, "config": {"max_tokens": 10}})
    calls.answer(request, respond)


def made(*ledgers: Ledger) -> list[int]:
    return [ledger.spending.made for ledger in ledgers]


def test_a_call_is_counted_by_the_ledger_of_its_calls_and_by_that_of_the_scope() -> None:
    calls, scoped = Calls(), Ledger()
    ask(calls, 0)
    with spending_under(scoped):
        for number in (1, 2, 2):
            ask(calls, number)
    ask(calls, 2)
    own = calls.ledger.spending
    assert (own.made, own.reused, own.tokens, own.usd) == (3, 2, 21, 4.5)
    inside = scoped.spending
    assert (inside.made, inside.reused, inside.tokens, inside.usd) == (2, 1, 14, 3.0)


def test_the_smaller_budget_refuses_and_the_other_ledger_is_left_as_it_was() -> None:
    calls, scoped = Calls(ledger=Ledger(Budget(calls=2))), Ledger(Budget(calls=1))
    with spending_under(scoped):
        ask(calls, 0)
        with pytest.raises(BudgetReachedError, match="The budget of 1 calls is reached"):
            ask(calls, 1)
    assert calls.ledger.backend.totals().calls == 1
    ask(calls, 1)
    wide = Ledger(Budget(calls=100))
    with spending_under(wide), pytest.raises(BudgetReachedError, match="The budget of 2 calls"):
        ask(calls, 2)
    assert wide.backend.totals().calls == 0
    assert made(calls.ledger, scoped, wide) == [2, 1, 0]


def test_a_ledger_of_the_scope_needs_a_bound_of_every_call_as_any_other() -> None:
    calls, scoped = Calls(), Ledger(Budget(usd=1.0))
    with spending_under(scoped), pytest.raises(StudyError, match=r"`budget\.usd` needs an upper"):
        calls.answer(calls.prepare(CALLER, {"number": 1}), respond)
    assert calls.ledger.backend.totals().calls == 0


def test_a_failed_call_is_counted_in_every_ledger() -> None:
    calls, scoped = Calls(), Ledger()

    def fail() -> dict[str, Any]:
        raise OSError("down")

    with spending_under(scoped), pytest.raises(OSError, match="down"):
        calls.answer(calls.prepare(CALLER, {"number": 1}), fail)
    assert made(calls.ledger, scoped) == [1, 1]


def test_scopes_add_up_and_each_has_its_own_budget() -> None:
    calls, outer, inner = Calls(), Ledger(Budget(calls=3)), Ledger(Budget(calls=1))
    with spending_under(outer):
        ask(calls, 0)
        with spending_under(inner):
            ask(calls, 1)
            with pytest.raises(BudgetReachedError, match="The budget of 1 calls"):
                ask(calls, 2)
        ask(calls, 2)
        with pytest.raises(BudgetReachedError, match="The budget of 3 calls"):
            ask(calls, 3)
    assert made(calls.ledger, outer, inner) == [3, 3, 1]


def test_a_share_keeps_a_part_of_every_limit_back() -> None:
    calls = Calls(ledger=Ledger(Budget(calls=10)))
    with spending_under(calls.ledger, share=0.8):
        for number in range(8):
            ask(calls, number)
        with pytest.raises(
            BudgetReachedError, match=r"10 calls is reached \(this stage may use 80% of it\)"
        ):
            ask(calls, 8)
    for number in (8, 9):
        ask(calls, number)
    # Under a share a ledger still counts a call once.
    assert made(calls.ledger) == [10]


def test_a_nested_share_never_widens_the_one_around_it() -> None:
    ledger = Ledger()
    assert budget_share(ledger) == 1.0
    with spending_under(ledger, share=0.5):
        with spending_under(ledger, share=0.8):
            assert budget_share(ledger) == 0.5
        with spending_under(ledger, share=0.25):
            assert budget_share(ledger) == 0.25
        assert budget_share(ledger) == 0.5
    assert budget_share(ledger) == 1.0


def test_a_scope_of_one_call_keeps_the_ledgers_around_it() -> None:
    calls, scoped = Calls(), Ledger()
    with call_scope() as outer, spending_under(scoped):
        ask(calls, 0)
        with call_scope(example="e") as inner:
            ask(calls, 1)
    assert (len(outer.log), len(inner.log)) == (1, 1)
    assert made(scoped) == [2]


def test_two_searches_on_one_pool_at_the_same_time_have_budgets_of_their_own() -> None:
    calls, start = Calls(), threading.Barrier(2)
    ledgers = [Ledger(Budget(calls=30)), Ledger(Budget(calls=50))]

    def search(place: int) -> int:
        n_refused = 0
        with spending_under(ledgers[place]):
            start.wait(60)
            for number in range(100):
                try:
                    ask(calls, 1000 * place + number)
                except BudgetReachedError:
                    n_refused += 1
        return n_refused

    with ThreadPoolExecutor(2) as threads:
        refused = list(threads.map(search, range(2)))
    assert refused == [70, 50]
    assert made(*ledgers, calls.ledger) == [30, 50, 80]


def test_tasks_inherit_the_ledgers_and_do_not_mix_them() -> None:
    calls, ledgers = Calls(), [Ledger(), Ledger()]

    async def arespond() -> dict[str, Any]:
        await asyncio.sleep(0)
        return respond()

    async def aask(number: int) -> None:
        await calls.aanswer(calls.prepare(CALLER, {"number": number}), arespond)

    async def search(place: int) -> None:
        with spending_under(ledgers[place]):
            await asyncio.gather(*(aask(10 * place + n) for n in range(2 + place)))

    async def main() -> None:
        await asyncio.gather(search(0), search(1))

    asyncio.run(main())
    assert made(*ledgers, calls.ledger) == [2, 3, 5]


def test_a_thread_inherits_the_ledgers_by_its_context_or_by_entering_the_scope() -> None:
    calls, scoped = Calls(), Ledger()

    def enter_and_ask() -> None:
        with entered(scope):
            ask(calls, 2)

    with ThreadPoolExecutor(1) as threads, spending_under(scoped):
        scope = current_scope()
        threads.submit(ask, calls, 0).result()
        threads.submit(copy_context().run, ask, calls, 1).result()
        threads.submit(enter_and_ask).result()
    assert made(scoped, calls.ledger) == [2, 3]


def test_a_ledger_in_a_store_counts_what_a_ledger_in_memory_counts(tmp_path: Path) -> None:
    store = CallStore(tmp_path / "calls.sqlite")
    kept, in_memory = Ledger(Budget(calls=2), backend=store.budget("study")), Ledger()
    calls = Calls(store, ledger=in_memory)
    with spending_under(kept):
        for number in range(2):
            ask(calls, number)
        with pytest.raises(BudgetReachedError, match="The budget of 2 calls"):
            ask(calls, 2)
    assert made(kept, in_memory) == [2, 2]
    assert in_memory.backend.totals().calls == 2
    assert store.budget("study").totals().calls == 2
    store.close()


# A request of `ask` has 39 bytes and 10 tokens of answer: 49 tokens are reserved, and 7 are used.
# A budget of 100 tokens has room for the 8th call (49 used, 49 reserved), and not for the 9th.
@pytest.mark.parametrize("is_stored", [False, True])
def test_a_study_uses_its_budget_up_however_many_calls_are_made_at_once(
    tmp_path: Path, is_stored: bool
) -> None:
    store = CallStore(tmp_path / "calls.sqlite") if is_stored else None
    backend = None if store is None else store.budget("study")
    calls, ledger = Calls(store), Ledger(Budget(tokens=100), backend=backend)

    def slow() -> dict[str, Any]:
        time.sleep(0.02)
        return respond()

    def is_made(number: int) -> bool:
        request = calls.prepare(CALLER, {"number": number, "config": {"max_tokens": 10}})
        try:
            calls.answer(request, slow)
        except BudgetReachedError:
            return False
        return True

    with spending_under(ledger), waiting_for_budget(), ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(copy_context().run, is_made, number) for number in range(10)]
        assert sum(future.result() for future in asked) == 8
    assert (ledger.spending.made, ledger.spending.tokens) == (8, 56)
    if store is not None:
        store.close()


def test_coroutines_wait_for_room_in_the_budget_too() -> None:
    calls, ledger = Calls(), Ledger(Budget(tokens=100))

    async def slow() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return respond()

    async def main() -> list[Any]:
        requests = (
            calls.prepare(CALLER, {"number": n, "config": {"max_tokens": 10}}) for n in range(10)
        )
        asked = [calls.aanswer(request, slow) for request in requests]
        return await asyncio.gather(*asked, return_exceptions=True)

    with spending_under(ledger), waiting_for_budget():
        got = asyncio.run(main())
    assert sum(isinstance(one, BudgetReachedError) for one in got) == 2
    assert ledger.spending.made == 8


@pytest.mark.parametrize("inner", [0, 1])
def test_a_call_made_by_a_call_in_flight_does_not_wait_for_it(inner: int) -> None:
    # The other thread asks for the same as the inner call, waits, and must not hold it up.
    calls, ledger, is_sent = Calls(), Ledger(Budget(tokens=60)), threading.Event()

    def nested() -> dict[str, Any]:
        is_sent.set()
        time.sleep(0.05)
        with pytest.raises(BudgetReachedError, match="60 tokens"):
            ask(calls, 1 + inner)
        return respond()

    def outer() -> None:
        request = calls.prepare(CALLER, {"number": 0, "config": {"max_tokens": 10}})
        calls.answer(request, nested)

    with spending_under(ledger), waiting_for_budget(), ThreadPoolExecutor(1) as threads:
        running = threads.submit(copy_context().run, outer)
        assert is_sent.wait(60)
        ask(calls, 1)
        running.result(60)
    assert ledger.spending.made == 2


def test_a_wait_for_room_ends_with_the_deadline_or_the_caller() -> None:
    calls, ledger, cancelled = Calls(), Ledger(Budget(tokens=60)), threading.Event()
    ledger.reserve(CallEstimate(tokens=20))  # never settled
    with spending_under(ledger), waiting_for_budget():
        soon = time.monotonic() + 0.1
        with call_scope(deadline=soon), pytest.raises(BudgetReachedError, match="60 tokens"):
            ask(calls, 0)
        assert time.monotonic() >= soon
        threading.Timer(0.1, cancelled.set).start()
        stopped = "its caller has stopped waiting"
        with call_scope(cancelled=cancelled), pytest.raises(DeadlineError, match=stopped):
            ask(calls, 0)
    with spending_under(ledger), pytest.raises(BudgetReachedError, match="60 tokens"):
        ask(calls, 0)
