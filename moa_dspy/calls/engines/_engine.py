"""DSPy engines that ask ``Calls`` before they ask the endpoint.

Engines are DSPy's extension point below the LM: history, usage and streaming to the
user stay DSPy's. Several agents share one ``Calls``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from dspy import lm15
from dspy._vendor.lm15.serde import request_to_dict, response_from_dict
from dspy.clients.engines.lifecycle import closing_stream
from dspy.clients.engines.stream_guard import checked_stream

from moa_dspy.calls._call import Call
from moa_dspy.calls._caller import Ask, Caller
from moa_dspy.calls._calls import Calls
from moa_dspy.calls._scope import current_scope
from moa_dspy.calls._steps import Course, Send, Step
from moa_dspy.calls._time_limit import events_within, within
from moa_dspy.calls.engines._failures import in_time, readable, told
from moa_dspy.calls.engines._samples import next_sample
from moa_dspy.calls.engines._stream import Arriving, Passage, as_stream, stream_of


class Stored:
    """What both engines share; the endpoint's engine is built at the first call that needs it.

    Args:
        calls: Where answers come from and go to.
        caller: Who asks.
        build: Makes the engine that really asks, one attempt per request.
        is_seeded: Whether the endpoint's samples are drawn by the call's content.
        timeout_seconds: How long one attempt may take in all; None is for good.
        hints: What the model can do, as adapters ask it; an object with the attributes that
            a ``dspy.LM`` has for this, ``supports_response_schema`` and so on.
    """

    logs_calls = True

    def __init__(
        self,
        calls: Calls,
        caller: Caller,
        build: Callable[[], Any],
        *,
        is_seeded: bool = False,
        timeout_seconds: float | None = None,
        hints: Any = None,
    ) -> None:
        self.calls, self.caller = calls, caller
        self.timeout_seconds = timeout_seconds
        self._build, self._is_seeded, self._hints = build, is_seeded, hints
        self._endpoint: Any = None
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # DSPy's optimizers deep-copy programs; a store and a connection are shared, not copied.
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.caller.agent!r})"

    def __getattr__(self, name: str) -> Any:
        # DSPy's adapters ask an engine of ours what they would ask the LM it stands for.
        if name.startswith("supported_") or name.startswith("supports_"):
            return getattr(self._hints, name, None)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def endpoint(self) -> Any:
        """The engine that really asks the model."""
        with self._lock:
            if self._endpoint is None:
                self._endpoint = self._build()
            return self._endpoint

    def ask(self, request: Any) -> Ask:
        """Describe ``request`` without the model's name, which the identity stands for."""
        plain = request_to_dict(request)
        plain.pop("model")
        sample = next_sample(current_scope().sample, model=request.model)
        return self.calls.ask(self.caller, plain, sample=sample)

    def outgoing(self, request: Any, ask: Ask) -> Any:
        """Return the request as sent: a seeded endpoint samples by the call's content.

        So a recording that is made again, in any order and on any number of
        slots, draws the same samples.
        """
        if not self._is_seeded or request.config.seed is not None:
            return request
        return replace(request, config=replace(request.config, seed=int(ask.key[:7], 16)))

    def response(self, call: Call) -> Any:
        """Rebuild the response of a stored call, or raise its stored failure."""
        if call.response is None:
            raise lm15.ProviderError(call.failure or "The recorded call failed.")
        return response_from_dict(json.loads(call.response))


class StoredEngine(Stored):
    """Answers from the store if it can, else asks the endpoint and stores what came back."""

    def complete(self, request: Any) -> Any:
        """Return the response to a ``dspy.lm15.Request``."""
        ask = self.ask(request)
        with in_time():
            call = self.calls.answer(ask, partial(self._send, self.outgoing(request, ask)))
        return self.response(call)

    def _send(self, request: Any) -> dict[str, Any]:
        with told(self.caller):
            endpoint = self.endpoint
            # An endpoint that keeps the time itself saves a thread.
            seconds = None if getattr(endpoint, "keeps_time", False) else self.timeout_seconds
            return readable(within(seconds, partial(endpoint.complete, request)))

    def stream(self, request: Any) -> Iterator[Any]:
        """Yield the events of the response as they arrive, or those of the stored one.

        It is stored when it is complete, before its end is passed on. A stream that breaks
        or that nobody reads to its end is a failed call, and is not tried again once some
        of it was passed on.
        """
        ask, passage = self.ask(request), Passage()
        call = self.calls.known(ask)
        if call is None:
            course = Course(self.calls.plan(ask))
            yield from self._pass_on(course, self.outgoing(request, ask), passage)
            call = course.call
        arrived = passage.arriving
        yield from as_stream(self.response(call)) if arrived is None else arrived.last()

    def _pass_on(self, course: Course, request: Any, passage: Passage) -> Iterator[Any]:
        with in_time():
            while course.step is not None:
                try:
                    yield from self._do(course.step, request, passage)
                except BaseException as error:
                    course.failed(error)
                else:
                    course.did(passage.result)

    def _do(self, step: Step, request: Any, passage: Passage) -> Iterator[Any]:
        if not isinstance(step, Send):
            passage.result = None
            step.run()
            return
        arriving = Arriving(request)
        try:
            for event in self._arriving(request):
                for shown in arriving.take(event):
                    step.has_shown = True
                    yield shown
            passage.result, passage.arriving = arriving.response(), arriving
        except lm15.UnsupportedFeatureError:
            # Some endpoints answer whole only.
            passage.result, passage.arriving = self._send(request), None

    def _arriving(self, request: Any) -> Iterator[Any]:
        with told(self.caller):
            source = checked_stream(stream_of(self.endpoint, request))
            with closing_stream(source):
                yield from events_within(self.timeout_seconds, source)

    def close(self) -> None:
        """Leave the endpoint open: it is shared and owned by the pool."""
