"""Leases, claims, endpoint slots and endpoint pauses of the processes on one store.

A process is alive while it renews its lease. A claim is a lock by name that at most one live
process holds; the slots of an endpoint are claims.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from moa_dspy.calls.request import Limiter, hinted_seconds
from moa_dspy.calls.store.database import Database, Session
from moa_dspy.errors import StoreError

_logger = logging.getLogger(__name__)

_HEARTBEATS_PER_LEASE = 3


@dataclass(slots=True)
class _LastSeen:
    beat: int
    seen_at: float
    unmoved_seconds: float = 0.0


class Owner:
    """The lease of this process, renewed by one thread, on which all its claims depend.

    An owner is dead if it was a process of this machine that has ended, if its lease has expired by
    PostgreSQL's clock, or if its heartbeat has not changed for the length of a lease by the
    monotonic clock of the waiting process. The wall clocks of the machines do not matter.

    Args:
        database: A prepared database.
        lease_seconds: Time after the last heartbeat when an owner is considered dead.
    """

    def __init__(self, database: Database, *, lease_seconds: float = 30.0) -> None:
        self.database, self.lease_seconds = database, lease_seconds
        self.id = f"{_machine()}/{os.getpid()}/{uuid.uuid4().hex}"
        self.on_heartbeat: list[Callable[[], None]] = []
        self._last_seen: dict[str, _LastSeen] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def register(self) -> None:
        """Register this process and renew its lease, before the first claim or reservation."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is not None:
                return
            self._renew()
            self._stopped.clear()
            self._thread = threading.Thread(target=self._heartbeat, name="moa-lease", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop renewing; the claims become free for others when the lease has expired."""
        self._stopped.set()

    def unregister(self) -> None:
        """Stop renewing and release all claims of this process at once."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self.stop()
            thread.join()
            self.database.transact(self._leave)

    def _leave(self, session: Session) -> None:
        session.execute("DELETE FROM claims WHERE owner = ?", (self.id,))
        session.execute("DELETE FROM owners WHERE owner = ?", (self.id,))

    def _heartbeat(self) -> None:
        while not self._stopped.wait(self.lease_seconds / _HEARTBEATS_PER_LEASE):
            for work in (self._renew, *self.on_heartbeat):
                try:
                    work()
                except StoreError as error:
                    # The next use of the store raises the error; the next heartbeat tries again.
                    _logger.warning("A lease could not be renewed: %s", error)

    def _renew(self) -> None:
        expires = f"{self.database.clock} + ?"
        renewal = (
            f"INSERT INTO owners (owner, beat, expires) VALUES (?, 1, {expires}) ON CONFLICT "
            "(owner) DO UPDATE SET beat = owners.beat + 1, expires = excluded.expires"
        )
        values = (self.id, self.lease_seconds)
        self.database.transact(lambda session: session.execute(renewal, values), is_durable=False)

    def is_dead(self, owner: str, beat: int | None, *, has_expired: bool) -> bool:
        """Return whether another owner is dead, by the present content of its row.

        Args:
            owner: The owner's ``id``.
            beat: The owner's heartbeat count; None if it has unregistered.
            has_expired: Whether the lease has expired by the database's clock.
        """
        if beat is None or _is_gone(owner):
            return True
        if self.database.is_postgresql and has_expired:
            return True
        return self._unmoved_seconds(owner, beat) > self.lease_seconds

    def _unmoved_seconds(self, owner: str, beat: int) -> float:
        now = time.monotonic()
        with self._lock:
            seen = self._last_seen.get(owner)
            if seen is None or seen.beat != beat:
                self._last_seen[owner] = _LastSeen(beat, now)
                return 0.0
            # A long gap means that this process was suspended; it is no sign about the other
            # process.
            gap = min(now - seen.seen_at, self.lease_seconds / _HEARTBEATS_PER_LEASE)
            seen.unmoved_seconds += gap
            seen.seen_at = now
            return seen.unmoved_seconds


@cache
def _machine() -> str:
    """Return an id of this boot of the machine and this container; "" if there is none.

    Host names and machine ids are not enough: machines copied from one image share them.
    """
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_gone(owner: str) -> bool:
    """Return whether ``owner`` was a process of this machine that has ended."""
    machine, number, _ = owner.split("/")
    if not machine or machine != _machine():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # a process of another user, which is running
    return False


class Claims:
    """Locks by name, each held by one owner at a time; those of a dead owner become free.

    Claiming is one short transaction; no transaction stays open while the claim is held. Safe for
    threads: among those of one process, too, only one gets a name.

    Args:
        owner: The owner of this process.
    """

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._look = (
            "SELECT claims.owner, owners.beat, "
            f"coalesce(owners.expires < {owner.database.clock}, FALSE) FROM claims "
            "LEFT JOIN owners ON owners.owner = claims.owner WHERE claims.key = ?"
        )

    def claim(self, key: str) -> bool:
        """Claim ``key`` if no live owner holds it; return whether this call succeeded.

        Raises:
            StoreError: If the database cannot be used.
        """
        with self._lock:
            if key in self._held:
                return False
            self._held.add(key)
        is_mine = False
        try:
            is_mine = self._claim(key)
        finally:
            if not is_mine:
                self.forget(key)
        return is_mine

    def _claim(self, key: str) -> bool:
        database = self.owner.database
        # A waiter checks often and must not lock the database each time.
        holders = database.rows(self._look, (key,))
        if holders and not self._is_free(*holders[0]):
            return False
        self.owner.register()
        return database.transact(
            lambda session: self._take(session, key, *holders), is_durable=False
        )

    def _is_free(self, owner_id: str, beat: int | None, has_expired: object) -> bool:
        # Our own row without a claim is from a transaction whose end was lost with the connection.
        return owner_id == self.owner.id or self.owner.is_dead(
            owner_id, beat, has_expired=bool(has_expired)
        )

    def _take(self, session: Session, key: str, holder: Any = None) -> bool:
        me = self.owner.id
        if holder is None or holder[0] == me:
            insert = "INSERT INTO claims (key, owner) VALUES (?, ?) ON CONFLICT (key) DO NOTHING"
            session.execute(insert, (key, me))
            return session.rows("SELECT owner FROM claims WHERE key = ?", (key,)) == [(me,)]
        owner_id, beat, _ = holder
        take_over = (
            "UPDATE claims SET owner = ? WHERE key = ? AND owner = ? AND NOT EXISTS "
            "(SELECT 1 FROM owners WHERE owner = ? AND beat <> ?)"
        )
        # After a new heartbeat the owner is alive; another process may have been faster.
        values = (me, key, owner_id, owner_id, -1 if beat is None else beat)
        return bool(session.execute(take_over, values).rowcount)

    def holds(self, key: str) -> bool:
        """Return whether this process believes that it holds ``key``."""
        return key in self._held

    def release(self, key: str) -> None:
        """Release ``key``, if it is held.

        Raises:
            StoreError: If the database cannot be used; the claim ends with this process then.
        """
        if self.holds(key):
            self.owner.database.transact(lambda session: self.drop(session, key), is_durable=False)
            self.forget(key)

    def drop(self, session: Session, key: str) -> None:
        """Release ``key`` as a part of a transaction; call ``forget`` after that."""
        session.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self.owner.id))

    def forget(self, key: str) -> None:
        """Record that ``key`` is no longer held."""
        with self._lock:
            self._held.discard(key)


