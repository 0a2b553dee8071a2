"""The database of a call store: URL, connections, short reads and transactions.

SQLite or PostgreSQL; passwords are never shown.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc

from moa_dspy.errors import StoreError
from moa_dspy.vendors import is_loopback

_T = TypeVar("_T")
_MAX_CONNECTIONS = 10
"""Most connections of one process; PostgreSQL's default limit is 100 in total."""


class Connections:
    """The driver's connections in autocommit mode, each used by one thread at a time.

    Transactions are begun and ended by explicit statements, so a connection needs no reset.

    Args:
        url: A database of SQLite or PostgreSQL.
        timeout_seconds: Longest wait of SQLite for a locked file.

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
            url, connect_args=options, pool_reset_on_return=None, pool_size=_MAX_CONNECTIONS
        )
        if not self.is_postgresql:
            event.listen(self._engine, "connect", partial(_set_up, seconds=timeout_seconds))
        self._driver: Any = self._engine.dialect.loaded_dbapi
        self.errors = (self._driver.Error, exc.SQLAlchemyError)
        self._was_reached = False
        self._idle: deque[_Connection] = deque()
        self._slots = threading.Semaphore(_MAX_CONNECTIONS)
        # Closes the file of a store that was not closed; Python 3.13 warns otherwise.
        weakref.finalize(self, _close, self._idle, self._engine)

    def use(self, work: Callable[[Any], _T]) -> _T:
        """Return the result of ``work`` for a connection; a lost connection is discarded."""
        with self._slots:
            connection = self._take()
            try:
                result = work(connection.connection)
                self._was_reached = True
                return result
            except self.errors as error:
                if self.is_lost(error):
                    connection.pooled.invalidate()
                    self.close()  # the other connections are lost as well
                raise
            finally:
                if connection.pooled.is_valid:
                    self._idle.append(connection)

    def _take(self) -> _Connection:
        # A recently used connection is not checked again: a checkout of the pool takes as long as a
        # read.
        try:
            return self._idle.pop()
        except IndexError:
            return _Connection(self._engine.raw_connection())

    def is_lost(self, error: BaseException) -> bool:
        """Return whether the server is gone; a server that never answered is a wrong URL."""
        if not self.is_postgresql or not self._was_reached:
            return False
        # Without a state the server sent nothing; 08 and 57P mean that it stops or starts.
        state = getattr(error, "sqlstate", None)
        is_operational = isinstance(error, self._driver.OperationalError)
        return is_operational and (state is None or state.startswith(("08", "57P")))

    def close(self) -> None:
        """Close every connection that is not in use."""
        _close(self._idle, self._engine)


class _Connection:
    """A connection, as the pool's object and as the driver's object."""

    __slots__ = ("connection", "pooled")

    def __init__(self, pooled: Any) -> None:
        self.pooled, self.connection = pooled, pooled.driver_connection


def _close(idle: deque[_Connection], engine: sa.Engine) -> None:
    while idle:
        idle.pop().pooled.close()
    engine.dispose()


def _set_up(connection: Any, _record: object, *, seconds: float) -> None:
    # WAL with NORMAL survives a killed process; FULL would in addition survive power cuts.
    _switch_to_wal(connection, seconds=seconds)
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.create_function("moa_clock", 0, time.time)


def _switch_to_wal(connection: Any, *, seconds: float) -> None:
    """Switch to WAL, waiting for other processes that do so, as SQLite does not wait here."""
    last = time.monotonic() + seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > last:
                raise
            time.sleep(0.005)


_SECRET_OPTIONS = ("password", "sslpassword")
_DEFAULTS = {
    # Without these settings a vanished server is noticed only after two hours.
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}


def database_url(place: Path | str) -> sa.URL:
    """Return the URL of ``place``: a file, ``sqlite:///FILE`` or ``postgresql://HOST/NAME``.

    Put a password into ``PGPASSWORD`` or ``~/.pgpass``, which libpq reads, rather than into the
    URL. Connections to other machines require TLS (``sslmode=require``) unless the URL or
    ``PGSSLMODE`` says otherwise.

    Raises:
        StoreError: If the URL cannot be read, or names another kind of database.
    """
    if isinstance(place, Path) or "://" not in place:
        return sa.URL.create("sqlite", database=str(place))
    try:
        url = sa.make_url(place)
    except (exc.ArgumentError, ValueError):
        # Without its cause, which may quote a part of the password.
        raise StoreError(
            "The URL of the call store cannot be read; write sqlite:///FILE or "
            "postgresql://HOST/NAME."
        ) from None
    kind = url.drivername
    if kind in ("sqlite", "sqlite+pysqlite"):
        if not url.database or url.database == ":memory:":
            raise StoreError("A call store in SQLite needs a file: sqlite:///FILE.")
        return sa.URL.create("sqlite", database=url.database)
    if kind in ("postgresql", "postgres", "postgresql+psycopg"):
        return _with_defaults(url.set(drivername="postgresql+psycopg"))
    raise StoreError(
        f"A call store cannot be in {kind!r}; known ones are sqlite:///FILE and "
        "postgresql://HOST/NAME."
    )


def shown_url(url: sa.URL) -> str:
    """Return ``url`` for messages: a file's path, or a URL without passwords."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    masked = {name: "***" for name in _SECRET_OPTIONS if name in url.query}
    kept = {name: value for name, value in url.query.items() if name not in _DEFAULTS}
    plain = url.set(drivername="postgresql", query={**kept, **masked})
    return plain.render_as_string(hide_password=True)


