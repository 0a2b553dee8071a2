"""Waiting in threads and coroutines: time limits of attempts, reused threads, and plans' steps.

A client's own timeout limits only each wait for bytes. No thread here keeps a process alive.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias, TypeVar

from moa_dspy.calls.call import Call
from moa_dspy.calls.scope import Deadline, DeadlineError, Interrupt, call_scope, waiting_for_budget
from moa_dspy.dspy_internals import lm15
from moa_dspy.errors import BudgetReachedError

_T = TypeVar("_T")
_Job: TypeAlias = tuple[Future[Any], Callable[[], Any]]

_IDLE_SECONDS: Final = 30.0


class Threads:
    """A pool of threads that starts every task at once, in an idle or else a new thread.

    Unlike an executor's, its number of threads is not limited, so a mixture inside a mixture cannot
    wait for itself. Its threads are daemons, so a task whose caller has stopped waiting does not
    delay the end of the process.
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
            del job  # an idle thread must not keep a task's objects alive

    def _next(self, inbox: SimpleQueue[_Job]) -> _Job | None:
        try:
            return inbox.get(timeout=_IDLE_SECONDS)
        except Empty:
            with self._lock:
                if inbox in self._idle:
                    self._idle.remove(inbox)
                    return None
        return inbox.get()  # a task arrived at the moment of the timeout

    def _run(self, inbox: SimpleQueue[_Job], future: Future[Any], task: Callable[[], Any]) -> None:
        result, failure = None, None
        try:
            result = task()
        except BaseException as error:
            failure = error
        # Idle before the result is set, as the caller may need the thread again at once.
        with self._lock:
            self._idle.append(inbox)
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)


def finished(task: Callable[[], Any]) -> Future[Any]:
    """Run ``task`` in this thread and return a finished future; an interrupt is raised at once."""
    future: Future[Any] = Future()
    try:
        future.set_result(task())
    except Exception as error:
        future.set_exception(error)
    return future


THREADS: Final = Threads()
"""The threads of this process; layers of every mixture share them."""


def within(seconds: float | None, task: Callable[[], Any]) -> Any:
    """Return the result of ``task``, with a time limit; None means no limit.

    The task runs in a thread of its own, as a thread that waits for bytes cannot be stopped: a task
    that is too late goes on until its client gives up, and its result is dropped.

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
    """Return as ``within``, in a coroutine; a task that is too late is cancelled.

    Args:
        seconds: Remaining time.
        task: The awaitable.
        of_seconds: The whole time limit, for the error.
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
    """Yield ``events`` until the waits for them exceed ``seconds`` in total.

    The time is checked after each event; between events, the client's own timeout applies.
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
    """Yield as ``events_within``, in a coroutine, which can be stopped between two events too."""
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


_FIRST_POLL_SECONDS, _MAX_POLL_SECONDS = 0.005, 0.5


def poll_seconds() -> Iterator[float]:
    """Yield waits between reads of a shared store: 5 ms at first, later 0.5 s, with jitter."""
    pause = _FIRST_POLL_SECONDS
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(1.5 * pause, _MAX_POLL_SECONDS)


_POLL_SECONDS: Final = 0.05
"""Time between two checks whether a waiter's caller has ended; nothing else would wake it."""


def unless(interrupted: Interrupt, running: Future[_T], *, operation: str = "call") -> _T:
    """Return the result of ``running``, which continues alone if the caller is interrupted.

    Raises:
        DeadlineError: The caller was interrupted.
    """
    while not wait([running], timeout=_POLL_SECONDS).done:
        if interrupted.is_set():
            raise _given_up(operation)
    return running.result()


async def aunless(interrupted: Interrupt, running: Awaitable[_T], *, operation: str = "call") -> _T:
    """Return as ``unless``, in a coroutine; an interrupt cancels ``running``."""
    task = asyncio.ensure_future(running)
    try:
        while not (await asyncio.wait([task], timeout=_POLL_SECONDS))[0]:
            if interrupted.is_set():
                raise _given_up(operation)
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            # The task still has to record its spending.
            await asyncio.wait([task])


def events_unless(interrupted: Interrupt | None, events: Iterator[_T]) -> Iterator[_T]:
    """Yield ``events``, without waiting for more once the caller is interrupted.

    Raises:
        DeadlineError: The caller was interrupted; the reading thread goes on until its client gives
            up.
    """
    if interrupted is None:
        yield from events
        return
    while True:
        step = partial(copy_context().run, next, events, _NO_EVENT)
        event = unless(interrupted, THREADS.submit(step), operation="stream")
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
    """Yield as ``events_unless``, in a coroutine."""
    while True:
        following = anext(events)
        try:
            if interrupted is None:
                event = await following
            else:
                event = await aunless(interrupted, following, operation="stream")
        except StopAsyncIteration:
            return
        yield event


