"""A store of version 1 becomes one of this version, in place and whole."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from moa_dspy.calls import Call, CallStore
from moa_dspy.errors import StoreError

MakeCall = Callable[..., Call]

# What version 1 wrote, letter by letter.
VERSION_1 = """
CREATE TABLE calls (
	"key" VARCHAR(64) NOT NULL,
	agent TEXT NOT NULL,
	identity TEXT NOT NULL,
	sample INTEGER NOT NULL,
	request TEXT NOT NULL,
	response TEXT,
	prompt_tokens INTEGER NOT NULL,
	completion_tokens INTEGER NOT NULL,
	usd FLOAT NOT NULL,
	seconds FLOAT NOT NULL,
	failure TEXT,
	PRIMARY KEY ("key")
);
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""
OPENER = "import sys; from moa_dspy.calls import CallStore; print(len(CallStore(sys.argv[1])))"


@pytest.fixture
def old(tmp_path: Path, make_call: MakeCall) -> tuple[Path, list[Call]]:
    """Return a file of version 1 and the calls in it."""
    path = tmp_path / "calls.sqlite"
    calls = [make_call(f"{n} " * 50) for n in range(100)]
    calls.append(make_call("f", response=None, failure="ServerError: down"))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(VERSION_1)
        rows = [
            (c.key, c.agent, c.identity, c.sample, c.request, c.response, 3, 2, 0.5, 1.5, c.failure)
            for c in calls
        ]
        connection.executemany(f"INSERT INTO calls VALUES ({', '.join('?' * 11)})", rows)
    return path, sorted(calls, key=lambda call: call.key)


def columns(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT name, \"notnull\", dflt_value FROM pragma_table_info('calls')"
        ).fetchall()


def test_a_file_of_version_1_is_upgraded_and_loses_nothing(
    old: tuple[Path, list[Call]], tmp_path: Path, make_call: MakeCall
) -> None:
    path, calls = old
    store = CallStore(path)
    assert list(store) == calls
    assert (calls[0].attempt, calls[0].time) == (1, 0.0)
    new = make_call("new", attempt=2, time=5.0)
    store.put(new)
    failed = next(call for call in calls if call.failure)
    store.put(replace(failed, response='"now"', failure=None))
    store.close()
    reopened = CallStore(path)
    assert reopened.get(new.key) == new
    answered = reopened.get(failed.key)
    assert answered is not None
    assert answered.response == '"now"'
    CallStore(tmp_path / "fresh.sqlite").close()
    assert columns(path) == columns(tmp_path / "fresh.sqlite")


@pytest.mark.slow
def test_processes_that_open_an_old_file_at_once_upgrade_it_once(
    old: tuple[Path, list[Call]],
) -> None:
    path, calls = old
    command = [sys.executable, "-c", OPENER, str(path)]
    opening = [
        subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in opening:
        assert process.communicate(timeout=60) == (f"{len(calls)}\n", "")
    assert list(CallStore(path)) == calls


def test_an_upgrade_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        # Somebody else's table of the same name.
        connection.execute("CREATE TABLE calls (number TEXT)")
    before = columns(path)
    with pytest.raises(StoreError, match="cannot be used: no such column"):
        CallStore(path)
    assert columns(path) == before


def test_somebody_elses_table_in_postgresql_is_left_alone(postgresql_url: str) -> None:
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE calls (number TEXT)")
        with pytest.raises(StoreError, match=r"cannot be used: column .* does not exist"):
            CallStore(postgresql_url)
        query = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'calls'"
        assert connection.execute(query).fetchone() == (1,)


def test_version_1_refuses_what_this_version_wrote(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    CallStore(path).close()
    with closing(sqlite3.connect(path)) as connection:
        # It accepts 0 and 1.
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)


@pytest.mark.parametrize("change", ["PRAGMA user_version = 7", "UPDATE moa_schema SET version = 7"])
def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path, change: str) -> None:
    path = tmp_path / "calls.sqlite"
    CallStore(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(change)
    content = path.read_bytes()
    with pytest.raises(StoreError, match="has schema 7, but this version reads 3"):
        CallStore(path)
    assert path.read_bytes() == content


def test_a_database_of_a_newer_version_is_refused(postgresql_url: str) -> None:
    CallStore(postgresql_url).close()
    with psycopg.connect(postgresql_url) as connection:
        connection.execute("UPDATE moa_schema SET version = 7")
    with pytest.raises(StoreError, match="has schema 7, but this version reads 3"):
        CallStore(postgresql_url)
