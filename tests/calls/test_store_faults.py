"""What goes wrong under a store has a stated end, and no answer that was paid for is lost."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moa_dspy.calls import AgentCalls, Call, Calls, CallStore
from moa_dspy.calls.store.database import Session
from moa_dspy.cli import app
from moa_dspy.errors import StoreError
from tests.postgresql import PostgreSQLServer

MakeCall = Callable[..., Call]
CALLER = AgentCalls("a", "served/a")


def _nothing() -> None:
    pass


class Endpoint:
    """Answers with a random text, which nothing can compress, and counts.

    Attributes:
        during: What happens while it answers.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.during: Callable[[], object] = _nothing

    def __call__(self) -> dict[str, Any]:
        self.asked += 1
        self.during()
        return {"text": os.urandom(20_000).hex()}


def check_that_nothing_is_lost(
    store: CallStore,
    place: Path | str,
    *,
    break_: Callable[[], object],
    mend: Callable[[], object],
    match: str,
) -> None:
    """Break the store while a call is on its way, mend it later, and look at every step."""
    calls, endpoint = Calls(store), Endpoint()

    def answer(number: int) -> Call:
        return calls.answer(calls.prepare(CALLER, {"number": number}), endpoint)

    answer(0)
    endpoint.during = break_
    paid = answer(1)
    endpoint.during = _nothing
    # What was paid for is handed out all the same, and known from then on.
    assert (paid.failure, answer(1)) == (None, paid)
    # Nothing more is paid for: the run stops.
    for _ in range(2):
        with pytest.raises(StoreError, match=match):
            answer(2)
    assert endpoint.asked == 2
    mend()
    answer(2)
    assert endpoint.asked == 3
    reopened = CallStore(place)
    assert (reopened.get(paid.key), len(reopened)) == (paid, 3)
    assert reopened.database.rows("SELECT count(*) FROM claims")[0][0] == 0
    reopened.close()
    store.close()


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    place = tmp_path / "calls.sqlite"
    store = CallStore(place)

    def limit(n_pages: int) -> None:
        # Of this connection, which a single thread gets again and again.
        store.database.rows(f"PRAGMA max_page_count = {n_pages}")

    check_that_nothing_is_lost(
        store,
        place,
        break_=lambda: limit(store.database.rows("PRAGMA page_count")[0][0]),
        mend=lambda: limit(1_000_000),
        match="cannot be used: database or disk is full",
    )


def test_a_file_that_stays_locked_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    place = tmp_path / "calls.sqlite"
    store = CallStore(place, timeout_seconds=0.05)
    with closing(sqlite3.connect(place, isolation_level=None, check_same_thread=False)) as other:
        check_that_nothing_is_lost(
            store,
            place,
            break_=lambda: other.execute("BEGIN EXCLUSIVE"),
            mend=lambda: other.execute("ROLLBACK"),
            match="cannot be used: database is locked",
        )


def test_a_server_that_stays_away_stops_the_run_and_loses_nothing(
    postgresql: PostgreSQLServer, postgresql_url: str
) -> None:
    store = CallStore(postgresql_url, timeout_seconds=0.05)
    check_that_nothing_is_lost(
        store,
        postgresql_url,
        break_=postgresql.stop,
        mend=postgresql.start,
        match="cannot be used: .*(refused|closed)",
    )


