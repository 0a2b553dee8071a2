"""What an endpoint asks of all processes on one store together: slots, and to be left alone."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from moa_dspy.calls.retry import Limiter, hinted_seconds
from moa_dspy.calls.scope import Deadline
from moa_dspy.calls.steps import CallPlan, Sleep, Work
from moa_dspy.calls.store.leases import Claims, pauses
from moa_dspy.errors import StoreError

_logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""How old a look at an endpoint's pause may be."""
_LONGEST_PAUSE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class _Pause:
    looked_at: float
    ends_at: float


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a request may be sent now.

    Attributes:
        is_open: Whether it may.
        slot: The claim that lets it; None where nobody counts.
        wait_seconds: How long an endpoint still wants to be left alone.
    """

    is_open: bool
    slot: str | None = None
    wait_seconds: float = 0.0


class SharedLimits:
    """Slots of endpoints as claims, and pauses that one process was told and all keep.

    Safe for threads. The slots of a process that died are free again.

    Args:
        claims: Of the store.
    """

    def __init__(self, claims: Claims) -> None:
        self._claims, self._database = claims, claims.owner.database
        self._pauses: dict[str, _Pause] = {}
        self._lock = threading.Lock()

    def has_say(self, limiter: Limiter) -> bool:
        """Whether ``enter`` might do anything but let a request pass."""
        if not limiter.endpoint:
            return False
        pause, now = self._pauses.get(limiter.endpoint), time.monotonic()
        is_fresh = pause is not None and now - pause.looked_at < _LOOK_SECONDS
        is_paused = pause is not None and pause.ends_at > now
        return limiter.limit is not None or not is_fresh or is_paused

    def enter(self, limiter: Limiter) -> Admission:
        """Take a slot of the endpoint, if one is free and it does not want to be left alone."""
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
        # Those that nobody has first; those of others last, for their owner may be dead.
        ordered = sorted(names, key=lambda name: (name in taken, random.random()))
        return next((name for name in ordered if self._claims.claim(name)), None)

    def leave(self, slot: str) -> None:
        """Give a slot back."""
        try:
            self._claims.release(slot)
        except StoreError as error:
            _logger.warning("A slot could not be given back: %s", error)

    def note(self, error: Exception, endpoint: str) -> None:
        """Keep what ``error`` says of how long the endpoint wants to be left alone, for all."""
        seconds = min(hinted_seconds(error), _LONGEST_PAUSE_SECONDS)
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
        except StoreError as error_of_store:
            _logger.warning("A pause could not be told to others: %s", error_of_store)

    def _pause_left(self, endpoint: str) -> float:
        now, pause = time.monotonic(), self._pauses.get(endpoint)
        if pause is None or (now - pause.looked_at >= _LOOK_SECONDS and pause.ends_at <= now):
            query = f"SELECT until - {self._database.clock} FROM pauses WHERE endpoint = ?"
            rows = self._database.rows(query, (endpoint,))
            # A clock that was set back must not stop a study for good.
            left = min(float(rows[0][0]), _LONGEST_PAUSE_SECONDS) if rows else 0.0
            pause = _Pause(now, now + left)
            with self._lock:
                self._pauses[endpoint] = pause
        return max(0.0, pause.ends_at - now)


def wait_for_slot(
    limits: SharedLimits, limiter: Limiter, patience: Deadline, *, make: Callable[[], CallPlan]
) -> CallPlan:
    """Say how to get a call by ``make`` as soon as all processes together leave room for it."""
    entering = Work(partial(limits.enter, limiter))
    try:
        for pause in pauses():
            entering.result = None
            yield entering
            if entering.result.is_open:
                break
            yield Sleep(patience, entering.result.wait_seconds or pause)
        return (yield from make())
    finally:
        if entering.result is not None and entering.result.slot is not None:
            limits.leave(entering.result.slot)
