"""One asynchronous engine per event loop, behind one that any loop may use."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any


class PerLoop:
    """Asks through an engine that belongs to the running event loop, and makes it at first use.

    A connection can only be awaited in the loop that opened it, but a pool outlives a loop:
    every ``asyncio.run`` brings a new one, and each thread may have its own.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._engines: dict[asyncio.AbstractEventLoop, Any] = {}
        self._lock = threading.Lock()

    def complete(self, request: Any) -> Any:
        """Return a coroutine of the response."""
        return self._here().complete(request)

    def stream(self, request: Any) -> Any:
        """Return an asynchronous iterator of the events."""
        return self._here().stream(request)

    def _here(self) -> Any:
        loop = asyncio.get_running_loop()
        return self._engines.get(loop) or self._add(loop)

    def _add(self, loop: asyncio.AbstractEventLoop) -> Any:
        with self._lock:
            # Engines of closed loops close their idle connections when nobody holds them.
            alive = {one: engine for one, engine in self._engines.items() if not one.is_closed()}
            self._engines = {**alive, loop: self._make()}
            return self._engines[loop]

    async def aclose(self) -> None:
        """Close what this loop opened, and let go of what closed loops left."""
        with self._lock:
            engine = self._engines.pop(asyncio.get_running_loop(), None)
            self._engines = {o: e for o, e in self._engines.items() if not o.is_closed()}
        if engine is not None:
            await engine.aclose()

    def close(self) -> None:
        """Let go of every loop's engine; calls in flight end as they would have."""
        with self._lock:
            self._engines = {}
