"""The call store: all calls of studies and programs, in a SQLite file or PostgreSQL database.

Calls can be summarised, read or deleted by agent, time and failure.
"""

from __future__ import annotations

import logging
import threading
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from moa_dspy.calls.budget import Spending
from moa_dspy.calls.call import Call
from moa_dspy.calls.store.budget import DatabaseBudget
from moa_dspy.calls.store.database import ROOM_BYTES, Database, Session
from moa_dspy.calls.store.leases import Claims, Owner, SharedLimits
from moa_dspy.calls.store.schema import (
    CALL_COLUMNS,
    Recording,
    from_row,
    make_kept_answers,
    prepare,
    to_row,
)
from moa_dspy.errors import StoreError

_LISTED = ", ".join(CALL_COLUMNS)
_SELECT = f"SELECT {_LISTED} FROM calls WHERE key = ?"
_MARKS = ", ".join("?" * len(CALL_COLUMNS))
_CHANGES = ", ".join(f"{name} = excluded.{name}" for name in CALL_COLUMNS if name != "key")
_UPSERT = (
    f"INSERT INTO calls ({_LISTED}) VALUES ({_MARKS}) ON CONFLICT (key) "
    f"DO UPDATE SET {_CHANGES} WHERE calls.response IS NULL"
)
_PAGE = 500
"""Calls per query when many are read."""


@dataclass(frozen=True, slots=True)
class PaidTwice:
    """Answers that were paid for although another owner of the same claim had stored an answer."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0


def write(session: Session, call: Call, payment: str) -> Call:
    """Store ``call`` and return the stored call; count answers that were paid for twice.

    Args:
        session: An open transaction.
        call: The call; it may be stored already, if the end of its transaction was lost.
        payment: Id of this payment, so that repetitions of this work count it only once.
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


_logger = logging.getLogger(__name__)


