"""How long the asker of a call waits: until a deadline, or until somebody says to stop."""

from __future__ import annotations

import asyncio
import math
import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, Final

from moa_dspy.calls._clock import Clock
from moa_dspy.calls._scope import CallScope

_LOOK_SECONDS: Final = 0.05
"""How often a waiter looks whether it was told to stop; nothing would wake it."""


class DeadlineError(TimeoutError):
    """The asker's time ended before a request was sent: a failure of the agent, nothing else."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Waits for things, but never longer than the asker does.

    Every method that waits or checks raises DeadlineError when the time has ended.
    """

    clock: Clock
    deadline: float = math.inf
    stops: tuple[threading.Event, ...] = ()
    started: float = field(default=0.0)

    @classmethod
    def of(cls, scope: CallScope, clock: Clock) -> Patience:
        """Return the patience of whoever asks in ``scope``, from this moment on."""
        deadline = math.inf if scope.deadline is None else scope.deadline
        return cls(clock, deadline, scope.cancelled, clock.monotonic())

    @property
    def waited_seconds(self) -> float:
        """How long it has been waited in all."""
        return self.clock.monotonic() - self.started

    @property
    def left_seconds(self) -> float:
        """How long may still be waited; 0 and less is the end."""
        if any(stop.is_set() for stop in self.stops):
            return -math.inf
        return self.deadline - self.clock.monotonic()

    def check(self) -> None:
        """Raise if the time has ended."""
        if (left := self.left_seconds) > 0:
            return
        why = "nobody waits for it any more" if left == -math.inf else "its deadline has passed"
        raise DeadlineError(f"The request was not sent: {why}, after {self.waited_seconds:.2f} s.")

    def wait(self, future: Future[Any]) -> None:
        """Wait until ``future`` is done, whatever its result."""
        while not future.done():
            self.check()
            wait([future], timeout=self._look(self.left_seconds))

    async def await_(self, future: Future[Any]) -> None:
        """``wait`` for coroutines; a running ``future`` cannot be cancelled by it."""
        wrapped = asyncio.wrap_future(future)
        try:
            while not wrapped.done():
                self.check()
                await asyncio.wait([wrapped], timeout=self._look(self.left_seconds))
        finally:
            # Else it would call back into a loop that may be closed by then.
            wrapped.cancel()

    def sleep(self, seconds: float) -> None:
        """Wait ``seconds``."""
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            self.check()
            self.clock.sleep(self._look(left) or 0.0)
        self.check()

    async def asleep(self, seconds: float) -> None:
        """``sleep`` for coroutines."""
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            self.check()
            await self.clock.asleep(self._look(left) or 0.0)
        self.check()

    def _look(self, seconds: float) -> float | None:
        if self.stops:
            return max(0.0, min(seconds, _LOOK_SECONDS))
        return None if seconds == math.inf else max(0.0, seconds)
