"""Connections of one process to a database: few, and used again."""

from __future__ import annotations

import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc

T = TypeVar("T")
_MOST_CONNECTIONS = 10
"""Of one process; PostgreSQL allows 100 in all, if nobody changed that."""


class Connections:
    """Connections of the driver, each used by one thread at a time, in autocommit.

    Transactions are begun and ended by name, so nothing is left to reset.

    Args:
        url: Of SQLite or PostgreSQL.
        timeout_seconds: How long SQLite waits for a locked file.

    Raises:
        ImportError: If the driver is not installed.
    """

    def __init__(self, url: sa.URL, *, timeout_seconds: float) -> None:
        self.is_postgresql = url.get_backend_name() == "postgresql"
        options: dict[str, Any] = {"autocommit": True}
        if not self.is_postgresql:
            options = {"check_same_thread": False, "isolation_level": None}
            options["timeout"] = timeout_seconds
        self._engine = sa.create_engine(
            url, connect_args=options, pool_reset_on_return=None, pool_size=_MOST_CONNECTIONS
        )
        if not self.is_postgresql:
            event.listen(self._engine, "connect", partial(_set_up, seconds=timeout_seconds))
        self._driver: Any = self._engine.dialect.loaded_dbapi
        self.errors = (self._driver.Error, exc.SQLAlchemyError)
        self._was_reached = False
        self._idle: deque[_Held] = deque()
        self._slots = threading.Semaphore(_MOST_CONNECTIONS)
        # A store that nobody closed closes its file when it goes; Python 3.13 warns otherwise.
        weakref.finalize(self, _close, self._idle, self._engine)

    def lend(self, work: Callable[[Any], T]) -> T:
        """Return what ``work`` does with a connection; one that is lost is thrown away."""
        with self._slots:
            held = self._take()
            try:
                result = work(held.connection)
                self._was_reached = True
                return result
            except self.errors as error:
                if self.is_lost(error):
                    held.pooled.invalidate()
                    self.close()  # the others are as dead as this one
                raise
            finally:
                if held.pooled.is_valid:
                    self._idle.append(held)

    def _take(self) -> _Held:
        # A connection that was used lately is taken as it is: the pool costs as much as a read.
        try:
            return self._idle.pop()
        except IndexError:
            return _Held(self._engine.raw_connection())

    def is_lost(self, error: BaseException) -> bool:
        """Whether the server went away; one that was never there is a mistake in the URL."""
        if not self.is_postgresql or not self._was_reached:
            return False
        # Without a state the server said nothing; 08 and 57P are servers that stop or start.
        state = getattr(error, "sqlstate", None)
        is_operational = isinstance(error, self._driver.OperationalError)
        return is_operational and (state is None or state.startswith(("08", "57P")))

    def close(self) -> None:
        """Close every connection that is not in use."""
        _close(self._idle, self._engine)


class _Held:
    """A connection out of the pool: as the pool has it, and as the driver does."""

    __slots__ = ("connection", "pooled")

    def __init__(self, pooled: Any) -> None:
        self.pooled, self.connection = pooled, pooled.driver_connection


def _close(idle: deque[_Held], engine: sa.Engine) -> None:
    while idle:
        idle.pop().pooled.close()
    engine.dispose()


def _set_up(connection: Any, _record: object, *, seconds: float) -> None:
    # WAL with NORMAL survives a killed process; FULL would only add power cuts.
    _switch_to_wal(connection, seconds=seconds)
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.create_function("moa_clock", 0, time.time)


def _switch_to_wal(connection: Any, *, seconds: float) -> None:
    """Wait for others who switch the same new file: here SQLite does not wait by itself."""
    last = time.monotonic() + seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > last:
                raise
            time.sleep(0.005)
