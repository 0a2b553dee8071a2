"""Time limits of whole attempts, and threads that start a task at once and are used again.

A client's own timeout bounds only each wait for bytes. No thread here keeps a process alive.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
)
from concurrent.futures import Future, wait
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias, TypeVar

from moa_dspy.calls.scope import DeadlineError, Interrupt
from moa_dspy.dspy_internals import lm15

_T = TypeVar("_T")
_Job: TypeAlias = tuple[Future[Any], Callable[[], Any]]

_IDLE_SECONDS: Final = 30.0


class Threads:
    """Runs every task at once, in a thread that is idle or else in a new one.

    Unlike an executor it has no upper limit, so a mixture inside a mixture cannot wait
    for itself, and its threads are daemons: a task whose caller has stopped waiting does
    not hold up the end of the process.
    """

    def __init__(self) -> None:
        self._idle: list[SimpleQueue[_Job]] = []
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # A forked process has none of its parent's threads.
        self._idle, self._lock = [], threading.Lock()

    def submit(self, task: Callable[[], Any]) -> Future[Any]:
        """Start ``task`` and return its future; it cannot be cancelled."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
        if inbox is None:
            inbox = SimpleQueue()
            threading.Thread(target=self._work, args=(inbox,), daemon=True).start()
        inbox.put((future, task))
        return future

    def _work(self, inbox: SimpleQueue[_Job]) -> None:
        while (job := self._next(inbox)) is not None:
            self._run(inbox, *job)
            del job  # A waiting thread must not keep a task's objects alive.

    def _next(self, inbox: SimpleQueue[_Job]) -> _Job | None:
        try:
            return inbox.get(timeout=_IDLE_SECONDS)
        except Empty:
            with self._lock:
                if inbox in self._idle:
                    self._idle.remove(inbox)
                    return None
        return inbox.get()  # It was chosen while it gave up waiting.

    def _run(self, inbox: SimpleQueue[_Job], future: Future[Any], task: Callable[[], Any]) -> None:
        result, failure = None, None
        try:
            result = task()
        except BaseException as error:
            failure = error
        # Idle before the result is out: who waits for it may want the thread again at once.
        with self._lock:
            self._idle.append(inbox)
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)


def finished(task: Callable[[], Any]) -> Future[Any]:
    """Run ``task`` in this thread and return its future; an interrupt is raised at once."""
    future: Future[Any] = Future()
    try:
        future.set_result(task())
    except Exception as error:
        future.set_exception(error)
    return future


THREADS: Final = Threads()
"""The threads of this process; layers of every mixture share them."""


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


_POLL_SECONDS: Final = 0.05
"""How often a waiter looks whether its caller has ended; nothing else would wake it."""


def unless(interrupted: Interrupt, running: Future[_T], *, what: str = "call") -> _T:
    """Return the result of ``running``, which goes on by itself if the caller is interrupted.

    Raises:
        DeadlineError: It was.
    """
    while not wait([running], timeout=_POLL_SECONDS).done:
        if interrupted.is_set():
            raise _given_up(what)
    return running.result()


async def aunless(interrupted: Interrupt, running: Awaitable[_T], *, what: str = "call") -> _T:
    """``unless`` for coroutines; ``running`` is cancelled."""
    task = asyncio.ensure_future(running)
    try:
        while not (await asyncio.wait([task], timeout=_POLL_SECONDS))[0]:
            if interrupted.is_set():
                raise _given_up(what)
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            # It still has to note what it spent.
            await asyncio.wait([task])


def events_unless(interrupted: Interrupt | None, events: Iterator[_T]) -> Iterator[_T]:
    """Yield ``events``, and wait for none of them after the caller was interrupted.

    Raises:
        DeadlineError: It was; the thread that reads goes on until its client gives up.
    """
    if interrupted is None:
        yield from events
        return
    while True:
        step = partial(copy_context().run, next, events, _NO_EVENT)
        event = unless(interrupted, THREADS.submit(step), what="stream")
        if event is _NO_EVENT:
            return
        try:
            yield event
        except GeneratorExit:
            if isinstance(events, Generator):
                events.close()
            raise


_NO_EVENT: Any = object()


async def aevents_unless(
    interrupted: Interrupt | None, events: AsyncIterator[_T]
) -> AsyncGenerator[_T, None]:
    """``events_unless`` for coroutines."""
    while True:
        following = anext(events)
        try:
            if interrupted is None:
                event = await following
            else:
                event = await aunless(interrupted, following, what="stream")
        except StopAsyncIteration:
            return
        yield event


def _given_up(what: str) -> DeadlineError:
    return DeadlineError(f"The {what} was given up: it was interrupted.")


def _too_late(seconds: float) -> lm15.TimeoutError:
    return lm15.TimeoutError(f"There was no complete answer after {seconds:g} s.")
