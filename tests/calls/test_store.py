from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import GeneratorType

import pytest

from moa_dspy.calls import Call, CallStore, PaidTwice
from moa_dspy.calls.store.store import RecentCalls
from moa_dspy.errors import StoreError

MakeCall = Callable[..., Call]
Place = Path | str

WRITER = """
import sys
from moa_dspy.calls import Call, CallStore
store, who = CallStore(sys.argv[1]), sys.argv[2]
for n in range(int(sys.argv[3])):
    store.put(Call(f"{n}", who, "i", 0, "{}", f'"{who}"', 1, 1, 0.5, 0.0))
    print(n, flush=True)
sys.stdin.read()
"""


def writer(place: Place, name: str, n_calls: int) -> subprocess.Popen[str]:
    """Start a process that stores calls, says which, and then waits for its input to end."""
    command = [sys.executable, "-c", WRITER, str(place), name, str(n_calls)]
    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_stored_call_comes_back_unchanged_also_from_a_reopened_store(
    place: Place, make_call: MakeCall
) -> None:
    store = CallStore(place)
    calls = [
        make_call("Größe\u2028?", sample=2, usd=0.1 + 0.2, attempt=3, time=1790000000.123456),
        make_call("long " * 100_000),
        make_call("x", response='"x"'),
        make_call("y", response=None, failure="ServerError: down"),
    ]
    for call in calls:
        assert store.put(call) == store.get(call.key) == call
    store.close()
    reopened = CallStore(place)
    assert [reopened.get(call.key) for call in calls] == calls
    assert (len(reopened), list(reopened)) == (4, sorted(calls, key=lambda call: call.key))
    assert reopened.get("other") is None
    reopened.close()


def test_a_file_may_have_any_name(tmp_path: Path, make_call: MakeCall) -> None:
    path = tmp_path / "new" / "what?#%20.sqlite"  # a name that is no part of an URL
    CallStore(path).put(make_call())
    assert path.exists()
    assert len(CallStore(f"sqlite:///{tmp_path}/other.sqlite")) == 0
    assert (tmp_path / "other.sqlite").exists()


def test_the_first_answer_stays(place: Place, make_call: MakeCall) -> None:
    first = make_call()
    store = CallStore(place)
    store.put_all([first, replace(first, response='"later"')])
    assert store.put(replace(first, response=None, failure="later")) == first
    assert CallStore(place).get(first.key) == store.get(first.key) == first


def test_a_failure_gives_way_to_a_later_failure_and_then_to_an_answer(
    place: Place, make_call: MakeCall
) -> None:
    store = CallStore(place)
    answer = make_call()
    for stored in (replace(answer, response=None, failure=f"{n}") for n in range(2)):
        assert store.put(stored) == stored
        assert store.get(stored.key) == stored
    assert store.put(answer) == answer
    assert (store.get(answer.key), len(store)) == (answer, 1)


def test_an_answer_that_came_too_late_is_counted_as_paid_twice(
    place: Place, make_call: MakeCall
) -> None:
    store = CallStore(place)
    first = make_call(usd=1.0)
    late = replace(first, response='"late"', usd=0.25)
    store.put(first)
    assert store.paid_twice() == PaidTwice()
    for again in (first, replace(late, response=None, failure="down")):
        store.put(again)  # the same payment, and one that cost nothing
    store.put_all([late])  # a copy from elsewhere is no payment
    assert store.paid_twice() == PaidTwice()
    assert store.put(late) == first
    assert store.paid_twice() == PaidTwice(calls=1, tokens=5, usd=0.25)


def test_what_no_database_takes_as_text_is_escaped_in_a_failure(
    place: Place, make_call: MakeCall
) -> None:
    store = CallStore(place)
    call = make_call(response=None, failure="half \ud83d and \0")
    store.put(call)
    found = CallStore(place).get(call.key)
    assert found is not None
    assert found.failure == "half \\ud83d and \\u0000"


def test_an_answer_of_another_process_is_seen_at_once(place: Place, make_call: MakeCall) -> None:
    store, other_store = (CallStore(place) for _ in range(2))
    call = make_call()
    assert store.get(call.key) is None
    other_store.put(call)
    assert store.get(call.key) == call


