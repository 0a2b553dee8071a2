"""The database under a call store: quick reads and short transactions, on SQLite or PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from moa_dspy.calls.store._connections import Connections
from moa_dspy.calls.store._database_url import database_url, secrets_of, shown
from moa_dspy.errors import StoreError

T = TypeVar("T")
_LONGEST_PAUSE_SECONDS = 1.0


class Session:
    """One open transaction; statements are written with ``?`` for values on both databases."""

    def __init__(self, connection: Any, *, is_postgresql: bool) -> None:
        self._connection, self.is_postgresql = connection, is_postgresql

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Run one statement and return its cursor."""
        return self._connection.execute(_written(sql, self.is_postgresql), values)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of one query."""
        found: list[Any] = self.execute(sql, values).fetchall()
        return found

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for every row."""
        self._connection.cursor().executemany(_written(sql, self.is_postgresql), rows)


class Database:
    """A SQLite file (WAL) or a PostgreSQL database; safe for threads.

    What fails comes out as ``StoreError`` without passwords. A connection that is lost is
    made again and its work repeated, so all work must be such that twice is as good as once.

    Args:
        place: A file, or a URL as ``database_url`` reads it.
        timeout_seconds: How long a locked file, or a server that went away, is waited for.

    Raises:
        StoreError: If there is no such database, or its driver is not installed.
    """

    def __init__(self, place: Path | str, *, timeout_seconds: float = 60.0) -> None:
        url = database_url(place)
        self.name, self._secrets = shown(url), secrets_of(url)
        self.is_postgresql = url.get_backend_name() == "postgresql"
        self.path = None if self.is_postgresql else Path(str(url.database))
        self.timeout_seconds = timeout_seconds
        if self.path is not None:
            self._make_folder(self.path.parent)
        try:
            self._connections = Connections(url, timeout_seconds=timeout_seconds)
        except ImportError as error:
            raise StoreError(
                f"The call store {self.name} needs psycopg: pip install 'moa-dspy[postgresql]'."
            ) from error
        # Threads of a process queue here: SQLite itself only polls, and lets some wait for long.
        self._turn: Any = nullcontext() if self.is_postgresql else threading.Lock()

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"The call store {self.name} cannot be used: {error.strerror}."
            ) from error

    @property
    def clock(self) -> str:
        """SQL for the time in UTC seconds: the server's clock, for a file this machine's."""
        if self.is_postgresql:
            return "extract(epoch FROM clock_timestamp())::float8"
        return "moa_clock()"

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of one query, read outside of any transaction."""
        written = _written(sql, self.is_postgresql)

        def read(connection: Any) -> list[Any]:
            found: list[Any] = connection.execute(written, values).fetchall()
            return found

        return self._with_connection(read)

    def transact(self, work: Callable[[Session], T], *, is_durable: bool = True) -> T:
        """Return what ``work`` returns, done completely or not at all.

        Args:
            work: Runs its statements; when the connection is lost it is run again.
            is_durable: Whether PostgreSQL must have it on disk before this returns; without,
                a server that crashes may forget the last moments of such work.
        """
        begin = "BEGIN IMMEDIATE"
        if self.is_postgresql:
            begin = "BEGIN" if is_durable else "BEGIN; SET LOCAL synchronous_commit TO OFF"

        def whole(connection: Any) -> T:
            try:
                connection.execute(begin)
                result = work(Session(connection, is_postgresql=self.is_postgresql))
                connection.execute("COMMIT")
            except BaseException:
                # A connection that is gone took its transaction with it.
                with suppress(*self._connections.errors):
                    connection.rollback()
                raise
            return result

        with self._turn:
            return self._with_connection(whole)

    def _with_connection(self, work: Callable[[Any], T]) -> T:
        last, pause = time.monotonic() + self.timeout_seconds, 0.0
        while True:
            try:
                return self._connections.lend(work)
            except self._connections.errors as error:
                if not self._connections.is_lost(error) or time.monotonic() + pause > last:
                    # The cause is in the message: printed by itself it may show a password.
                    raise self._explained(error) from (None if self._secrets else error)
            time.sleep(pause)
            pause = min(2 * pause + 0.01, _LONGEST_PAUSE_SECONDS)

    def _explained(self, error: BaseException) -> StoreError:
        text = " ".join(str(error).split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return StoreError(f"The call store {self.name} cannot be used: {text}")

    def close(self) -> None:
        """Close every connection; everything is already in the database."""
        self._connections.close()


@cache
def _written(sql: str, is_postgresql: bool) -> str:
    return sql.replace("?", "%s") if is_postgresql else sql
