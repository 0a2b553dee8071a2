"""Time as the calls see it; a test may give one that does not have to wait."""

from __future__ import annotations

import asyncio
import time


class Clock:
    """The clock of this machine."""

    def time(self) -> float:
        """Return UTC seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that only grow, for deadlines and durations."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait in a thread."""
        time.sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        """Wait in a coroutine."""
        await asyncio.sleep(seconds)
