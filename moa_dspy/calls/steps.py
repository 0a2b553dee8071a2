"""Steps of which the plan of a call consists, and runners for threads and coroutines.

A plan is written once and does nothing by itself. It yields steps; a runner does them, in a
thread by blocking and in a coroutine by awaiting, and sends back the result of each, or throws
in the error that it raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from moa_dspy.calls.call import Call
from moa_dspy.calls.scope import Deadline

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
    """

    has_shown: bool = False

    def run(self, send: Sender) -> dict[str, Any]:
        """Block."""
        return send()

    async def arun(self, send: ASender) -> dict[str, Any]:
        """Await."""
        return await send()


@dataclass(slots=True)
class Work:
    """Do something that may block for a moment, such as a short transaction.

    Attributes:
        task: The work; a coroutine has a thread do it, and does not leave before the end.
        result: The value that the task returned; None until then.
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
            # A thread cannot be stopped: what it took must be known, to be given back.
            while not running.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            self.result = None if running.exception() else running.result()
            raise


Step: TypeAlias = Wait | Sleep | Send | Work
CallPlan: TypeAlias = Generator[Step, Any, Call]


class PlanRun:
    """A plan that is being carried out: the next step, or the call with which it ended."""

    def __init__(self, plan: CallPlan) -> None:
        self._plan = plan
        self.step: Step | None = None
        self.call: Call
        self._resume(lambda: next(plan))

    def did(self, result: Any) -> None:
        """Go on after the step was done."""
        self._resume(lambda: self._plan.send(result))

    def failed(self, error: BaseException) -> None:
        """Go on after the step raised; the plan may raise the error itself."""
        self._resume(lambda: self._plan.throw(error))

    def _resume(self, resume: Callable[[], Step]) -> None:
        try:
            self.step = resume()
        except StopIteration as stop:
            self.step, self.call = None, stop.value


def run_plan(plan: CallPlan, send: Sender) -> Call:
    """Do every step of ``plan`` in this thread and return the call with which it ends."""
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
    """``run_plan`` for coroutines."""
    run = PlanRun(plan)
    while run.step is not None:
        try:
            result = await run.step.arun(send)
        except BaseException as error:
            run.failed(error)
        else:
            run.did(result)
    return run.call
