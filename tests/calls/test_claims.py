"""Claims are held by the living, whatever a clock says."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from moa_dspy.calls import Call, CallStore
from moa_dspy.calls.timeout import poll_seconds

MakeCall = Callable[..., Call]
Place = Path | str
LEASE = 1.0
HOLDER = """
import sys, time
from moa_dspy.calls import CallStore
store = CallStore(sys.argv[1], lease_seconds=3600)
print(store.claim("k"), flush=True)
time.sleep(3600)
"""


@pytest.fixture
def stores(place: Place) -> Iterator[Callable[[float], CallStore]]:
    """Return what opens the same store again, as another process does."""
    opened = []

    def make(lease_seconds: float = LEASE) -> CallStore:
        opened.append(CallStore(place, lease_seconds=lease_seconds))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def waits_until_claimed(store: CallStore, key: str) -> bool:
    """Try as a waiter does, for at most a minute."""
    last = time.monotonic() + 60
    while not store.claim(key):
        if time.monotonic() > last:
            return False
        time.sleep(0.02)
    return True


def jump_by(store: CallStore, seconds: str) -> None:
    """Change every lease as if it had been taken by another time of day."""
    change = f"UPDATE owners SET expires = expires {seconds}"
    store.database.transact(lambda session: session.execute(change))


def test_one_holds_a_claim_and_the_next_gets_it_when_it_is_given_back(
    stores: Callable[..., CallStore],
) -> None:
    store, other_store = stores(), stores()
    assert store.claim("k")
    assert [other_store.claim("k"), store.claim("k"), other_store.claim("other")] == [
        False,
        False,
        True,
    ]
    store.release("k")
    store.release("k")  # not held: nothing happens
    other_store.release("k")
    assert other_store.claim("k")


def test_an_answer_gives_its_claim_back_and_a_failure_does_not(
    stores: Callable[..., CallStore], make_call: MakeCall
) -> None:
    store, other_store = stores(), stores()
    call = make_call()
    assert store.claim(call.key)
    store.put(make_call(response=None, failure="down"))
    assert not other_store.claim(call.key)
    store.put(call)
    assert other_store.claim(call.key)
    assert other_store.get(call.key) == call


def test_of_many_threads_and_stores_one_gets_the_claim(stores: Callable[..., CallStore]) -> None:
    all_stores, start = [stores() for _ in range(4)], threading.Barrier(16)

    def claim(number: int) -> bool:
        start.wait()
        return all_stores[number % 4].claim("k")

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(claim, range(16))) == 1


def test_a_closed_store_holds_nothing(stores: Callable[..., CallStore]) -> None:
    store, other_store = stores(3600), stores(3600)
    assert store.claim("k")
    store.close()
    assert other_store.claim("k")


def test_a_claim_outlasts_its_lease_while_its_owner_lives(
    stores: Callable[..., CallStore],
) -> None:
    store, other_store = stores(), stores()
    assert store.claim("k")
    beats = "SELECT beat FROM owners"
    last = time.monotonic() + 60
    while other_store.database.rows(beats)[0][0] < 5 and time.monotonic() < last:
        assert not other_store.claim("k")
        time.sleep(0.02)
    assert other_store.database.rows(beats)[0][0] >= 5, "more than a lease has passed"


def test_a_claim_is_free_a_lease_after_its_owners_last_beat(
    stores: Callable[..., CallStore],
) -> None:
    store, other_store = stores(), stores()
    assert store.claim("k")
    store.owner.stop()
    assert waits_until_claimed(other_store, "k")
    # Who comes back later neither loses its way nor takes the claim away.
    store.release("k")
    assert not store.claim("k")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a lease is waited for")
def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(place: Place) -> None:
    command = [sys.executable, "-c", HOLDER, str(place)]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        heir = CallStore(place, lease_seconds=3600)
        assert not heir.claim("k")
        holder.kill()
    assert heir.claim("k")
    heir.close()


def test_a_clock_of_a_machine_that_jumps_makes_no_living_owner_of_a_file_dead(
    tmp_path: Path,
) -> None:
    place = tmp_path / "calls.sqlite"
    store, other_store = (CallStore(place, lease_seconds=3600) for _ in range(2))
    assert store.claim("k")
    for jump in ("- 1e9", "+ 1e9"):
        jump_by(other_store, jump)
        assert not other_store.claim("k")
    store.close()
    other_store.close()


def test_a_servers_clock_that_was_set_back_keeps_no_dead_owner_alive(postgresql_url: str) -> None:
    store, other_store = (CallStore(postgresql_url, lease_seconds=LEASE) for _ in range(2))
    assert store.claim("k")
    store.owner.stop()
    jump_by(other_store, "+ 1e9")
    assert waits_until_claimed(other_store, "k")
    store.close()
    other_store.close()


def test_a_claim_left_long_ago_is_free_at_once_by_the_servers_clock(postgresql_url: str) -> None:
    store, other_store = (CallStore(postgresql_url, lease_seconds=3600) for _ in range(2))
    assert store.claim("k")
    store.owner.stop()
    jump_by(other_store, "- 7200")
    assert other_store.claim("k")
    store.close()
    other_store.close()


def test_pauses_grow_from_milliseconds_to_half_a_second_and_are_never_even() -> None:
    found = list(islice(poll_seconds(), 60))
    assert 0.0025 <= found[0] <= 0.005
    assert all(0.25 <= pause <= 0.5 for pause in found[-20:])
    assert len(set(found)) == 60
