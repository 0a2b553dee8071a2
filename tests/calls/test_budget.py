from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.calls import AgentCalls, Budget, CallEstimate, Calls, CallStore, Ledger, Spending
from moa_dspy.errors import BudgetReachedError, StudyError

MakeLedger = Callable[..., Ledger]


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def make_ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeLedger]:
    """Return what makes a ledger with each kind of book; a promise does not depend on it."""
    if request.param == "memory":
        yield Ledger
        return
    is_file = request.param == "sqlite"
    store = CallStore(
        tmp_path / "calls.sqlite" if is_file else request.getfixturevalue("postgresql_url")
    )
    names = (f"study {number}" for number in count())

    def make(budget: Budget | None = None, *, spent: Spending | None = None) -> Ledger:
        return Ledger(budget, backend=store.budget(next(names), spent=spent))

    yield make
    store.close()


def spend(ledger: Ledger, *, tokens: int = 0, usd: float = 0.0, seconds: float = 0.0) -> None:
    """Make one call that uses all that it may."""
    ticket = ledger.reserve(CallEstimate(tokens, usd))
    ledger.settle(ticket, tokens=tokens, usd=usd, seconds=seconds)


@pytest.mark.parametrize("name", ["calls", "tokens", "usd", "seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_must_be_positive(name: str, value: float) -> None:
    message = rf"`budget\.{name}` must be positive and finite, but got {value}"
    with pytest.raises(StudyError, match=message):
        Budget(**{name: value})  # type: ignore[arg-type]  # nan is no int, which is the point


def test_nothing_is_refused_without_a_limit(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    for _ in range(100):
        spend(ledger, tokens=10**9, usd=1e9)
    assert ledger.spending.made == 100


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        # Each call uses 10 tokens and 0.25 usd: three fit, the fourth would not.
        (Budget(calls=3), "The budget of 3 calls is reached."),
        (Budget(tokens=39), "The budget of 39 tokens is reached."),
        (Budget(usd=0.75), "The budget of 0.75 usd is reached."),
    ],
)
def test_the_call_that_would_go_beyond_a_limit_is_refused_before_it_is_made(
    make_ledger: MakeLedger, budget: Budget, message: str
) -> None:
    ledger = Ledger(budget)
    for _ in range(3):
        spend(ledger, tokens=10, usd=0.25)
    with pytest.raises(BudgetReachedError, match=f"^{message}$"):
        ledger.reserve(CallEstimate(10, 0.25))
    spent = replace(ledger.spending, seconds=0.0)
    assert spent == Spending(made=3, tokens=30, usd=0.75)


def test_a_call_is_refused_when_one_as_slow_as_the_slowest_would_end_too_late(
    make_ledger: MakeLedger,
) -> None:
    # Seconds are said, not waited for: next to none of the 1000 have passed.
    ledger = make_ledger(Budget(seconds=1000))
    for seconds in (10, 500, 1):
        spend(ledger, seconds=seconds)
    spend(ledger, seconds=1001)
    with pytest.raises(BudgetReachedError, match="The budget of 1000 seconds is reached"):
        ledger.reserve(CallEstimate())


def test_calls_in_flight_count_by_their_upper_bound(make_ledger: MakeLedger) -> None:
    small = make_ledger(Budget(calls=1))
    small.reserve(CallEstimate())
    with pytest.raises(BudgetReachedError, match="1 calls"):
        small.reserve(CallEstimate())
    ledger = make_ledger(Budget(tokens=100))
    tickets = [ledger.reserve(CallEstimate(tokens=40)) for _ in range(2)]
    with pytest.raises(BudgetReachedError, match="100 tokens"):
        ledger.reserve(CallEstimate(tokens=40))
    for ticket in tickets:
        ledger.settle(ticket, tokens=5, usd=0.0, seconds=0.0)
    # 10 tokens were really used: 90 are free again.
    ledger.reserve(CallEstimate(tokens=90))
    with pytest.raises(BudgetReachedError, match="100 tokens"):
        ledger.reserve(CallEstimate(tokens=1))


def test_threads_together_never_reserve_more_than_the_limit(make_ledger: MakeLedger) -> None:
    ledger, start = make_ledger(Budget(calls=20, tokens=170)), threading.Barrier(8)

    def work(_: int) -> int:
        start.wait()
        granted = 0
        for _ in range(10):
            try:
                ticket = ledger.reserve(CallEstimate(tokens=10))
            except BudgetReachedError:
                continue
            granted += 1
            ledger.settle(ticket, tokens=10, usd=0.0, seconds=0.0)
        return granted

    with ThreadPoolExecutor(8) as threads:
        granted = sum(threads.map(work, range(8)))
    # 80 attempts of 10 tokens; 17 fit into 170.
    assert (granted, ledger.spending.made, ledger.spending.tokens) == (17, 17, 170)


def test_what_an_earlier_run_spent_counts(make_ledger: MakeLedger) -> None:
    before = Spending(made=4, reused=7, tokens=90, usd=1.0, seconds=60.0)
    assert make_ledger(spent=before).spending == before
    one_left = make_ledger(Budget(calls=5), spent=before)
    spend(one_left)
    with pytest.raises(BudgetReachedError, match="5 calls"):
        one_left.reserve(CallEstimate())
    with pytest.raises(BudgetReachedError, match="100 tokens"):
        make_ledger(Budget(tokens=100), spent=before).reserve(CallEstimate(tokens=11))
    with pytest.raises(BudgetReachedError, match="59 seconds"):
        make_ledger(Budget(seconds=59), spent=before).reserve(CallEstimate())


def test_reuse_is_counted_and_free(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(Budget(calls=1))
    for _ in range(3):
        ledger.count_reuse()
    spend(ledger)
    assert (ledger.spending.made, ledger.spending.reused) == (1, 3)


def test_time_runs_from_the_first_call_on(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    assert ledger.spending.seconds == 0.0
    spend(ledger)
    assert ledger.spending.seconds > 0.0


def test_a_reservation_is_settled_once(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(Budget(tokens=100))
    ticket = ledger.reserve(CallEstimate(tokens=90))
    for _ in range(2):
        ledger.settle(ticket, tokens=40, usd=0.25, seconds=0.0)
    assert replace(ledger.spending, seconds=0.0) == Spending(made=1, tokens=40, usd=0.25)


def test_a_call_that_was_not_made_costs_nothing(make_ledger: MakeLedger) -> None:
    ledger = make_ledger(Budget(calls=1))
    ledger.cancel(ledger.reserve(CallEstimate(tokens=90)))
    assert replace(ledger.spending, seconds=0.0) == Spending()
    ledger.reserve(CallEstimate(tokens=90))


@pytest.mark.parametrize("budget", [Budget(tokens=10**9), Budget(usd=1e9)])
def test_a_call_without_an_upper_bound_is_refused_where_one_is_needed(
    make_ledger: MakeLedger, budget: Budget
) -> None:
    unbounded = CallEstimate(tokens=5, usd=0.1, is_bounded=False)
    with pytest.raises(StudyError, match=r"`budget\.(tokens|usd)` needs .* without `max_tokens`"):
        make_ledger(budget).reserve(unbounded)
    make_ledger(Budget(calls=1, seconds=1e9)).reserve(unbounded)


def test_a_request_without_max_tokens_is_refused_before_it_is_sent() -> None:
    calls = Calls(ledger=Ledger(Budget(usd=1.0)))
    ask = calls.prepare(AgentCalls("a", "served/a"), {"messages": ["hello"], "config": {}})

    def never() -> dict[str, Any]:
        raise AssertionError("a request was made")

    with pytest.raises(
        StudyError, match=r"`budget\.usd` needs .* without `max_tokens`; set `max_tokens`"
    ):
        calls.answer(ask, never)
    assert calls.store.get(ask.key) is None
