"""Whether and when a failed call is tried again."""

# DOCS: calls/_limits: How many requests an endpoint gets at a time, from threads and from any number of loops.

from __future__ import annotations

import math
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from random import Random
from typing import Final, TypeAlias

from moa_dspy.errors import MoaError

_LONGEST_BACKOFF_SECONDS: Final = 60.0
_LONGEST_HINT_SECONDS: Final = 600.0
"""Who is told to come back later than this has met a quota, not a hiccup."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter, for errors that DSPy calls retryable.

    Before attempt 2, 3, 4, ... it is waited between 0 and 1, 2, 4, ... seconds, at most
    60: who failed together does not come back together. A ``Retry-After`` is waited for in
    addition; one of more than 600 seconds ends the attempts. The jitter is drawn from the
    call's key, so equal studies wait equally long.

    Attributes:
        num_retries: Attempts after the first; 0 is none.
    """

    num_retries: int = 0

    def wait_seconds(self, error: BaseException, *, attempt: int, key: str) -> float | None:
        """Return how long to wait after ``attempt`` (from 1) failed; None is not to try again."""
        if attempt > self.num_retries or not isinstance(error, Exception):
            return None
        if not is_transient(error):
            return None
        hint = hinted_seconds(error)
        return hint + backoff_seconds(attempt, key) if hint <= _LONGEST_HINT_SECONDS else None


def backoff_seconds(attempt: int, key: str) -> float:
    """Return how long to wait after ``attempt`` (from 1), drawn by the call's key."""
    most = min(2.0 ** min(attempt - 1, 6), _LONGEST_BACKOFF_SECONDS)
    return Random(f"{key}/{attempt}").uniform(0.0, most)


def is_transient(error: Exception) -> bool:
    """Whether DSPy calls ``error`` retryable: busy, down, slow or cut off."""
    import dspy

    return not isinstance(error, MoaError) and dspy.is_retryable_lm_error(_as_dspy_says(error))


def is_unreadable(error: Exception) -> bool:
    """Whether a server that answered sent no answer: another kind of JSON, none, or no choice."""
    import dspy

    if isinstance(error, MoaError):
        return False
    shown = _as_dspy_says(error)
    has_succeeded = (getattr(shown, "status", None) or 200) < 400
    return type(shown) is dspy.LMProviderError and has_succeeded


def _as_dspy_says(error: Exception) -> Exception:
    """Return the error as DSPy shows it to its users."""
    from dspy.clients.engines.litellm_errors import to_lm15_error
    from dspy.clients.errors import wrap_error

    if type(error).__module__.partition(".")[0] == "litellm":
        error = to_lm15_error(error)
    shown: Exception = wrap_error(error, model="")
    return shown


def hinted_seconds(error: Exception) -> float:
    """Return the ``Retry-After`` that came with ``error``; 0 without one."""
    value = None if isinstance(error, MoaError) else _as_dspy_says(error)
    value = getattr(value, "retry_after", None)
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return max(0.0, float(value)) if is_number else 0.0  # type: ignore[arg-type]  # checked above


WaitingRequest: TypeAlias = Future[None]
"""A place in the queue; done when it has become a slot."""


class Limiter:
    """Slots of one endpoint, given in the order of asking.

    Args:
        limit: Requests at a time; None is any number.
        endpoint: What other processes know it by; "" is nothing that they share.
    """

    def __init__(self, limit: int | None = None, *, endpoint: str = "") -> None:
        self._limit, self.endpoint = limit, endpoint
        self._n_inside = 0
        self._queue: deque[WaitingRequest] = deque()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Limiter({self._limit})"

    @property
    def limit(self) -> int | None:
        """Requests at a time; None is any number."""
        return self._limit

    def lower(self, limit: int | None) -> None:
        """Take the smaller of the limit and ``limit``; who is inside stays inside."""
        with self._lock:
            given = [n for n in (self._limit, limit) if n is not None]
            self._limit = min(given, default=None)

    def enter(self) -> WaitingRequest:
        """Ask for a slot; whatever happens then, ``leave`` must be called once."""
        ticket: WaitingRequest = Future()
        # A running future cannot be cancelled by a task that waits for it.
        ticket.set_running_or_notify_cancel()
        with self._lock:
            self._queue.append(ticket)
            admitted = self._admit()
        _open(admitted)
        return ticket

    def leave(self, ticket: WaitingRequest) -> None:
        """Give back the slot, or the place in the queue."""
        with self._lock:
            if ticket in self._queue:
                self._queue.remove(ticket)
            else:
                self._n_inside -= 1
            admitted = self._admit()
        _open(admitted)

    def _admit(self) -> list[WaitingRequest]:
        admitted = []
        while self._queue and (self._limit is None or self._n_inside < self._limit):
            self._n_inside += 1
            admitted.append(self._queue.popleft())
        return admitted


class Limiters:
    """One limiter per endpoint, shared by all agents of it."""

    def __init__(self) -> None:
        self._limiters: dict[str, Limiter] = {}
        self._lock = threading.Lock()

    def of(self, endpoint: str, limit: int | None = None) -> Limiter:
        """Return the limiter of ``endpoint``, with the smallest limit that was ever given."""
        with self._lock:
            limiter = self._limiters.setdefault(endpoint, Limiter(endpoint=endpoint))
        limiter.lower(limit)
        return limiter


def _open(tickets: list[WaitingRequest]) -> None:
    # Outside the lock: who waits for a ticket may be called at once, in this thread.
    for ticket in tickets:
        ticket.set_result(None)
