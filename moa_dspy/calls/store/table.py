"""Statements on the table of calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from moa_dspy.calls.call import Call
from moa_dspy.calls.store.database import Database, Session
from moa_dspy.calls.store.schema import CALL_COLUMNS, from_row, to_row

_LISTED = ", ".join(CALL_COLUMNS)
_SELECT = f"SELECT {_LISTED} FROM calls WHERE key = ?"
_MARKS = ", ".join("?" * len(CALL_COLUMNS))
_CHANGES = ", ".join(f"{name} = excluded.{name}" for name in CALL_COLUMNS if name != "key")
_UPSERT = (
    f"INSERT INTO calls ({_LISTED}) VALUES ({_MARKS}) ON CONFLICT (key) "
    f"DO UPDATE SET {_CHANGES} WHERE calls.response IS NULL"
)
_PAGE = 500
"""Calls per query where many are read."""


@dataclass(frozen=True, slots=True)
class PaidTwice:
    """Answers that were paid for although another owner of the same claim had stored one."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0


def read(database: Database, key: str) -> Call | None:
    """Return the call of ``key``, or None."""
    rows = database.rows(_SELECT, (key,))
    return from_row(rows[0]) if rows else None


def read_many(database: Database, keys: Sequence[str]) -> Iterator[Call]:
    """Yield the stored calls of ``keys``, in no order."""
    for start in range(0, len(keys), _PAGE):
        part = keys[start : start + _PAGE]
        marks = ", ".join("?" * len(part))
        query = f"SELECT {_LISTED} FROM calls WHERE key IN ({marks})"
        yield from map(from_row, database.rows(query, part))


def read_all(database: Database, where: str = "TRUE", values: Sequence[Any] = ()) -> Iterator[Call]:
    """Yield every such call, ordered by key, a page at a time; nothing is open between pages."""
    query = f"SELECT {_LISTED} FROM calls WHERE key > ? AND {where} ORDER BY key LIMIT {_PAGE}"
    rows = database.rows(query, ("", *values))
    while rows:
        yield from map(from_row, rows)
        rows = database.rows(query, (rows[-1][0], *values))


def write_all(database: Database, calls: Iterable[Call]) -> None:
    """Store many calls in one transaction; what has an answer keeps it."""
    # In one order, so that two writers of the same calls never wait for each other.
    rows = [to_row(call) for call in sorted(calls, key=lambda call: call.key)]
    if rows:
        database.transact(lambda session: session.execute_many(_UPSERT, rows))


def write(session: Session, call: Call, payment: str) -> Call:
    """Store ``call`` and return the call that is stored; count what was paid twice.

    Args:
        session: An open transaction.
        call: May be the stored one already, if the end of its transaction was lost.
        payment: Id of this payment, so that it counts once however often this is repeated.
    """
    if session.execute(_UPSERT, to_row(call)).rowcount:
        return call
    stored = from_row(session.rows(_SELECT, (call.key,))[0])
    is_same = (stored.response, stored.seconds, stored.time) == (
        call.response,
        call.seconds,
        call.time,
    )
    if call.failure is None and not is_same:
        tokens = call.prompt_tokens + call.completion_tokens
        session.execute(
            "INSERT INTO paid_twice (id, key, agent, tokens, usd, time) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO NOTHING",
            (payment, call.key, call.agent, tokens, call.usd, call.time),
        )
    return stored


def count(database: Database) -> int:
    """Count the calls; this reads a whole index."""
    return int(database.rows("SELECT count(*) FROM calls")[0][0])


def paid_twice(database: Database) -> PaidTwice:
    """Return what was paid twice, by all processes that ever used this store."""
    query = "SELECT count(*), coalesce(sum(tokens), 0), coalesce(sum(usd), 0.0) FROM paid_twice"
    calls, tokens, usd = database.rows(query)[0]
    return PaidTwice(int(calls), int(tokens), float(usd))