def test_iteration_is_in_order_and_holds_no_more_than_a_page(
    place: Place, make_call: MakeCall
) -> None:
    store = CallStore(place)
    calls = sorted((make_call(f"{n}") for n in range(1100)), key=lambda call: call.key)
    store.put_all(calls)
    listed = iter(store)
    assert isinstance(listed, GeneratorType)
    assert next(listed) == calls[0]
    # Nothing is open between two pages: others write, and what they write later is listed.
    last = replace(calls[0], key="z")
    CallStore(place).put(last)
    assert list(listed) == [*calls[1:], last]


def test_memory_for_what_was_read_is_bounded_and_nothing_is_lost(
    place: Place, make_call: MakeCall
) -> None:
    calls = [make_call(f"{n}", response=f'"{"y" * 1000}"') for n in range(20)]
    small = CallStore(place, memory_bytes=5000)  # room for two or three
    small.put_all(calls)
    for _ in range(2):
        assert [small.get(call.key) for call in calls] == calls


def test_of_what_was_read_the_newest_is_kept(make_call: MakeCall) -> None:
    calls = [make_call(f"{n}", response="r" * 2000) for n in range(20)]
    seen = RecentCalls(10_000)  # each needs its text, and less than a thousand bytes besides
    for call in calls:
        seen.add(call)
    kept = [call for call in calls if seen.get(call.key) is not None]
    assert 3 <= len(kept) <= 5
    assert kept == calls[-len(kept) :]


def test_what_is_stored_takes_less_than_its_text(tmp_path: Path, make_call: MakeCall) -> None:
    text = '{"finish_reason":"stop","message":{"parts":[{"text":"a","type":"text"}]}}'
    calls = [make_call(f"{'What is the capital? ' * 50}{n}", response=text) for n in range(500)]
    store = CallStore(tmp_path / "calls.sqlite")
    store.put_all(calls)
    store.close()
    n_bytes = sum(len(call.request) + len(text) for call in calls)
    assert (tmp_path / "calls.sqlite").stat().st_size < n_bytes / 2


def test_storing_nothing_is_fine(place: Place) -> None:
    store = CallStore(place)
    store.put_all([])
    assert list(store) == []


def test_threads_share_a_store(place: Place, make_call: MakeCall) -> None:
    store = CallStore(place)
    calls = [make_call(f"{n}") for n in range(40)]
    with ThreadPoolExecutor(32) as threads:
        list(threads.map(store.put, calls * 2))
        assert list(threads.map(lambda call: store.get(call.key), calls)) == calls
    assert len(store) == 40
    assert store.paid_twice() == PaidTwice()


def test_a_store_can_be_made_by_many_at_the_same_moment(place: Place) -> None:
    start = threading.Barrier(8)

    def make(_: int) -> int:
        start.wait()
        return len(CallStore(place))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(make, range(8))) == [0] * 8


@pytest.mark.slow
def test_two_processes_write_one_store_and_the_first_answer_to_each_key_stays(
    place: Place,
) -> None:
    writers = [writer(place, name, 30) for name in ("left", "right")]
    for process in writers:
        process.communicate(timeout=60)
        assert process.returncode == 0
    store = CallStore(place)
    # Both wrote the keys 0..29: one call each is kept, whole, and one each was in vain.
    assert sorted(int(call.key) for call in store) == list(range(30))
    assert all(call.response == f'"{call.agent}"' for call in store)
    assert store.paid_twice() == PaidTwice(calls=30, tokens=60, usd=15.0)


@pytest.mark.slow
def test_a_killed_process_loses_no_call_that_was_answered(place: Place) -> None:
    process = writer(place, "doomed", 1_000_000)
    assert process.stdout is not None
    assert process.stdin is not None
    answered = [int(process.stdout.readline()) for _ in range(25)]
    process.kill()
    answered += [int(line) for line in process.stdout.read().splitlines()]
    process.stdin.close()
    process.stdout.close()
    assert process.wait(60) == -signal.SIGKILL
    stored = {int(call.key) for call in CallStore(place)}
    assert set(answered) <= stored
    assert len(stored) <= len(answered) + 1, "at most the call that was being announced"


@pytest.mark.parametrize("name", ["file/calls.sqlite", "folder"])
def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=f"call store .*{name} cannot be used"):
        CallStore(tmp_path / name)
