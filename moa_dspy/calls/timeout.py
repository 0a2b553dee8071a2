"""Time limits of a whole attempt: a client's own timeout bounds only each wait for bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import wait
from contextvars import copy_context
from functools import partial
from typing import Any

from moa_dspy._threads import THREADS
from moa_dspy.dspy_internals import lm15


def within(seconds: float | None, task: Callable[[], Any]) -> Any:
    """Return what ``task`` returns; None means no limit.

    It runs in a thread of its own, for a thread that waits for bytes cannot be stopped:
    one that is too late goes on until its client gives up, and its result is dropped.

    Raises:
        TimeoutError: lm15's, after ``seconds``.
    """
    if seconds is None:
        return task()
    future = THREADS.submit(partial(copy_context().run, task))
    if not wait([future], timeout=seconds).done:
        raise _too_late(seconds)
    return future.result()


async def awithin(
    seconds: float | None, task: Awaitable[Any], *, of_seconds: float | None = None
) -> Any:
    """``within`` for coroutines; one that is too late is cancelled.

    Args:
        seconds: Time that is left.
        task: The awaitable.
        of_seconds: The whole time, for the error.
    """
    if seconds is None:
        return await task
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await task
    except TimeoutError as error:
        if limit.expired() and not isinstance(error, lm15.LM15Error):
            raise _too_late(of_seconds or seconds) from None
        raise


def events_within(seconds: float | None, events: Iterator[Any]) -> Iterator[Any]:
    """Yield ``events`` until waiting for them has taken more than ``seconds`` in all.

    The time is checked after each event; between two, the client's own timeout holds.
    """
    waited = 0.0
    while True:
        started = time.monotonic()
        try:
            event = next(events)
        except StopIteration:
            return
        waited += time.monotonic() - started
        if seconds is not None and waited > seconds:
            raise _too_late(seconds)
        yield event


async def aevents_within(seconds: float | None, events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """``events_within`` for coroutines, which can be stopped between two events too."""
    left = seconds
    while True:
        started = time.monotonic()
        try:
            event = await awithin(left, anext(events), of_seconds=seconds)
        except StopAsyncIteration:
            return
        if left is not None:
            left -= time.monotonic() - started
        yield event


def _too_late(seconds: float) -> lm15.TimeoutError:
    return lm15.TimeoutError(f"There was no complete answer after {seconds:g} s.")
