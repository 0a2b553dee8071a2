"""DSPy engines that look in ``Calls`` before they ask the endpoint, and number samples.

Engines are DSPy's extension point below the LM: history, usage and streaming to the user remain
with DSPy. Several agents share one ``Calls``.

A sample's index depends on the seat, DSPy's ``rollout_id`` and its ``n``. DSPy passes neither of
the last two to an engine: it sends ``n`` equal requests, one after the other. So a callback records
both when a call of an LM begins.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Self

from dspy.utils.callback import BaseCallback

from moa_dspy.calls.call import Call
from moa_dspy.calls.calls import Calls
from moa_dspy.calls.lm.response import (
    ThoughtOpening,
    mask_keys,
    readable,
    stored_response,
)
from moa_dspy.calls.lm.stream import (
    StreamedResponse,
    StreamState,
    as_stream,
    stream_of,
)
from moa_dspy.calls.request import AgentCalls, CallRequest
from moa_dspy.calls.scope import DeadlineError, current_scope, interrupt_event
from moa_dspy.calls.timeout import (
    PlanRun,
    Send,
    Step,
    aevents_unless,
    aevents_within,
    awithin,
    events_unless,
    events_within,
    within,
)
from moa_dspy.dspy_internals import (
    achecked_stream,
    aclosing_stream,
    checked_stream,
    closing_stream,
    lm15,
    request_to_dict,
)
from moa_dspy.errors import LOGGED_KEYS

_FIRST_DERIVED: Final = 2**20
_N_DERIVED: Final = 2**31 - _FIRST_DERIVED


@dataclass(slots=True)
class _LMCall:
    """A call of an LM that is under way, inside ``outer`` if an engine asks another LM."""

    call_id: str
    model: str
    rollout: int | None
    n: int
    outer: _LMCall | None
    n_asked: int = 0


_UNDER_WAY: ContextVar[_LMCall | None] = ContextVar("moa_dspy_lm_call", default=None)


class NoteSamples(BaseCallback):
    """Callback that records ``rollout_id`` and ``n`` of a call for the engine below.

    It also adds the agent's name to the call in the LM's history.
    """

    def __init__(self) -> None:
        self._lms_under_way: dict[str, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Record the call in this context."""
        kwargs = {**instance.kwargs, **inputs.get("kwargs", {})}
        rollout, n = kwargs.get("rollout_id"), kwargs.get("n") or 1
        _UNDER_WAY.set(_LMCall(call_id, instance.model, rollout, n, outer=_UNDER_WAY.get()))
        self._lms_under_way[call_id] = instance

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Restore the call around it."""
        call = _UNDER_WAY.get()
        if call is not None and call.call_id == call_id:
            _UNDER_WAY.set(call.outer)
        lm = self._lms_under_way.pop(call_id, None)
        caller = getattr(getattr(lm, "engine", None), "caller", None)
        if lm is not None and caller is not None:
            name_in_history(lm, outputs, caller.agent)


NOTE_SAMPLES: Final = NoteSamples()

_N_LATEST: Final = 200
"""Latest entries of a history that are searched: about as many as calls can overlap."""


def history_entry(lm: Any, outputs: Any) -> dict[str, Any] | None:
    """Return the history entry whose outputs are this very object; other calls may be under way."""
    latest = reversed(lm.history[-_N_LATEST:])
    return next((entry for entry in latest if entry.get("outputs") is outputs), None)


def name_in_history(lm: Any, outputs: Any, agent: str) -> None:
    """Add the agent's name to a call's history entry, under ``agent`` and beside the time."""
    entry = None if outputs is None else history_entry(lm, outputs)
    if entry is not None and "agent" not in entry:
        stamp = SpokenAt(entry.get("timestamp", ""))
        stamp.agent = agent
        entry |= {"agent": agent, "timestamp": stamp}


class SpokenAt(str):
    """A timestamp of DSPy's history that is shown with the name of the agent.

    ``dspy.inspect_history`` shows only the time, the messages and the reply.
    """

    agent = ""

    def __format__(self, spec: str) -> str:
        return format(f"{self!s}, agent {self.agent}", spec)


def model_under_way() -> str | None:
    """Return the name of the model called in this context; for a pool's LM, that of its agent."""
    call = _UNDER_WAY.get()
    return None if call is None else call.model.removeprefix("agent/")


def next_sample(slot: int, *, model: str) -> int:
    """Return the sample index of the next request of the LM call that is under way.

    Args:
        slot: Index of the sample in its seat (one agent's place in a layer).
        model: The LM's name on the request, which tells an LM inside another LM from the outer one.
    """
    call = _UNDER_WAY.get()
    if call is None or call.model != model:
        return slot
    index, call.n_asked = call.n_asked, call.n_asked + 1
    return sample_index(slot, rollout=call.rollout, completion=index if call.n > 1 else 0)