def secrets_of(url: sa.URL) -> tuple[str, ...]:
    """Return every password in ``url``, longest first."""
    options = [url.query[name] for name in _SECRET_OPTIONS if name in url.query]
    values = [url.password or "", *(text for text in options if isinstance(text, str))]
    return tuple(sorted({text for text in values if text}, key=len, reverse=True))


def _with_defaults(url: sa.URL) -> sa.URL:
    defaults = dict(_DEFAULTS)
    if "PGSSLMODE" not in os.environ and not all(map(_is_this_machine, _hosts(url))):
        defaults["sslmode"] = "require"
    missing = {name: value for name, value in defaults.items() if name not in url.query}
    return url.update_query_dict(missing)


def _hosts(url: sa.URL) -> list[str]:
    hosts = url.query.get("host", os.environ.get("PGHOST", "")) if url.host is None else url.host
    listed = [hosts] if isinstance(hosts, str) else list(hosts)
    return [host for text in listed for host in text.split(",")]


def _is_this_machine(host: str) -> bool:
    # An empty host, a path, or a name that starts with @ is a socket of this machine.
    return host == "" or host.startswith(("/", "@")) or is_loopback(host)


ANOTHER_PLACE: Final = "Move it away, or choose another place."
_MAKE_ROOM: Final = (
    "Free space there and start again: everything stored so far is kept, and is not paid twice."
)
_ADVICE: Final = {
    "SQLITE_FULL": _MAKE_ROOM,
    "SQLITE_NOTADB": ANOTHER_PLACE,
    "SQLITE_CORRUPT": f"It is damaged. {ANOTHER_PLACE}",
    "SQLITE_CANTOPEN": "It must be a file in a folder that can be written to.",
    "SQLITE_READONLY": "Make the file and its folder writable.",
    "SQLITE_BUSY": "Another process is using it: stop that process, or wait until it ends.",
}
"""Remedies by the beginning of SQLite's name of an error."""
ROOM_BYTES: Final = 16 * 2**20
"""Free disk space required before a call is paid for: room for the answers under way."""
_MAX_PAUSE_SECONDS = 1.0


def reason_of(error: BaseException) -> str:
    """Return the message of SQLite or a driver for an error, with a remedy."""
    text = " ".join(str(error).split())
    error_name = getattr(error, "sqlite_errorname", None) or ""
    advice = next((advice for name, advice in _ADVICE.items() if error_name.startswith(name)), "")
    return f"{text}. {advice}" if advice else text


