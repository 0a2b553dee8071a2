"""Single flight: of those who want the same at once, one asks and the others wait."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TypeAlias

Flight: TypeAlias = Future[None]
"""Done when it has landed; what came of it is looked up, as anybody else would."""


class Flights:
    """Keys that are being asked for in this process."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}
        self._lock = threading.Lock()

    def board(self, key: str) -> tuple[Flight, bool]:
        """Return the flight of ``key``, and whether it is new: who began it must land it."""
        with self._lock:
            if (flight := self._flights.get(key)) is not None:
                return flight, False
            flight = self._flights[key] = Future()
            # A running future cannot be cancelled by a task that waits for it.
            flight.set_running_or_notify_cancel()
        return flight, True

    def land(self, key: str, flight: Flight) -> None:
        """End a flight; everybody who waits for it goes on."""
        with self._lock:
            del self._flights[key]
        flight.set_result(None)