def sample_index(slot: int, *, rollout: int | None = None, completion: int = 0) -> int:
    """Return one index, below 2**31, for the three arguments together.

    It is the slot itself without a rollout or further completions, else a number of at least 2**20
    that depends on the three only. Rollout 0 differs from no rollout, as in DSPy.
    """
    if rollout is None and completion == 0:
        return slot
    digest = hashlib.sha256(f"{slot}/{rollout}/{completion}".encode()).digest()
    return _FIRST_DERIVED + int.from_bytes(digest[:8]) % _N_DERIVED


@contextmanager
def in_time() -> Iterator[None]:
    """Raise the end of the caller's time as the timeout error of DSPy's clients."""
    try:
        yield
    except DeadlineError as error:
        raise lm15.TimeoutError(str(error)) from error


class Stored:
    """Base of both engines; it builds the endpoint's engine at the first call that needs it.

    Args:
        calls: Source and store of answers.
        caller: The agent's prices, keys and limits.
        build: Makes the endpoint's engine, which makes one attempt per request.
        is_seeded: Whether the endpoint draws samples with a seed made from the call's content.
        timeout_seconds: Longest time of one attempt; None means no limit.
        hints: Capabilities of the model, which adapters read: an object with the attributes of a
            ``dspy.LM`` such as ``supports_response_schema``.
        extra_body: Further fields of every request, part of its key; they override the request's
            own fields.
        opening: Knowledge of the model's chat template, shared by both engines of an agent.
    """

    logs_calls = True

    def __init__(
        self,
        calls: Calls,
        caller: AgentCalls,
        build: Callable[[], Any],
        *,
        is_seeded: bool = False,
        timeout_seconds: float | None = None,
        hints: Any = None,
        extra_body: Mapping[str, Any] | None = None,
        opening: ThoughtOpening | None = None,
    ) -> None:
        self.calls, self.caller = calls, caller
        self.timeout_seconds = timeout_seconds
        self._build, self._is_seeded, self._hints = build, is_seeded, hints
        self._extra_body = dict(extra_body or {})
        self.opening = opening or ThoughtOpening(caller.identity, calls.store, extra_body)
        self._endpoint: Any = None
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # DSPy's optimizers deep-copy programs; a store and a connection are shared, not copied.
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.caller.agent!r})"

    def __getattr__(self, name: str) -> Any:
        # DSPy's adapters read capabilities from the engine as they would from the LM.
        if name.startswith("supported_") or name.startswith("supports_"):
            return getattr(self._hints, name, None)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def extra_fields(self) -> dict[str, Any]:
        """Further fields of every request."""
        return dict(self._extra_body)

    @property
    def endpoint(self) -> Any:
        """The engine that sends requests to the model."""
        with self._lock:
            if self._endpoint is None:
                LOGGED_KEYS.add(self.caller.secrets)
                self._endpoint = self._build()
            return self._endpoint

    def extended(self, request: Any) -> Any:
        """Return ``request`` with the agent's further fields."""
        if not self._extra_body:
            return request
        fields = {**(request.config.extensions or {}), **self._extra_body}
        return replace(request, config=replace(request.config, extensions=fields))

    def ask(self, request: Any) -> CallRequest:
        """Return ``request`` as a ``CallRequest``, whose identity replaces the model's name."""
        plain = request_to_dict(request)
        plain.pop("model")
        sample = next_sample(current_scope().sample, model=request.model)
        return self.calls.prepare(self.caller, plain, sample=sample)

    def outgoing(self, request: Any, ask: CallRequest) -> Any:
        """Return the request as sent: a seeded endpoint samples by the call's content.

        So a recording that is made again, in any order and on any number of
        slots, draws the same samples.
        """
        if not self._is_seeded or request.config.seed is not None:
            return request
        return replace(request, config=replace(request.config, seed=int(ask.key[:7], 16)))

    def response(self, call: Call) -> Any:
        """Rebuild the response of a stored call, with thoughts separated, or raise its failure."""
        if call.response is None:
            raise lm15.ProviderError(call.failure or "The recorded call failed.")
        response, is_opened = stored_response(call.response, request=call.request)
        self.opening.learn(is_opened)
        return response

    def arriving(self, request: Any, ask: CallRequest) -> StreamedResponse:
        """Return the collector of the stream that answers ``request``."""
        return StreamedResponse(request, ask.content, is_opened=self.opening.is_opened)

    def last_events(self, arrived: StreamedResponse | None, call: Call) -> Any:
        """Return the events that end a stream; all its events if none was passed on.

        A thought may have been passed on as text before its closing tag arrived. Then the tag and
        the answer are passed on as well: a reader who has seen a thought is better served by the
        answer than by an error, and code that reads the whole text separates the thought.
        """
        if arrived is None:
            return as_stream(self.response(call))
        self.opening.learn(arrived.tells_opening)
        return arrived.last()


