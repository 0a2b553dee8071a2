"""What a plan of a call asks for, and how threads and coroutines do it.

A plan is written once and does nothing by itself. It yields steps; whoever follows it
does them, a thread by blocking and a coroutine by awaiting, and sends back what came of
each, or throws in what it raised.
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
    """Wait until a future is done; its result is not asked for."""

    patience: Deadline
    future: Future[None]

    def run(self, send: Sender | None = None) -> None:
        """Block."""
        self.patience.wait(self.future)

    async def arun(self, send: ASender | None = None) -> None:
        """Await."""
        await self.patience.await_(self.future)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait for some time."""

    patience: Deadline
    seconds: float

    def run(self, send: Sender | None = None) -> None:
        """Block."""
        self.patience.sleep(self.seconds)

    async def arun(self, send: ASender | None = None) -> None:
        """Await."""
        await self.patience.asleep(self.seconds)


@dataclass(slots=True)
class Send:
    """Send the request; what comes back is the response as plain data.

    Attributes:
        has_shown: Whether some of the response was handed out already: it cannot be
            taken back, so nothing is tried again.
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
        task: What is done; a coroutine lets a thread do it, and does not leave before the end.
        result: What it returned; None until then.
    """

    task: Callable[[], Any]
    result: Any = None

    def run(self, send: Sender | None = None) -> None:
        """Block."""
        self.result = self.task()

    async def arun(self, send: ASender | None = None) -> None:
        """Await."""
        doing = asyncio.ensure_future(asyncio.to_thread(self.task))
        try:
            self.result = await asyncio.shield(doing)
        except asyncio.CancelledError:
            # Nothing stops a thread: what it took has to be known, or nobody could give it back.
            while not doing.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([doing])
            self.result = None if doing.exception() else doing.result()
            raise


Step: TypeAlias = Wait | Sleep | Send | Work
CallPlan: TypeAlias = Generator[Step, Any, Call]


class PlanRun:
    """A plan on its way: the step to do now, or the call it has ended with."""

    def __init__(self, plan: CallPlan) -> None:
        self._plan = plan
        self.step: Step | None = None
        self.call: Call
        self._go(lambda: next(plan))

    def did(self, result: Any) -> None:
        """Go on after the step was done."""
        self._go(lambda: self._plan.send(result))

    def failed(self, error: BaseException) -> None:
        """Go on after the step raised; the plan may raise the error itself."""
        self._go(lambda: self._plan.throw(error))

    def _go(self, on: Callable[[], Step]) -> None:
        try:
            self.step = on()
        except StopIteration as stop:
            self.step, self.call = None, stop.value


def run_plan(plan: CallPlan, send: Sender) -> Call:
    """Do every step of ``plan`` in this thread and return the call it ends with."""
    course = PlanRun(plan)
    while course.step is not None:
        try:
            result = course.step.run(send)
        except BaseException as error:
            course.failed(error)
        else:
            course.did(result)
    return course.call


async def arun_plan(plan: CallPlan, send: ASender) -> Call:
    """``run_plan`` for coroutines."""
    course = PlanRun(plan)
    while course.step is not None:
        try:
            result = await course.step.arun(send)
        except BaseException as error:
            course.failed(error)
        else:
            course.did(result)
    return course.call
