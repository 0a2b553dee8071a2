"""The call store: one SQLite file, written as calls are answered."""

from __future__ import annotations

import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.dialects.sqlite import insert

from moa_dspy.calls._call import Call
from moa_dspy.errors import StoreError

SCHEMA_VERSION = 1

_metadata = sa.MetaData()
_calls = sa.Table(
    "calls",
    _metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("agent", sa.Text, nullable=False),
    sa.Column("identity", sa.Text, nullable=False),
    sa.Column("sample", sa.Integer, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("response", sa.Text),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("usd", sa.Float, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("failure", sa.Text),
)
_COLUMNS = tuple(f.name for f in fields(Call))


class CallStore:
    """Keeps every answered call in one SQLite file; safe for threads and for processes.

    Each call is committed before its answer is handed out, so a process that is
    killed loses nothing that was paid for. The first answer to a key stays; a
    stored failure gives way to an answer.

    Raises:
        StoreError: If the file cannot be opened, read or written, or belongs to a
            newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: dict[str, Call] = {}
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"The call store {path} cannot be used: {error.strerror}.") from error
        self._engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)),
            connect_args={"timeout": 60, "check_same_thread": False},
        )
        # A store that nobody closed closes its file when it goes; Python 3.13 warns otherwise.
        weakref.finalize(self, self._engine.dispose)
        event.listen(self._engine, "connect", _set_pragmas)
        with self._connection() as connection:
            self._prepare(connection)

    def _prepare(self, connection: sa.Connection) -> None:
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        if version not in (0, SCHEMA_VERSION):
            raise StoreError(
                f"{self.path} has schema {version}, but this version reads {SCHEMA_VERSION}."
            )
        # Not `create_all`, which looks first: another process may be between look and make too.
        connection.execute(sa.schema.CreateTable(_calls, if_not_exists=True))
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _connection(self) -> _Transaction:
        return _Transaction(self._engine, self.path)

    def get(self, key: str) -> Call | None:
        """Return the stored call, or None; a call that was read once is kept in memory."""
        if (seen := self._seen.get(key)) is not None:
            return seen
        with self._connection() as connection:
            row = connection.execute(sa.select(_calls).where(_calls.c.key == key)).one_or_none()
        if row is None:
            return None
        call = Call(*row)
        if call.failure is None:
            self._seen[key] = call
        return call

    def put(self, call: Call) -> None:
        """Store ``call`` unless its key already has an answer."""
        self.put_all([call])

    def put_all(self, calls: Iterable[Call]) -> None:
        """Store many calls in one transaction, by the rule of ``put``."""
        rows = [asdict(call) for call in calls]
        if not rows:
            return
        statement = insert(_calls)
        changes = {name: statement.excluded[name] for name in _COLUMNS if name != "key"}
        upsert = statement.on_conflict_do_update(
            index_elements=["key"], set_=changes, where=_calls.c.response.is_(None)
        )
        with self._lock, self._connection() as connection:
            connection.execute(upsert, rows)

    def __iter__(self) -> Iterator[Call]:
        """Yield every call, ordered by key."""
        with self._connection() as connection:
            for row in connection.execute(sa.select(_calls).order_by(_calls.c.key)):
                yield Call(*row)

    def __len__(self) -> int:
        with self._connection() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(_calls)).scalar_one()

    def close(self) -> None:
        """Close the file; everything is already on disk."""
        self._engine.dispose()


class _Transaction:
    """``engine.begin()`` whose database errors come out as ``StoreError``."""

    def __init__(self, engine: sa.Engine, path: Path) -> None:
        self._context, self._path = engine.begin(), path

    def __enter__(self) -> sa.Connection:
        try:
            return self._context.__enter__()
        except exc.SQLAlchemyError as error:
            raise self._explain(error) from error

    def __exit__(self, *error: Any) -> None:
        try:
            self._context.__exit__(*error)
        except exc.SQLAlchemyError as failure:
            raise self._explain(failure) from failure
        if isinstance(error[1], exc.SQLAlchemyError):
            raise self._explain(error[1]) from error[1]

    def _explain(self, error: exc.SQLAlchemyError) -> StoreError:
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        return StoreError(f"The call store {self._path} cannot be used: {cause}")


def _set_pragmas(connection: Any, _record: object) -> None:
    # WAL with NORMAL survives a killed process; FULL would only add power cuts.
    _switch_to_wal(connection)
    for pragma in ("synchronous=NORMAL", "busy_timeout=60000"):
        connection.execute(f"PRAGMA {pragma}")


def _switch_to_wal(connection: Any) -> None:
    """Wait for others who switch the same new file: here SQLite does not wait by itself."""
    last = time.monotonic() + 60
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > last:
                raise
            time.sleep(0.005)