def _given_up(operation: str) -> DeadlineError:
    return DeadlineError(f"The {operation} was interrupted.")


def _too_late(seconds: float) -> lm15.TimeoutError:
    return lm15.TimeoutError(f"There was no complete answer after {seconds:g} s.")


Sender: TypeAlias = Callable[[], dict[str, Any]]
ASender: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until a future is done; its result is not read."""

    deadline: Deadline
    future: Future[None]

    def run(self, send: Sender | None = None) -> None:
        """Block."""
        self.deadline.wait(self.future)

    async def arun(self, send: ASender | None = None) -> None:
        """Await."""
        await self.deadline.wait_async(self.future)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait for some time."""

    deadline: Deadline
    seconds: float

    def run(self, send: Sender | None = None) -> None:
        """Block."""
        self.deadline.sleep(self.seconds)

    async def arun(self, send: ASender | None = None) -> None:
        """Await."""
        await self.deadline.sleep_async(self.seconds)


@dataclass(slots=True)
class Send:
    """Send the request; the result is the response as plain data.

    Attributes:
        has_shown: Whether a part of the response was passed on already: it cannot be
            taken back, so there is no further attempt.
        sender: Sends the request again; None if only a stream or a coroutine can.
        failure: The call, if the attempt failed.
    """

    has_shown: bool = False
    sender: Sender | None = None
    failure: Call | None = None

    def run(self, send: Sender) -> dict[str, Any]:
        """Block."""
        self.sender = send
        # A call that is made by this one must not wait until this one is settled.
        with waiting_for_budget(waits=False):
            return send()

    async def arun(self, send: ASender) -> dict[str, Any]:
        """Await."""
        with waiting_for_budget(waits=False):
            return await send()


@dataclass(slots=True)
class Work:
    """Run a task that may block for a moment, such as a short transaction.

    Attributes:
        task: The task; a coroutine runs it in a thread and always waits for its end.
        result: Return value of the task; None until then.
    """

    task: Callable[[], Any]
    result: Any = None

    def run(self, send: Sender | None = None) -> None:
        """Block."""
        self.result = self.task()

    async def arun(self, send: ASender | None = None) -> None:
        """Await."""
        running = asyncio.ensure_future(asyncio.to_thread(self.task))
        try:
            self.result = await asyncio.shield(running)
        except asyncio.CancelledError:
            # A thread cannot be stopped, and what it acquired must be known to be released.
            while not running.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            self.result = None if running.exception() else running.result()
            raise


Step: TypeAlias = Wait | Sleep | Send | Work
CallPlan: TypeAlias = Generator[Step, Any, Call]


class PlanRun:
    """A plan that is being carried out: its next step, or the call with which it ended."""

    def __init__(self, plan: CallPlan) -> None:
        self._plan = plan
        self.step: Step | None = None
        self.call: Call
        self._resume(lambda: next(plan))

    def did(self, result: Any) -> None:
        """Continue after the step succeeded."""
        self._resume(lambda: self._plan.send(result))

    def failed(self, error: BaseException) -> None:
        """Continue after the step raised; the plan may raise the error itself."""
        self._resume(lambda: self._plan.throw(error))

    def _resume(self, resume: Callable[[], Step]) -> None:
        try:
            self.step = resume()
        except StopIteration as stop:
            self.step, self.call = None, stop.value


def run_plan(plan: CallPlan, send: Sender) -> Call:
    """Carry out ``plan`` in this thread and return the call with which it ends."""
    run = PlanRun(plan)
    while run.step is not None:
        try:
            result = run.step.run(send)
        except BaseException as error:
            run.failed(error)
        else:
            run.did(result)
    return run.call


async def arun_plan(plan: CallPlan, send: ASender) -> Call:
    """Carry out ``plan`` as ``run_plan``, in a coroutine."""
    run = PlanRun(plan)
    while run.step is not None:
        try:
            result = await run.step.arun(send)
        except BaseException as error:
            run.failed(error)
        else:
            run.did(result)
    return run.call


def in_threads(task: Callable[[Any], Any], items: Sequence[Any], *, num_threads: int) -> list[Any]:
    """Return the result of ``task`` per item, in order; one thread means the caller's own.

    After an error no further task is started. Requests under way are completed only if the budget
    ended, as their answers are paid for; an endpoint that is down is not waited for.

    Raises:
        Exception: The first error of a task, in item order.
    """
    if num_threads == 1:
        return [task(item) for item in items]
    given_up = threading.Event()
    with ThreadPoolExecutor(num_threads) as threads, call_scope(cancelled=given_up):
        running = [threads.submit(copy_context().run, task, item) for item in items]
        try:
            return [future.result() for future in running]
        except BaseException as error:
            if not isinstance(error, BudgetReachedError):
                given_up.set()
            threads.shutdown(wait=True, cancel_futures=True)
            raise