def test_an_answer_that_can_never_be_written_is_not_forgotten_in_silence(
    tmp_path: Path, make_call: MakeCall
) -> None:
    place = tmp_path / "calls.sqlite"
    store = CallStore(place, timeout_seconds=0.05)
    with closing(sqlite3.connect(place, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        store.put(make_call())
        with pytest.raises(StoreError, match="database is locked"):
            store.flush()
        with pytest.raises(
            StoreError, match=r"database is locked.* in another file \(1\)\."
        ) as caught:
            store.close()
    # The error says where the answer is, and how it comes into the store.
    (kept,) = re.findall(r"--import (\S+)`", str(caught.value))
    done = CliRunner().invoke(app, ["calls", str(place), "--import", kept])
    Path(kept).unlink()
    assert "read 1 calls, 1 of them new" in done.stderr
    assert list(CallStore(place)) == [make_call()]


def test_no_call_is_paid_where_its_answer_might_not_be_stored(tmp_path: Path) -> None:
    with closing(CallStore(tmp_path / "calls.sqlite", room_bytes=2**62)) as store:
        calls, endpoint = Calls(store), Endpoint()
        request = calls.prepare(CALLER, {"number": 1})
        with pytest.raises(StoreError, match=r"calls\.sqlite has .* MB left\. .*Free space there"):
            calls.answer(request, endpoint)
        assert endpoint.asked == 0
        # What is stored is read all the same.
        with closing(CallStore(tmp_path / "calls.sqlite")) as roomy:
            kept = Calls(roomy).answer(request, endpoint)
        assert calls.answer(request, endpoint) == kept


def test_a_lock_that_is_given_back_in_time_is_waited_for(
    tmp_path: Path, make_call: MakeCall
) -> None:
    place = tmp_path / "calls.sqlite"
    store = CallStore(place, timeout_seconds=60)
    with closing(sqlite3.connect(place, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        threading.Timer(0.1, lambda: other.execute("ROLLBACK")).start()
        call = store.put(make_call())
        assert CallStore(place).get(call.key) == call


@pytest.fixture
def end_connections(postgresql: PostgreSQLServer, postgresql_url: str) -> Callable[[], object]:
    """Return what ends every connection to the test's database, as a network does."""
    where = f"datname = '{postgresql_url.rpartition('/')[2]}'"
    query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {where}"
    return lambda: postgresql.execute(query)


@pytest.fixture
def remote(postgresql_url: str) -> Iterator[CallStore]:
    store = CallStore(postgresql_url)
    yield store
    store.close()


def test_lost_connections_are_made_again_between_two_statements(
    remote: CallStore, end_connections: Callable[[], object], make_call: MakeCall
) -> None:
    call, other = make_call("a"), make_call("b")
    end_connections()
    remote.put(call)
    end_connections()
    assert list(remote) == [call]
    end_connections()
    assert remote.claim(other.key)
    end_connections()
    remote.put(other)
    assert len(remote) == 2
    assert remote.paid_twice().calls == 0


def test_a_connection_that_is_lost_inside_a_transaction_does_its_work_once(
    remote: CallStore,
) -> None:
    runs = []

    def work(session: Session) -> None:
        session.execute("INSERT INTO paid_twice VALUES ('id', 'k', 'a', 1, 0.5, 0)")
        runs.append(1)
        if len(runs) < 3:
            session.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    remote.database.transact(work)
    assert (len(runs), remote.paid_twice().calls) == (3, 1)


def test_a_server_that_restarts_is_waited_for(
    remote: CallStore, postgresql: PostgreSQLServer, make_call: MakeCall
) -> None:
    call = make_call()
    postgresql.stop()
    starting = threading.Timer(0.2, postgresql.start)
    starting.start()
    assert remote.put(call) == call
    starting.join()
    assert list(remote) == [call]


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    path.write_bytes(content := b"not a database, " * 1000)
    with pytest.raises(StoreError, match=r"calls\.sqlite cannot be used: file is not a database"):
        CallStore(path)
    assert path.read_bytes() == content


def test_a_damaged_file_is_an_error_of_the_store_and_stays_for_who_can_mend_it(
    tmp_path: Path, make_call: MakeCall
) -> None:
    path = tmp_path / "calls.sqlite"
    store = CallStore(path)
    calls = [make_call(f"{n}", response=f'"{os.urandom(1000).hex()}"') for n in range(50)]
    store.put_all(calls)
    store.close()
    whole = path.read_bytes()
    damaged = whole[:4096] + b"\xff" * (len(whole) - 4096)
    path.write_bytes(damaged)
    for use in (
        lambda: list(CallStore(path)),
        lambda: CallStore(path).get(calls[0].key),
        lambda: CallStore(path).claim("k"),
    ):
        with pytest.raises(StoreError, match=r"cannot be used: .*malformed"):
            use()
    assert path.read_bytes()[4096:] == damaged[4096:]
