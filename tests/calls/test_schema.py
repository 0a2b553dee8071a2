"""A store is made once, and a database of another version or program is left alone."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from moa_dspy.calls import CallStore
from moa_dspy.errors import StoreError

OPENER = "import sys; from moa_dspy.calls import CallStore; print(len(CallStore(sys.argv[1])))"


def columns(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT name, \"notnull\", dflt_value FROM pragma_table_info('calls')"
        ).fetchall()


@pytest.mark.slow
def test_processes_that_open_a_new_file_at_once_make_it_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPENER, str(tmp_path / "calls.sqlite")]
    opening = [
        subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in opening:
        assert process.communicate(timeout=60) == ("0\n", "")


def test_a_file_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        # A table of another program, of the same name.
        connection.execute("CREATE TABLE calls (number TEXT)")
    before = columns(path)
    with pytest.raises(StoreError, match="cannot be used: its table `calls`"):
        CallStore(path)
    assert columns(path) == before


def test_a_table_of_another_program_in_postgresql_is_left_alone(postgresql_url: str) -> None:
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE calls (number TEXT)")
        with pytest.raises(StoreError, match="cannot be used: its table `calls`"):
            CallStore(postgresql_url)
        query = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'calls'"
        assert connection.execute(query).fetchone() == (1,)


@pytest.mark.parametrize("change", ["PRAGMA user_version = 7", "UPDATE moa_schema SET version = 7"])
def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path, change: str) -> None:
    path = tmp_path / "calls.sqlite"
    CallStore(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(change)
    content = path.read_bytes()
    with pytest.raises(StoreError, match="has schema 7, but this version of moa-dspy reads 3"):
        CallStore(path)
    assert path.read_bytes() == content


def test_a_database_of_a_newer_version_is_refused(postgresql_url: str) -> None:
    CallStore(postgresql_url).close()
    with psycopg.connect(postgresql_url) as connection:
        connection.execute("UPDATE moa_schema SET version = 7")
    with pytest.raises(StoreError, match="has schema 7, but this version of moa-dspy reads 3"):
        CallStore(postgresql_url)