class Session:
    """One open transaction; statements use ``?`` for values on both databases."""

    def __init__(self, connection: Any, *, is_postgresql: bool) -> None:
        self._connection, self.is_postgresql = connection, is_postgresql

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Run one statement and return its cursor."""
        return self._connection.execute(_written(sql, self.is_postgresql), values)

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of one query."""
        rows: list[Any] = self.execute(sql, values).fetchall()
        return rows

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for every row."""
        self._connection.cursor().executemany(_written(sql, self.is_postgresql), rows)


class Database:
    """A SQLite file (WAL) or a PostgreSQL database; safe for threads.

    Errors are raised as ``StoreError`` without passwords. After a lost connection, the work is
    repeated on a new connection, so all work must be idempotent.

    Args:
        place: A file, or a URL as accepted by ``database_url``.
        timeout_seconds: Longest wait for a locked file, or for a server that is gone.

    Raises:
        StoreError: If there is no such database, or its driver is not installed.
    """

    def __init__(self, place: Path | str, *, timeout_seconds: float = 60.0) -> None:
        url = database_url(place)
        self.name, self._secrets = shown_url(url), secrets_of(url)
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
        # Threads of a process queue at this lock: SQLite only polls, and some threads would wait
        # long.
        self._queue: Any = nullcontext() if self.is_postgresql else threading.Lock()

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"The call store {self.name} cannot be used: {error.strerror or error}."
            ) from error

    def check_room(self, n_bytes: int) -> None:
        """Raise if the file's disk has less free space, as the next paid answer could be lost.

        Raises:
            StoreError: If there is less space; the message gives the free space.
        """
        if self.path is None:
            return
        with suppress(OSError):  # if the free space is unknown, a write error will show it
            disk = shutil.disk_usage(self.path.parent)
            if disk.total and disk.free < n_bytes:
                raise StoreError(
                    f"The disk of {self.name} has {disk.free / 1e6:.1f} MB left. Below "
                    f"{n_bytes / 1e6:.1f} MB no call is made, because its answer could not be "
                    f"stored. {_MAKE_ROOM}"
                )

    @property
    def clock(self) -> str:
        """SQL for the time in UTC seconds, by the server's clock or, for a file, this machine's."""
        if self.is_postgresql:
            return "extract(epoch FROM clock_timestamp())::float8"
        return "moa_clock()"

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of one query, read outside of any transaction."""
        written = _written(sql, self.is_postgresql)

        def read(connection: Any) -> list[Any]:
            rows: list[Any] = connection.execute(written, values).fetchall()
            return rows

        return self._with_connection(read)

    def transact(self, work: Callable[[Session], _T], *, is_durable: bool = True) -> _T:
        """Return the result of ``work``, which is done completely or not at all.

        Args:
            work: Runs its statements; it is repeated after a lost connection.
            is_durable: Whether PostgreSQL must have written it to disk before this returns; if not,
                a server that crashes may lose the latest such work.
        """
        begin = "BEGIN IMMEDIATE"
        if self.is_postgresql:
            begin = "BEGIN" if is_durable else "BEGIN; SET LOCAL synchronous_commit TO OFF"

        def whole(connection: Any) -> _T:
            try:
                connection.execute(begin)
                result = work(Session(connection, is_postgresql=self.is_postgresql))
                connection.execute("COMMIT")
            except BaseException:
                # With a lost connection its transaction is gone too.
                with suppress(*self._connections.errors):
                    connection.rollback()
                raise
            return result

        with self._queue:
            return self._with_connection(whole)

    def _with_connection(self, work: Callable[[Any], _T]) -> _T:
        last, pause = time.monotonic() + self.timeout_seconds, 0.0
        while True:
            try:
                return self._connections.use(work)
            except self._connections.errors as error:
                if not self._connections.is_lost(error) or time.monotonic() + pause > last:
                    # The cause is quoted in the message; its own traceback could show a password.
                    raise self._explained(error) from (None if self._secrets else error)
            time.sleep(pause)
            pause = min(2 * pause + 0.01, _MAX_PAUSE_SECONDS)

    def _explained(self, error: BaseException) -> StoreError:
        text = reason_of(error)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return StoreError(f"The call store {self.name} cannot be used: {text}")

    def close(self) -> None:
        """Close every connection; everything is already in the database."""
        self._connections.close()


@cache
def _written(sql: str, is_postgresql: bool) -> str:
    return sql.replace("?", "%s") if is_postgresql else sql
