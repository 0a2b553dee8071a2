"""Things that the processes on one store hold: leases, claims, slots and pauses of endpoints.

A process is alive while it renews its lease. A claim is a name that one live process holds at a
time; the slots of an endpoint are claims.
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
    """A lease that one thread of this process renews, for all that the process holds.

    An owner is dead if it was a process of this machine that is gone, if its lease has expired
    by PostgreSQL's own clock, or if its heartbeat has not moved for a lease by the monotonic clock
    of the waiting process; no machine's time of day matters, however it jumps.

    Args:
        database: Prepared.
        lease_seconds: How long after its last sign of life an owner is taken for dead.
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
        """Make this process known, before the first claim or reservation, and start renewing."""
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
        """Stop renewing; what is held is free for others after a lease."""
        self._stopped.set()

    def unregister(self) -> None:
        """Stop renewing and give back everything that this process holds, at once."""
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
                    # The next use of the store raises it; the next heartbeat tries again.
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
        """Judge another owner by what its row says at this moment.

        Args:
            owner: Its ``id``.
            beat: Its heartbeat count; None if it has no row, because it left.
            has_expired: Whether its lease is over by the database's clock.
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
            # A long gap means that this process was stopped, and says nothing about the other.
            gap = min(now - seen.seen_at, self.lease_seconds / _HEARTBEATS_PER_LEASE)
            seen.unmoved_seconds += gap
            seen.seen_at = now
            return seen.unmoved_seconds


@cache
def _machine() -> str:
    """Return what names this start of this machine and this container; "" where nothing does.

    Host names and machine ids are the same on machines that were copied from one image.
    """
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_gone(owner: str) -> bool:
    """True if ``owner`` was a process beside this one and does not run any more."""
    machine, number, _ = owner.split("/")
    if not machine or machine != _machine():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # of another user, but it runs
    return False


class Claims:
    """Names that one owner at a time may hold; the names of a dead owner are free again.

    A claim is one short transaction, and none is open while it is held. Safe for threads:
    of those of one process, too, one gets a name.

    Args:
        owner: Of this process.
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
        """Take ``key`` if no live owner holds it; return whether this call took it.

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
        # A waiter looks often: it must not take a lock each time.
        holders = database.rows(self._look, (key,))
        if holders and not self._is_free(*holders[0]):
            return False
        self.owner.register()
        return database.transact(
            lambda session: self._take(session, key, *holders), is_durable=False
        )

    def _is_free(self, who: str, beat: int | None, has_expired: object) -> bool:
        # Ours, though not held: from a transaction whose end was lost with the connection.
        return who == self.owner.id or self.owner.is_dead(who, beat, has_expired=bool(has_expired))

    def _take(self, session: Session, key: str, holder: Any = None) -> bool:
        me = self.owner.id
        if holder is None or holder[0] == me:
            insert = "INSERT INTO claims (key, owner) VALUES (?, ?) ON CONFLICT (key) DO NOTHING"
            session.execute(insert, (key, me))
            return session.rows("SELECT owner FROM claims WHERE key = ?", (key,)) == [(me,)]
        who, beat, _ = holder
        take_over = (
            "UPDATE claims SET owner = ? WHERE key = ? AND owner = ? AND NOT EXISTS "
            "(SELECT 1 FROM owners WHERE owner = ? AND beat <> ?)"
        )
        # With a heartbeat since the look it lives after all; another process may have been faster.
        values = (me, key, who, who, -1 if beat is None else beat)
        return bool(session.execute(take_over, values).rowcount)

    def holds(self, key: str) -> bool:
        """True if this process believes that it holds ``key``."""
        return key in self._held

    def release(self, key: str) -> None:
        """Give ``key`` back, if it is held.

        Raises:
            StoreError: If the database cannot be used; the claim ends with this process then.
        """
        if self.holds(key):
            self.owner.database.transact(lambda session: self.drop(session, key), is_durable=False)
            self.forget(key)

    def drop(self, session: Session, key: str) -> None:
        """Give ``key`` back as a part of other work; ``forget`` it when that is done."""
        session.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self.owner.id))

    def forget(self, key: str) -> None:
        """Note that ``key`` is not held any more."""
        with self._lock:
            self._held.discard(key)


_MAX_AGE_SECONDS = 1.0
"""How old a reading of an endpoint's pause may be."""
_MAX_PAUSE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class _Pause:
    read_at: float
    ends_at: float


@dataclass(frozen=True, slots=True)
class Admission:
    """Answer of the shared limits to a request for a slot.

    Attributes:
        is_open: Whether it may.
        slot: The claim of its slot; None where there is no limit.
        wait_seconds: How long the endpoint still wants no request; 0 if it did not say.
    """

    is_open: bool
    slot: str | None = None
    wait_seconds: float = 0.0


class SharedLimits:
    """Slots of endpoints as claims, and the pauses for which an endpoint asked one process.

    Safe for threads. The slots of a process that died are free again.

    Args:
        claims: Of the store.
    """

    def __init__(self, claims: Claims) -> None:
        self._claims, self._database = claims, claims.owner.database
        self._pauses: dict[str, _Pause] = {}
        self._lock = threading.Lock()

    def applies_to(self, limiter: Limiter) -> bool:
        """True if ``acquire`` might do anything but let a request pass."""
        if not limiter.endpoint:
            return False
        pause, now = self._pauses.get(limiter.endpoint), time.monotonic()
        is_fresh = pause is not None and now - pause.read_at < _MAX_AGE_SECONDS
        is_paused = pause is not None and pause.ends_at > now
        return limiter.limit is not None or not is_fresh or is_paused

    def acquire(self, limiter: Limiter) -> Admission:
        """Take a slot of the endpoint, if one is free and the endpoint asked for no pause."""
        if (left := self._pause_left(limiter.endpoint)) > 0:
            return Admission(False, wait_seconds=left)
        if limiter.limit is None:
            return Admission(True)
        slot = self._free_slot(limiter.endpoint, limiter.limit)
        return Admission(slot is not None, slot)

    def _free_slot(self, endpoint: str, limit: int) -> str | None:
        names = [f"slot:{endpoint}:{number}" for number in range(limit)]
        marks = ", ".join("?" * limit)
        found = self._database.rows(f"SELECT key FROM claims WHERE key IN ({marks})", names)
        taken = {key for (key,) in found}
        # Free ones first; those of others last, for their owner may be dead.
        ordered = sorted(names, key=lambda name: (name in taken, random.random()))
        return next((name for name in ordered if self._claims.claim(name)), None)

    def release(self, admission: Admission) -> None:
        """Give the slot back, if there is one."""
        if admission.slot is None:
            return
        try:
            self._claims.release(admission.slot)
        except StoreError as error:
            _logger.warning("A slot could not be given back: %s", error)

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
            # A clock that was set back must not stop a study forever.
            left = min(float(rows[0][0]), _MAX_PAUSE_SECONDS) if rows else 0.0
            pause = _Pause(now, now + left)
            with self._lock:
                self._pauses[endpoint] = pause
        return max(0.0, pause.ends_at - now)
