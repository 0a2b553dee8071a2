"""The call store: every call that was answered, in a SQLite file or a PostgreSQL database."""

from __future__ import annotations

import logging
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from moa_dspy.calls._call import Call
from moa_dspy.calls.budgets._budget import Spending
from moa_dspy.calls.budgets._database_book import DatabaseBook
from moa_dspy.calls.store import _table
from moa_dspy.calls.store._claims import Claims
from moa_dspy.calls.store._database import Database, Session
from moa_dspy.calls.store._owner import Owner
from moa_dspy.calls.store._schema import prepare
from moa_dspy.calls.store._seen import Seen
from moa_dspy.calls.store._shared_limits import SharedLimits
from moa_dspy.calls.store._table import PaidTwice
from moa_dspy.errors import StoreError

logger = logging.getLogger(__name__)


class CallStore:
    """Keeps every answered call; safe for threads, processes and, on PostgreSQL, machines.

    Each call is committed before its answer is handed out, so a process that is
    killed loses nothing that was paid for. The first answer to a key stays; a
    stored failure gives way to an answer. A store of an older version is brought up to
    this one when it is opened.

    Args:
        place: A file, ``sqlite:///FILE`` or ``postgresql://HOST/NAME``; a password is best
            left to ``PGPASSWORD`` or ``~/.pgpass``.
        timeout_seconds: How long a locked file, or a server that went away, is waited for.
        lease_seconds: How long after its last sign of life a process is taken for dead, and
            what it was asking is asked by another.
        memory_bytes: How much of what was read is kept, so that it need not be read again.

    Raises:
        StoreError: If the store cannot be opened, read or written, or belongs to a
            newer version.
    """

    def __init__(
        self,
        place: Path | str,
        *,
        timeout_seconds: float = 60.0,
        lease_seconds: float = 30.0,
        memory_bytes: int = 16 * 2**20,
    ) -> None:
        self.database = Database(place, timeout_seconds=timeout_seconds)
        self._seen = Seen(memory_bytes)
        self._unwritten: dict[str, Call] = {}
        self._lock = threading.Lock()
        prepare(self.database)
        self.owner = Owner(self.database, lease_seconds=lease_seconds)
        self.claims = Claims(self.owner)
        self.limits = SharedLimits(self.claims)
        # The thread that beats must not keep a store alive that everybody forgot.
        self.owner.on_beat.append(partial(_flush, weakref.ref(self)))
        weakref.finalize(self, self.owner.stop)

    @property
    def path(self) -> Path | None:
        """The file; None if the store is in PostgreSQL."""
        return self.database.path

    def __repr__(self) -> str:
        return f"CallStore({self.database.name!r})"

    def get(self, key: str) -> Call | None:
        """Return the stored call, or None; a call that was read lately is in memory."""
        if (call := self._seen.get(key)) is not None:
            return call
        if (call := self._unwritten.get(key)) is not None:
            return call
        stored = _table.read(self.database, key)
        return self._remember(stored) if stored is not None else None

    def get_many(self, keys: Iterable[str]) -> dict[str, Call]:
        """Return the stored calls of ``keys`` by key; what is not stored is not in it."""
        wanted = list(dict.fromkeys(keys))
        found = {key: call for key in wanted if (call := self._seen.get(key)) is not None}
        missing = [key for key in wanted if key not in found]
        for call in _table.read_many(self.database, missing):
            found[call.key] = self._remember(call)
        return {key: call for key in wanted if (call := found.get(key) or self._unwritten.get(key))}

    def _remember(self, call: Call) -> Call:
        if call.failure is None:
            self._seen.add(call)
        return call

    def claim(self, key: str) -> bool:
        """Take the right to make the call of ``key``, if nobody alive has it.

        Raises:
            StoreError: If the store cannot be used, or what was answered before still
                cannot be written: nothing more is paid for then.
        """
        self.flush()
        return self.claims.claim(key)

    def release(self, key: str) -> None:
        """Give the claim of ``key`` back, if it is held; the store itself does so with ``put``."""
        if key in self._unwritten:
            return  # given back when the answer is written
        try:
            self.claims.release(key)
        except StoreError as error:
            # Whoever releases has an answer or an error to hand on; the claim ends with the lease.
            logger.warning("A claim could not be given back: %s", error)

    def put(self, call: Call) -> Call:
        """Store ``call`` and return the call that is stored from now on.

        An answer gives the claim of its key back. If there was an answer already, that one
        stays, and what ``call`` cost is counted as paid twice. A call that cannot be stored is
        kept in memory, for its answer must be handed out; ``claim``, ``flush`` and ``close``
        fail until it is written.
        """
        try:
            return self._write(call)
        except StoreError as error:
            logger.warning("An answer is kept in memory until it can be stored: %s", error)
            with self._lock:
                self._unwritten[call.key] = call
            return call

    def _write(self, call: Call) -> Call:
        ticket = uuid.uuid4().hex  # of this writing: repeated, it still counts once
        # A failure is no end: who holds the claim may try again before anybody else does.
        is_held = call.failure is None and self.claims.holds(call.key)

        def write(session: Session) -> Call:
            stored = _table.write(session, call, ticket)
            if is_held:
                self.claims.drop(session, call.key)
            return stored

        stored = self.database.transact(write)
        if is_held:
            self.claims.forget(call.key)
        return self._remember(stored)

    def put_all(self, calls: Iterable[Call]) -> None:
        """Store many calls of elsewhere in one transaction; what has an answer here keeps it."""
        _table.write_all(self.database, calls)

    def flush(self) -> None:
        """Write the calls that could not be written when they were answered.

        Raises:
            StoreError: If they still cannot be.
        """
        for call in list(self._unwritten.values()):
            self._write(call)
            with self._lock:
                self._unwritten.pop(call.key, None)

    def __iter__(self) -> Iterator[Call]:
        """Yield every call, ordered by key; memory does not grow with the store."""
        return _table.read_all(self.database)

    def __len__(self) -> int:
        """Count the calls; this reads the whole index."""
        return _table.count(self.database)

    def paid_twice(self) -> PaidTwice:
        """Return what was paid twice, by all owners that ever used this store."""
        return _table.paid_twice(self.database)

    def book(self, study: str, *, spent: Spending | None = None) -> DatabaseBook:
        """Return the book that all who work on a study share; a new one starts at ``spent``."""
        return DatabaseBook(self.owner, study, spent=spent)

    def close(self) -> None:
        """Write what is left, give every claim back and close; what was stored is stored.

        Raises:
            StoreError: If an answer that was paid for could not be written.
        """
        try:
            self.flush()
            self.owner.resign()
        finally:
            self.database.close()


def _flush(forgettable: weakref.ref[CallStore]) -> None:
    store = forgettable()
    if store is not None:
        store.flush()
