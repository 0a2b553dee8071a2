from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from moa_dspy.calls import Call, CallStore
from moa_dspy.errors import StoreError

MakeCall = Callable[..., Call]

WRITER = """
import sys
from pathlib import Path
from moa_dspy.calls import Call, CallStore
store, who = CallStore(Path(sys.argv[1])), sys.argv[2]
for n in range(int(sys.argv[3])):
    store.put(Call(f"{n}", who, "i", 0, "{}", f'"{who}"', 1, 1, 0.0, 0.0))
    print(n, flush=True)
sys.stdin.read()
"""


def writer(path: Path, who: str, n_calls: int) -> subprocess.Popen[str]:
    """Start a process that stores calls, says which, and then waits for its input to end."""
    command = [sys.executable, "-c", WRITER, str(path), who, str(n_calls)]
    return subprocess.Popen(
        command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
    )


def test_a_stored_call_comes_back_unchanged_also_from_a_reopened_file(
    tmp_path: Path, make_call: MakeCall
) -> None:
    path = tmp_path / "new" / "what?#%20.sqlite"  # a name that is no part of an URL
    store = CallStore(path)
    call = make_call("Größe\u2028?", sample=2, usd=0.1 + 0.2)
    store.put(call)
    assert store.get(call.key) == call
    store.close()
    assert path.exists()
    reopened = CallStore(path)
    assert reopened.get(call.key) == call
    assert (len(reopened), list(reopened)) == (1, [call])
    assert reopened.get("other") is None


def test_the_first_answer_stays(tmp_path: Path, make_call: MakeCall) -> None:
    first = make_call()
    path = tmp_path / "calls.sqlite"
    store = CallStore(path)
    store.put_all([first, replace(first, response='"later"')])
    store.put(replace(first, response=None, failure="later"))
    assert CallStore(path).get(first.key) == store.get(first.key) == first


def test_a_failure_gives_way_to_a_later_failure_and_then_to_an_answer(
    tmp_path: Path, make_call: MakeCall
) -> None:
    store = CallStore(tmp_path / "calls.sqlite")
    answer = make_call()
    for stored in (replace(answer, response=None, failure=f"{n}") for n in range(2)):
        store.put(stored)
        assert store.get(stored.key) == stored
    store.put(answer)
    assert (store.get(answer.key), len(store)) == (answer, 1)


def test_an_answer_of_another_process_is_seen_at_once(tmp_path: Path, make_call: MakeCall) -> None:
    ours, theirs = (CallStore(tmp_path / "calls.sqlite") for _ in range(2))
    call = make_call()
    assert ours.get(call.key) is None
    theirs.put(call)
    assert ours.get(call.key) == call


def test_storing_nothing_is_fine(tmp_path: Path) -> None:
    store = CallStore(tmp_path / "calls.sqlite")
    store.put_all([])
    assert list(store) == []


def test_threads_share_a_store(tmp_path: Path, make_call: MakeCall) -> None:
    store = CallStore(tmp_path / "calls.sqlite")
    calls = [make_call(f"{n}") for n in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(store.put, calls * 2))
        assert list(threads.map(lambda call: store.get(call.key), calls)) == calls
    assert len(store) == 40


def test_a_file_can_be_made_by_many_at_the_same_moment(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def make(path: Path) -> int:
        start.wait()
        return len(CallStore(path))

    with ThreadPoolExecutor(8) as threads:
        for number in range(3):
            assert list(threads.map(make, [tmp_path / f"{number}.sqlite"] * 8)) == [0] * 8


def test_two_processes_write_one_file_and_the_first_answer_to_each_key_stays(
    tmp_path: Path,
) -> None:
    path = tmp_path / "calls.sqlite"
    writers = [writer(path, who, 30) for who in ("left", "right")]
    for process in writers:
        process.communicate(timeout=60)
        assert process.returncode == 0
    stored = list(CallStore(path))
    # Both wrote the keys 0..29: one call each is kept, whole.
    assert sorted(int(call.key) for call in stored) == list(range(30))
    assert all(call.response == f'"{call.agent}"' for call in stored)


def test_a_killed_process_loses_no_call_that_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    process = writer(path, "doomed", 1_000_000)
    assert process.stdout is not None
    assert process.stdin is not None
    answered = [int(process.stdout.readline()) for _ in range(25)]
    process.kill()
    answered += [int(line) for line in process.stdout.read().splitlines()]
    process.stdin.close()
    process.stdout.close()
    assert process.wait(60) == -signal.SIGKILL
    stored = {int(call.key) for call in CallStore(path)}
    assert set(answered) <= stored
    assert len(stored) <= len(answered) + 1, "at most the call that was being announced"


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    path.write_bytes(b"not a database, " * 1000)
    with pytest.raises(StoreError, match=r"calls\.sqlite cannot be used: file is not a database"):
        CallStore(path)


def test_a_damaged_file_is_an_error_of_the_store(tmp_path: Path, make_call: MakeCall) -> None:
    path = tmp_path / "calls.sqlite"
    store = CallStore(path)
    store.put_all(make_call(f"{n}", response="x" * 2000) for n in range(50))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    store.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"cannot be used: .*malformed"):
        list(CallStore(path))


def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    CallStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(StoreError, match="has schema 7, but this version reads 1"):
        CallStore(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (7,)
    connection.close()


@pytest.mark.parametrize("place", ["file/calls.sqlite", "folder"])
def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=f"call store .*{place} cannot be used"):
        CallStore(tmp_path / place)