class CallStore:
    """Keeps every answered call; safe for threads, processes and, on PostgreSQL, machines.

    Each call is committed before its answer is returned, so a killed process loses no paid answer.
    The first answer to a key is kept; an answer replaces a stored failure.

    Args:
        place: A file, ``sqlite:///FILE`` or ``postgresql://HOST/NAME``; put a password into
            ``PGPASSWORD`` or ``~/.pgpass``.
        timeout_seconds: Longest wait for a locked file, or for a server that went away.
        lease_seconds: Time after its last heartbeat when a process is considered dead and others
            make its calls.
        memory_bytes: Size of the cache of recently read calls.
        room_bytes: Free space on the disk of a file below which no call is made.

    Raises:
        StoreError: If the store cannot be opened, read or written, or belongs to another version.
    """

    def __init__(
        self,
        place: Path | str,
        *,
        timeout_seconds: float = 60.0,
        lease_seconds: float = 30.0,
        memory_bytes: int = 16 * 2**20,
        room_bytes: int = ROOM_BYTES,
    ) -> None:
        self.database = Database(place, timeout_seconds=timeout_seconds)
        self._recent, self._room_bytes = RecentCalls(memory_bytes), room_bytes
        self._unwritten: dict[str, Call] = {}
        self._lock = threading.Lock()
        try:
            prepare(self.database)
        except StoreError:
            self.database.close()
            raise
        self.owner = Owner(self.database, lease_seconds=lease_seconds)
        self.claims = Claims(self.owner)
        self.limits = SharedLimits(self.claims)
        # The heartbeat thread must not keep an unused store alive.
        self.owner.on_heartbeat.append(partial(_flush, weakref.ref(self)))
        weakref.finalize(self, self.owner.stop)

    @property
    def path(self) -> Path | None:
        """The file; None if the store is in PostgreSQL."""
        return self.database.path

    def __repr__(self) -> str:
        return f"CallStore({self.database.name!r})"

    def get(self, key: str) -> Call | None:
        """Return the stored call, or None; recently read calls are cached in memory."""
        if (call := self._recent.get(key)) is not None:
            return call
        if (call := self._unwritten.get(key)) is not None:
            return call
        rows = self.database.rows(_SELECT, (key,))
        return self._remember(from_row(rows[0])) if rows else None

    def answered_by(self, identity: str, *, limit: int) -> list[Call]:
        """Return at most ``limit`` answered calls of a model, in no particular order."""
        where = "identity = ? AND response IS NOT NULL"
        query = f"SELECT {_LISTED} FROM calls WHERE {where} LIMIT {limit}"
        return [from_row(row) for row in self.database.rows(query, (identity,))]

    def _remember(self, call: Call) -> Call:
        if call.failure is None:
            self._recent.add(call)
        return call

    def claim(self, key: str) -> bool:
        """Claim the right to make the call of ``key``, if no live process holds it.

        Raises:
            StoreError: If the store cannot be used, its disk is almost full, or earlier answers
                still cannot be written: then no further call is paid for.
        """
        self.flush()
        self.database.check_room(self._room_bytes)
        return self.claims.claim(key)

    def release(self, key: str) -> None:
        """Release the claim of ``key``, if it is held; ``put`` does so by itself."""
        if key in self._unwritten:
            return  # released when the answer is written
        try:
            self.claims.release(key)
        except StoreError as error:
            # The caller must get its answer or error; the claim ends with the lease.
            _logger.warning("The claim of a request could not be released: %s", error)

    def put(self, call: Call) -> Call:
        """Store ``call`` and return the stored call.

        An answer releases the claim of its key. If there was an answer already, that answer is
        kept, and the cost of ``call`` is counted as paid twice. A call that cannot be stored is
        kept in memory, as its answer must be returned; ``claim``, ``flush`` and ``close`` fail
        until it is written.
        """
        try:
            return self._write(call)
        except StoreError as error:
            _logger.warning("An answer is kept in memory until it can be stored: %s", error)
            with self._lock:
                self._unwritten[call.key] = call
            return call

    def _write(self, call: Call) -> Call:
        payment = uuid.uuid4().hex  # a repeated write counts once
        # A failure does not end the claim: its holder may try again before others do.
        is_held = call.failure is None and self.claims.holds(call.key)

        def work(session: Session) -> Call:
            stored = write(session, call, payment)
            if is_held:
                self.claims.drop(session, call.key)
            return stored

        stored = self.database.transact(work)
        if is_held:
            self.claims.forget(call.key)
        return self._remember(stored)

    def put_all(self, calls: Iterable[Call]) -> None:
        """Store many calls in one transaction; stored answers are not replaced."""
        # Sorted, so that two writers of the same calls cannot deadlock.
        rows = [to_row(call) for call in sorted(calls, key=lambda call: call.key)]
        if rows:
            self.database.transact(lambda session: session.execute_many(_UPSERT, rows))

    def flush(self) -> None:
        """Write the calls that could not be written before.

        Raises:
            StoreError: If they still cannot be.
        """
        for call in list(self._unwritten.values()):
            self._write(call)
            with self._lock:
                self._unwritten.pop(call.key, None)

    def __iter__(self) -> Iterator[Call]:
        """Yield every call by key, in memory that does not grow with the store."""
        return filtered_calls(self.database, CallFilter())

    def __len__(self) -> int:
        """Count the calls; this scans an index."""
        return int(self.database.rows("SELECT count(*) FROM calls")[0][0])

    def paid_twice(self) -> PaidTwice:
        """Return the answers paid for twice, by all owners that ever used this store."""
        query = "SELECT count(*), coalesce(sum(tokens), 0), coalesce(sum(usd), 0.0) FROM paid_twice"
        calls, tokens, usd = self.database.rows(query)[0]
        return PaidTwice(int(calls), int(tokens), float(usd))

    def budget(self, study: str, *, spent: Spending | None = None) -> DatabaseBudget:
        """Return the spending of a study for all its workers; a new study starts at ``spent``."""
        return DatabaseBudget(self.owner, study, spent=spent)

    def close(self) -> None:
        """Write pending calls, release every claim and close.

        Raises:
            StoreError: If an answer that was paid for could not be written; the message names the
                file to which all such answers were written instead.
        """
        try:
            self.flush()
            self.owner.unregister()
        except StoreError as error:
            raise self._rescued(error) from error
        finally:
            self.database.close()

    def _rescued(self, error: StoreError) -> StoreError:
        if not (left := list(self._unwritten.values())):
            return error
        path = Path(gettempdir()) / f"moa-dspy-{uuid.uuid4().hex[:8]}.parquet"
        try:
            Recording(left).write(path)
        except StoreError as second:
            return StoreError(
                f"{error} Answers that were paid for are lost ({len(left)}): {second}"
            )
        return StoreError(
            f"{error} Answers that were paid for are kept in another file ({len(left)}). When "
            f"the store can be written to, `moa-dspy calls {self.database.name} --import {path}` "
            "adds them."
        )


def _flush(forgettable: weakref.ref[CallStore]) -> None:
    store = forgettable()
    if store is not None:
        store.flush()


_BYTES_PER_CALL = 900
"""Memory of a call besides its two texts."""