_MAX_AGE_SECONDS = 1.0
"""Longest time for which the stored pause of an endpoint is cached."""
_MAX_PAUSE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class _Pause:
    read_at: float
    ends_at: float


@dataclass(frozen=True, slots=True)
class Admission:
    """Result of a request for a slot of the shared limits.

    Attributes:
        is_open: Whether the request may be sent.
        slot: The claim of its slot; None if there is no limit.
        wait_seconds: Rest of the pause that the endpoint asked for; 0 without a pause.
    """

    is_open: bool
    slot: str | None = None
    wait_seconds: float = 0.0


class SharedLimits:
    """Endpoint slots as claims, and endpoint pauses shared by all processes.

    Safe for threads. The slots of a dead process become free.

    Args:
        claims: The store's claims.
    """

    def __init__(self, claims: Claims) -> None:
        self._claims, self._database = claims, claims.owner.database
        self._pauses: dict[str, _Pause] = {}
        self._lock = threading.Lock()

    def applies_to(self, limiter: Limiter) -> bool:
        """Return whether ``acquire`` might do anything but let a request pass."""
        if not limiter.endpoint:
            return False
        pause, now = self._pauses.get(limiter.endpoint), time.monotonic()
        is_fresh = pause is not None and now - pause.read_at < _MAX_AGE_SECONDS
        is_paused = pause is not None and pause.ends_at > now
        return limiter.limit is not None or not is_fresh or is_paused

    def acquire(self, limiter: Limiter) -> Admission:
        """Acquire a slot of the endpoint, if a slot is free and the endpoint asked for no pause."""
        if (left := self._pause_left(limiter.endpoint)) > 0:
            return Admission(False, wait_seconds=left)
        if limiter.limit is None:
            return Admission(True)
        slot = self._free_slot(limiter.endpoint, limiter.limit)
        return Admission(slot is not None, slot)

    def _free_slot(self, endpoint: str, limit: int) -> str | None:
        names = [f"slot:{endpoint}:{number}" for number in range(limit)]
        marks = ", ".join("?" * limit)
        rows = self._database.rows(f"SELECT key FROM claims WHERE key IN ({marks})", names)
        taken = {key for (key,) in rows}
        # Free slots first; then those of others, whose owners may be dead.
        ordered = sorted(names, key=lambda name: (name in taken, random.random()))
        return next((name for name in ordered if self._claims.claim(name)), None)

    def release(self, admission: Admission) -> None:
        """Give the slot back, if there is one."""
        if admission.slot is None:
            return
        try:
            self._claims.release(admission.slot)
        except StoreError as error:
            _logger.warning("A place among an endpoint's requests could not be released: %s", error)

    def note_pause(self, error: Exception, endpoint: str) -> None:
        """Keep the pause that came with ``error``, for all processes."""
        seconds = min(hinted_seconds(error), _MAX_PAUSE_SECONDS)
        if seconds <= 0 or not endpoint:
            return
        until = f"{self._database.clock} + ?"
        insert = (
            f"INSERT INTO pauses (endpoint, until) VALUES (?, {until}) ON CONFLICT (endpoint) DO "
            "UPDATE SET until = excluded.until WHERE excluded.until > pauses.until"
        )
        now = time.monotonic()
        with self._lock:
            self._pauses[endpoint] = _Pause(now, now + seconds)
        try:
            self._database.transact(
                lambda session: session.execute(insert, (endpoint, seconds)), is_durable=False
            )
        except StoreError as store_error:
            _logger.warning("A pause could not be stored for other processes: %s", store_error)

    def _pause_left(self, endpoint: str) -> float:
        now, pause = time.monotonic(), self._pauses.get(endpoint)
        if pause is None or (now - pause.read_at >= _MAX_AGE_SECONDS and pause.ends_at <= now):
            query = f"SELECT until - {self._database.clock} FROM pauses WHERE endpoint = ?"
            rows = self._database.rows(query, (endpoint,))
            # Capped, as a clock that was set back must not stop a study forever.
            left = min(float(rows[0][0]), _MAX_PAUSE_SECONDS) if rows else 0.0
            pause = _Pause(now, now + left)
            with self._lock:
                self._pauses[endpoint] = pause
        return max(0.0, pause.ends_at - now)
