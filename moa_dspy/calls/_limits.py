"""How many requests an endpoint gets at a time, from threads and from any number of loops."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import TypeAlias

Ticket: TypeAlias = Future[None]
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
        self._queue: deque[Ticket] = deque()
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

    def enter(self) -> Ticket:
        """Ask for a slot; whatever happens then, ``leave`` must be called once."""
        ticket: Ticket = Future()
        # A running future cannot be cancelled by a task that waits for it.
        ticket.set_running_or_notify_cancel()
        with self._lock:
            self._queue.append(ticket)
            admitted = self._admit()
        _open(admitted)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give back the slot, or the place in the queue."""
        with self._lock:
            if ticket in self._queue:
                self._queue.remove(ticket)
            else:
                self._n_inside -= 1
            admitted = self._admit()
        _open(admitted)

    def _admit(self) -> list[Ticket]:
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


def _open(tickets: list[Ticket]) -> None:
    # Outside the lock: who waits for a ticket may be called at once, in this thread.
    for ticket in tickets:
        ticket.set_result(None)
