"""A budget in a store holds for all workers together, and through every crash."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moa_dspy.calls import Budget, Call, CallEstimate, CallStore, Ledger, Spending
from moa_dspy.errors import BudgetReachedError

MakeCall = Callable[..., Call]
Place = Path | str
LEASE = 0.5

# Reserves until refused, and settles each at what it says; then, or at once, it dies.
SPENDER = """
import os, signal, sys
from moa_dspy.calls import Budget, CallStore, CallEstimate, Ledger
from moa_dspy.errors import BudgetReachedError
store = CallStore(sys.argv[1], lease_seconds=0.5)
ledger = Ledger(Budget(tokens=1000), backend=store.budget("s"))
print("ready", flush=True)
sys.stdin.readline()
if sys.argv[2] == "die":
    ledger.reserve(CallEstimate(tokens=300), key=sys.argv[3])
    print("reserved", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
granted = 0
while True:
    try:
        ticket = ledger.reserve(CallEstimate(tokens=10))
    except BudgetReachedError:
        break
    granted += 1
    ledger.settle(ticket, tokens=10, usd=0.5, seconds=0.0)
print(granted)
"""


def spender(place: Place, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SPENDER, str(place), *arguments]
    process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def die(place: Place, key: str) -> None:
    process = spender(place, "die", key)
    out, _ = process.communicate("\n", timeout=60)
    assert out == "reserved\n"


@pytest.fixture
def store(place: Place) -> Iterator[CallStore]:
    opened = CallStore(place, lease_seconds=LEASE)
    yield opened
    opened.close()


@pytest.mark.slow
def test_processes_together_spend_the_budget_and_not_a_token_more(
    place: Place, store: CallStore
) -> None:
    spenders = [spender(place, "spend") for _ in range(4)]
    for process in spenders:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    granted = [int(process.communicate(timeout=60)[0]) for process in spenders]
    assert sum(granted) == 100
    spent = replace(store.budget("s").spending(), seconds=0.0)
    assert spent == Spending(made=100, tokens=1000, usd=50.0)


@pytest.mark.slow
def test_what_a_killed_process_reserved_stays_charged_while_nobody_knows_what_it_cost(
    place: Place, store: CallStore
) -> None:
    die(place, "unknown")
    ledger = Ledger(Budget(tokens=1000), backend=store.budget("s"))
    assert ledger.backend.totals().tokens == 300
    with pytest.raises(BudgetReachedError, match="1000 tokens"):
        ledger.reserve(CallEstimate(tokens=701))
    ledger.reserve(CallEstimate(tokens=700))


@pytest.mark.slow
def test_what_a_killed_process_reserved_is_charged_at_its_cost_once_the_answer_is_stored(
    place: Place, store: CallStore, make_call: MakeCall
) -> None:
    call = make_call()  # 5 tokens, half a dollar
    die(place, call.key)
    ledger = Ledger(Budget(tokens=1000), backend=store.budget("s"))
    store.put(replace(call, response=None, failure="down"))
    with pytest.raises(BudgetReachedError, match="1000 tokens"):
        ledger.reserve(CallEstimate(tokens=995))  # a failure says nothing of the other request
    store.put(call)
    waits_until_reserved(ledger, CallEstimate(tokens=995))
    assert replace(ledger.spending, seconds=0.0) == Spending(made=1, tokens=5, usd=0.5)


def waits_until_reserved(ledger: Ledger, estimate: CallEstimate) -> None:
    """Try until the dead process's lease is over, for at most a minute."""
    last = time.monotonic() + 60
    while True:
        try:
            ledger.reserve(estimate)
            return
        except BudgetReachedError:
            assert time.monotonic() < last, "the reservation was never resolved"
            time.sleep(0.02)


def test_what_a_living_process_reserved_is_not_touched(
    store: CallStore, place: Place, make_call: MakeCall
) -> None:
    call = make_call()
    other = CallStore(place, lease_seconds=3600)
    ticket = other.budget("s").reserve(CallEstimate(tokens=300), limits={}, key=call.key)
    assert ticket is not None
    store.put(call)
    assert store.budget("s").resolve() == 0
    other.budget("s").settle(ticket, Spending(made=1, tokens=200))
    assert store.budget("s").totals().tokens == 200
    other.close()


def test_only_the_calls_of_living_processes_are_worth_waiting_for(
    store: CallStore, place: Place
) -> None:
    ledger = Ledger(Budget(tokens=1000), backend=store.budget("s"))
    other = CallStore(place, lease_seconds=3600)
    other.budget("s").reserve(CallEstimate(tokens=300), limits={}, key=None)
    for tokens, may_fit_later in ((701, True), (1001, False)):
        with pytest.raises(BudgetReachedError, match="1000 tokens") as refused:
            ledger.reserve(CallEstimate(tokens=tokens))
        assert refused.value.may_fit_later == may_fit_later
    other.close()  # as if it had died: its call is never settled
    with pytest.raises(BudgetReachedError, match="1000 tokens") as refused:
        ledger.reserve(CallEstimate(tokens=701))
    assert not refused.value.may_fit_later


def test_studies_on_one_store_have_books_of_their_own(store: CallStore) -> None:
    first, second = store.budget("first"), store.budget("second", spent=Spending(made=3, tokens=9))
    first.add(Spending(made=1))
    assert (first.spending(), second.spending()) == (
        Spending(made=1),
        Spending(made=3, tokens=9),
    )
    # A book that is there already goes on; `spent` is where a new one starts.
    assert store.budget("second", spent=Spending(made=100)).spending().made == 3
    second.restart()
    assert (first.spending(), second.spending()) == (Spending(made=1), Spending())


# The time since the last beat of anybody, and whether it is counted: the lease is 0.5 s here and
# a test may be slow, so jumps of thousands of seconds are told from none.
@pytest.mark.parametrize(
    ("seconds_ago", "lease", "is_counted"),
    [
        (5000.0, 1e6, True),  # somebody was at work
        (5000.0, 1000.0, False),  # nobody was: a pause between two runs
        (-5000.0, 1e6, False),  # the clock was set back
    ],
)
def test_time_counts_while_somebody_works_on_the_study(
    place: Place, seconds_ago: float, lease: float, is_counted: bool
) -> None:
    store = CallStore(place, lease_seconds=lease)
    ledger = Ledger(Budget(seconds=4000), backend=store.budget("s"))
    assert ledger.spending.seconds == 0.0
    ledger.settle(ledger.reserve(CallEstimate()), tokens=0, usd=0.0, seconds=0.0)
    change = "UPDATE spending SET ticked_at = ticked_at - ?"
    store.database.transact(lambda session: session.execute(change, (seconds_ago,)))
    assert (ledger.spending.seconds >= 5000) == is_counted
    if is_counted:
        with pytest.raises(BudgetReachedError, match="4000 seconds"):
            ledger.reserve(CallEstimate())
    else:
        ledger.reserve(CallEstimate())
    assert (ledger.spending.seconds >= 5000) == is_counted
    store.close()


def test_time_counts_during_a_long_call_too(store: CallStore) -> None:
    store.budget("s").reserve(CallEstimate(), limits={}, key=None)
    counted = "SELECT seconds FROM spending WHERE study = 's'"
    book = store.budget("s")
    ticket = book.reserve(CallEstimate(), limits={}, key=None)
    last = time.monotonic() + 60
    (before,) = store.database.rows(counted)[0]
    # Nothing is reserved or settled: only beats can move it.
    while store.database.rows(counted)[0][0] == before:
        assert time.monotonic() < last, "time stood still"
        time.sleep(0.02)
    assert ticket is not None
