"""A clock that does not have to wait."""

from __future__ import annotations

import asyncio

from moa_dspy.calls import Clock


class FakeClock(Clock):
    """Time passes only while somebody sleeps, and then at once."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    def time(self) -> float:
        return 1_700_000_000.0 + self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.sleep(seconds)
