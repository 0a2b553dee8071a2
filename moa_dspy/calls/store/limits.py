"""Limits of endpoints that all processes on one store keep together: slots and pauses."""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass

from moa_dspy.calls.retry import Limiter, hinted_seconds
from moa_dspy.calls.store.leases import Claims
from moa_dspy.errors import StoreError

_logger = logging.getLogger(__name__)

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
        """Whether ``acquire`` might do anything but let a request pass."""
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