class StoredEngine(Stored):
    """Engine that answers from the store, or else asks the endpoint and stores its answer."""

    def complete(self, request: Any) -> Any:
        """Return the response to a ``dspy.lm15.Request``."""
        request = self.extended(request)
        ask = self.ask(request)
        with in_time():
            call = self.calls.answer(ask, partial(self._send, self.outgoing(request, ask)))
        return self.response(call)

    def _send(self, request: Any) -> dict[str, Any]:
        with mask_keys(self.caller):
            endpoint = self.endpoint
            # An endpoint that enforces the timeout itself needs no thread.
            seconds = None if getattr(endpoint, "keeps_time", False) else self.timeout_seconds
            return readable(within(seconds, partial(endpoint.complete, request)))

    def stream(self, request: Any) -> Iterator[Any]:
        """Yield the events of the response as they arrive, or those of a stored response.

        A complete response is stored before its end is passed on. A stream that breaks or is not
        read to its end is a failed call; it is not retried once a part of it was passed on.
        """
        request = self.extended(request)
        ask, passage = self.ask(request), StreamState()
        call = self.calls.known(ask)
        if call is None:
            run = PlanRun(self.calls.plan(ask))
            yield from self._pass_on(run, self.outgoing(request, ask), ask, passage)
            call = run.call
        yield from self.last_events(passage.arriving, call)

    def _pass_on(
        self, run: PlanRun, request: Any, ask: CallRequest, passage: StreamState
    ) -> Iterator[Any]:
        with in_time():
            while run.step is not None:
                try:
                    yield from self._do(run.step, request, ask, passage)
                except BaseException as error:
                    run.failed(error)
                else:
                    run.did(passage.result)

    def _do(
        self, step: Step, request: Any, ask: CallRequest, passage: StreamState
    ) -> Iterator[Any]:
        if not isinstance(step, Send):
            passage.result = None
            step.run()
            return
        arriving = self.arriving(request, ask)
        try:
            for event in events_unless(interrupt_event(), self._arriving(request)):
                for shown in arriving.take(event):
                    step.has_shown = True
                    yield shown
            passage.result, passage.arriving = arriving.response(), arriving
        except lm15.UnsupportedFeatureError:
            # Some endpoints cannot stream.
            passage.result, passage.arriving = self._send(request), None

    def _arriving(self, request: Any) -> Iterator[Any]:
        with mask_keys(self.caller):
            source = checked_stream(stream_of(self.endpoint, request))
            with closing_stream(source):
                yield from events_within(self.timeout_seconds, source)

    def close(self) -> None:
        """Do nothing: the endpoint is shared and owned by the pool."""


class AsyncStoredEngine(Stored):
    """``StoredEngine`` for coroutines; keys and store are the same."""

    async def complete(self, request: Any) -> Any:
        """Return the response to a ``dspy.lm15.Request``."""
        request = self.extended(request)
        ask = self.ask(request)
        with in_time():
            call = await self.calls.aanswer(ask, partial(self._send, self.outgoing(request, ask)))
        return self.response(call)

    async def _send(self, request: Any) -> dict[str, Any]:
        with mask_keys(self.caller):
            return readable(await awithin(self.timeout_seconds, self.endpoint.complete(request)))

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        """Yield the events of the response as they arrive, or those of a stored response."""
        request = self.extended(request)
        ask, passage = self.ask(request), StreamState()
        call = self.calls.known(ask)
        if call is None:
            run = PlanRun(self.calls.plan(ask))
            passed_on = self._pass_on(run, self.outgoing(request, ask), ask, passage)
            async with aclosing(passed_on) as events:
                async for event in events:
                    yield event
            call = run.call
        for event in self.last_events(passage.arriving, call):
            yield event

    async def _pass_on(
        self, run: PlanRun, request: Any, ask: CallRequest, passage: StreamState
    ) -> AsyncGenerator[Any, None]:
        with in_time():
            while run.step is not None:
                try:
                    async with aclosing(self._do(run.step, request, ask, passage)) as events:
                        async for event in events:
                            yield event
                except BaseException as error:
                    run.failed(error)
                else:
                    run.did(passage.result)

    async def _do(
        self, step: Step, request: Any, ask: CallRequest, passage: StreamState
    ) -> AsyncGenerator[Any, None]:
        if not isinstance(step, Send):
            passage.result = None
            await step.arun()
            return
        arriving = self.arriving(request, ask)
        try:
            async with aclosing(self._arriving(request)) as source:
                async for event in aevents_unless(interrupt_event(), source):
                    for shown in arriving.take(event):
                        step.has_shown = True
                        yield shown
            passage.result, passage.arriving = arriving.response(), arriving
        except lm15.UnsupportedFeatureError:
            # Some endpoints cannot stream.
            passage.result, passage.arriving = await self._send(request), None

    async def _arriving(self, request: Any) -> AsyncGenerator[Any, None]:
        with mask_keys(self.caller):
            source = achecked_stream(stream_of(self.endpoint, request))
            async with aclosing_stream(source):
                async for event in aevents_within(self.timeout_seconds, source):
                    yield event

    async def aclose(self) -> None:
        """Do nothing: the endpoint is shared and owned by the pool."""