class RecentCalls:
    """A cache of calls by key; the oldest are removed when the total exceeds ``max_bytes``."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        # In a plain dict, finding the first entry becomes slower with each removed entry.
        self._calls: OrderedDict[str, Call] = OrderedDict()
        self._lock = threading.Lock()
        self.get = self._calls.get

    def add(self, call: Call) -> None:
        """Keep ``call``."""
        with self._lock:
            if call.key in self._calls:
                return
            self._calls[call.key] = call
            self._bytes += _size(call)
            while self._bytes > self._max_bytes and self._calls:
                _, oldest = self._calls.popitem(last=False)
                self._bytes -= _size(oldest)


def _size(call: Call) -> int:
    return _BYTES_PER_CALL + len(call.request) + len(call.response or "")


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Conditions on calls of a store; without any, all calls.

    Attributes:
        agent: Only this agent's calls.
        is_failed: Only failed calls.
        since: Only calls made at this time or later, in UTC seconds.
        before: Only calls made earlier, in UTC seconds. A call of unknown time (from an imported
            file) matches neither condition.
    """

    agent: str | None = None
    is_failed: bool = False
    since: float | None = None
    before: float | None = None

    @property
    def is_all(self) -> bool:
        """True if there is no condition."""
        return self == CallFilter()

    def where(self, *, has_response: bool = True) -> tuple[str, tuple[Any, ...]]:
        """Return the condition in SQL, and its values."""
        parts: dict[str, Any] = {"agent = ?": self.agent}
        parts |= {"time >= ?": self.since, "time < ?": self.before}
        conditions = {text: value for text, value in parts.items() if value is not None}
        texts = ["TRUE", *conditions]
        if self.is_failed:
            texts.append("response IS NULL" if has_response else "FALSE")
        if self.since is not None or self.before is not None:
            texts.append("time > 0")
        return " AND ".join(texts), tuple(conditions.values())


@dataclass(frozen=True, slots=True)
class AgentSummary:
    """Totals of an agent's calls; ``paid_twice`` counts answers that were stored too late.

    ``usd`` is None if calls were answered and none has a price: a store does not tell a price of 0
    from one that is unknown.
    """

    agent: str
    calls: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    seconds: float
    paid_twice: int
    paid_twice_usd: float


def summaries(database: Database, calls: CallFilter) -> list[AgentSummary]:
    """Return one summary per agent with matching calls, sorted by name."""
    where, values = calls.where()
    rows = database.rows(
        "SELECT agent, count(*), sum(CASE WHEN response IS NULL THEN 1 ELSE 0 END), "
        "sum(prompt_tokens), sum(completion_tokens), sum(usd), sum(seconds) FROM calls "
        f"WHERE {where} GROUP BY agent",
        values,
    )
    where, values = calls.where(has_response=False)
    query = f"SELECT agent, count(*), sum(usd) FROM paid_twice WHERE {where} GROUP BY agent"
    twice = {agent: (int(n), float(usd)) for agent, n, usd in database.rows(query, values)}
    agent_summaries = [
        AgentSummary(agent, int(n), int(failed), int(prompt), int(answer), known, seconds, *late)
        for agent, n, failed, prompt, answer, usd, seconds in rows
        for late in [twice.get(agent, (0, 0.0))]
        for known in [None if usd == 0 and n > failed else usd]
    ]
    return sorted(agent_summaries, key=lambda summary: summary.agent)


def filtered_calls(database: Database, calls: CallFilter) -> Iterator[Call]:
    """Yield the matching calls by key, in pages; no query is open between pages."""
    where, values = calls.where()
    query = f"SELECT {_LISTED} FROM calls WHERE key > ? AND {where} ORDER BY key LIMIT {_PAGE}"
    rows = database.rows(query, ("", *values))
    while rows:
        yield from map(from_row, rows)
        rows = database.rows(query, (rows[-1][0], *values))


def prune(database: Database, calls: CallFilter) -> int:
    """Delete the matching calls and return their number; their requests will be sent again.

    Processes that have read them before still have them in memory. A file is shrunk too, for which
    no other process may use it.

    Raises:
        StoreError: If the store cannot be written.
    """
    where, values = calls.where()
    statement = f"DELETE FROM calls WHERE {where}"

    def work(session: Session) -> int:
        n = int(session.execute(statement, values).rowcount)
        # The parsed replies are as private as the calls.
        make_kept_answers(session)
        session.execute("DELETE FROM kept_answers WHERE call NOT IN (SELECT key FROM calls)")
        return n

    n = database.transact(work)
    if n and not database.is_postgresql:
        database.rows("VACUUM")
    return n
