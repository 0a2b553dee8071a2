"""The engine of ``_engine`` for coroutines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

from dspy import lm15
from dspy.clients.engines.lifecycle import aclosing_stream
from dspy.clients.engines.stream_guard import achecked_stream

from moa_dspy.calls._steps import Course, Send, Step
from moa_dspy.calls._time_limit import aevents_within, awithin
from moa_dspy.calls.engines._engine import Stored
from moa_dspy.calls.engines._failures import in_time, readable, told
from moa_dspy.calls.engines._stream import Arriving, Passage, as_stream, stream_of


class AsyncStoredEngine(Stored):
    """``StoredEngine`` for coroutines; keys and store are the same."""

    async def complete(self, request: Any) -> Any:
        """Return the response to a ``dspy.lm15.Request``."""
        ask = self.ask(request)
        with in_time():
            call = await self.calls.aanswer(ask, partial(self._send, self.outgoing(request, ask)))
        return self.response(call)

    async def _send(self, request: Any) -> dict[str, Any]:
        with told(self.caller):
            return readable(await awithin(self.timeout_seconds, self.endpoint.complete(request)))

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        """Yield the events of the response as they arrive, or those of the stored one."""
        ask, passage = self.ask(request), Passage()
        call = self.calls.known(ask)
        if call is None:
            course = Course(self.calls.plan(ask))
            passed_on = self._pass_on(course, self.outgoing(request, ask), passage)
            async with aclosing(passed_on) as events:
                async for event in events:
                    yield event
            call = course.call
        arrived = passage.arriving
        for event in as_stream(self.response(call)) if arrived is None else arrived.last():
            yield event

    async def _pass_on(
        self, course: Course, request: Any, passage: Passage
    ) -> AsyncGenerator[Any, None]:
        with in_time():
            while course.step is not None:
                try:
                    async with aclosing(self._do(course.step, request, passage)) as events:
                        async for event in events:
                            yield event
                except BaseException as error:
                    course.failed(error)
                else:
                    course.did(passage.result)

    async def _do(self, step: Step, request: Any, passage: Passage) -> AsyncGenerator[Any, None]:
        if not isinstance(step, Send):
            passage.result = None
            await step.arun()
            return
        arriving = Arriving(request)
        try:
            async with aclosing(self._arriving(request)) as events:
                async for event in events:
                    for shown in arriving.take(event):
                        step.has_shown = True
                        yield shown
            passage.result, passage.arriving = arriving.response(), arriving
        except lm15.UnsupportedFeatureError:
            # Some endpoints answer whole only.
            passage.result, passage.arriving = await self._send(request), None

    async def _arriving(self, request: Any) -> AsyncGenerator[Any, None]:
        with told(self.caller):
            source = achecked_stream(stream_of(self.endpoint, request))
            async with aclosing_stream(source):
                async for event in aevents_within(self.timeout_seconds, source):
                    yield event

    async def aclose(self) -> None:
        """Leave the endpoint open: it is shared and owned by the pool."""
