"""The one place that decides where an answer comes from: memory, file, or the endpoint."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from moa_dspy.calls._budget import Estimate, Ledger
from moa_dspy.calls._call import Call, call_key, canonical_json
from moa_dspy.calls._scope import CallFacts, current_scope
from moa_dspy.errors import MoaError, UnknownCallError


class Shelf(Protocol):
    """Something that may hold the call of a key: the store, or a recording."""

    def get(self, key: str, /) -> Call | None:
        """Return the call, or None."""
        ...


class WritableShelf(Shelf, Protocol):
    """A shelf that also keeps what is new."""

    def put(self, call: Call, /) -> None:
        """Keep ``call``, durably, before returning."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what its tokens cost; everything of an agent that the calls must know."""

    agent: str
    identity: str
    usd_per_prompt_token: float = 0.0
    usd_per_completion_token: float = 0.0
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price of one call."""
        return (
            prompt_tokens * self.usd_per_prompt_token
            + completion_tokens * self.usd_per_completion_token
        )

    def without_secrets(self, text: str) -> str:
        """Return ``text`` with every key of this agent masked."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


@dataclass(frozen=True, slots=True)
class Ask:
    """One request on its way: its key, and what to store it under."""

    caller: Caller
    key: str
    sample: int
    request: str
    estimate: Estimate


class Calls:
    """Answers requests from a store, a recording or the endpoint, each key once at a time.

    Args:
        store: Keeps new answers; None keeps them in memory only.
        recording: Read-only answers that were made elsewhere.
        replay_only: Whether an unknown request is an error instead of a request.
        ledger: Counts and limits what is spent.
    """

    def __init__(
        self,
        store: WritableShelf | None = None,
        *,
        recording: Shelf | None = None,
        replay_only: bool = False,
        ledger: Ledger | None = None,
    ) -> None:
        self.store: WritableShelf = store if store is not None else _Memory()
        self.recording = recording
        self.replay_only = replay_only
        self.ledger = ledger or Ledger()
        self._flights: dict[str, Future[None]] = {}
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Calls:
        return self

    def ask(self, caller: Caller, request: dict[str, Any]) -> Ask:
        """Describe a request (plain JSON data) as seen from the current scope."""
        config = request.get("config", {})
        # A greedy agent gives one answer however often it is asked: asking twice is paying twice.
        sample = 0 if config.get("temperature") == 0 else current_scope().sample
        text = canonical_json(request)
        prompt, completion = len(text.encode("utf-8", "replace")), config.get("max_tokens") or 0
        estimate = Estimate(prompt + completion, caller.usd(prompt, completion))
        return Ask(caller, call_key(caller.identity, sample, text), sample, text, estimate)

    def known(self, ask: Ask) -> Call | None:
        """Return the stored or recorded call and log it as reused, or None.

        A recorded failure is an answer in a replay; elsewhere it is tried again.

        Raises:
            UnknownCallError: In a replay, when nobody recorded this request.
        """
        call = self.store.get(ask.key)
        if call is None and self.recording is not None:
            call = self.recording.get(ask.key)
        if call is not None and (call.failure is None or self.replay_only):
            self.ledger.count_reuse()
            if call.failure is None:
                # As when it was made: a call that failed is in nobody's facts.
                self._log(call, is_reused=True)
            return call
        if self.replay_only:
            example = current_scope().example
            where = f" for example {example!r}" if example is not None else ""
            raise UnknownCallError(
                f"The recording has no call of agent {ask.caller.agent!r}{where} "
                f"(sample {ask.sample}, key {ask.key[:12]})."
            )
        return None

    def answer(self, ask: Ask, send: Callable[[], dict[str, Any]]) -> Call:
        """Return the call for ``ask``, making it with ``send`` only if nobody has."""
        while True:
            if (call := self.known(ask)) is not None:
                return call
            flight, is_mine = self._board(ask.key)
            if not is_mine:
                flight.result()
                continue
            try:
                if (call := self.known(ask)) is not None:  # landed since the look above
                    return call
                with self._paid(ask) as paid:
                    paid.response = send()
                return self._keep(paid.call)
            finally:
                self._land(ask.key, flight)

    async def aanswer(self, ask: Ask, send: Callable[[], Awaitable[dict[str, Any]]]) -> Call:
        """``answer`` for coroutines."""
        while True:
            if (call := self.known(ask)) is not None:
                return call
            flight, is_mine = self._board(ask.key)
            if not is_mine:
                await asyncio.shield(asyncio.wrap_future(flight))
                continue
            try:
                if (call := self.known(ask)) is not None:  # landed since the look above
                    return call
                with self._paid(ask) as paid:
                    paid.response = await send()
                return self._keep(paid.call)
            finally:
                self._land(ask.key, flight)

    def _board(self, key: str) -> tuple[Future[None], bool]:
        with self._lock:
            if (flight := self._flights.get(key)) is not None:
                return flight, False
            return self._flights.setdefault(key, Future()), True

    def _land(self, key: str, flight: Future[None]) -> None:
        with self._lock:
            del self._flights[key]
        flight.set_result(None)

    @contextmanager
    def _paid(self, ask: Ask) -> Iterator[_Paid]:
        ticket = self.ledger.reserve(ask.estimate)
        paid = _Paid(started=time.perf_counter())
        try:
            yield paid
        except BaseException as error:
            paid.seconds = time.perf_counter() - paid.started
            self.ledger.settle(ticket, tokens=0, usd=0.0, seconds=paid.seconds)
            if not isinstance(error, MoaError) and isinstance(error, Exception):
                failure = ask.caller.without_secrets(f"{type(error).__name__}: {error}")
                self.store.put(self._describe(ask, paid, failure=failure))
            raise
        paid.seconds = time.perf_counter() - paid.started
        paid.call = call = self._describe(ask, paid)
        tokens = call.prompt_tokens + call.completion_tokens
        self.ledger.settle(ticket, tokens=tokens, usd=call.usd, seconds=call.seconds)

    def _keep(self, call: Call) -> Call:
        self.store.put(call)
        self._log(call, is_reused=False)
        return call

    def _describe(self, ask: Ask, paid: _Paid, failure: str | None = None) -> Call:
        usage = (paid.response or {}).get("usage", {})
        prompt, completion = usage.get("input_tokens") or 0, usage.get("output_tokens") or 0
        return Call(
            key=ask.key,
            agent=ask.caller.agent,
            identity=ask.caller.identity,
            sample=ask.sample,
            request=ask.request,
            response=None if paid.response is None else canonical_json(paid.response),
            prompt_tokens=prompt,
            completion_tokens=completion,
            usd=ask.caller.usd(prompt, completion),
            seconds=paid.seconds,
            failure=failure,
        )

    def _log(self, call: Call, *, is_reused: bool) -> None:
        current_scope().log.append(
            CallFacts(
                agent=call.agent,
                prompt_tokens=call.prompt_tokens,
                completion_tokens=call.completion_tokens,
                usd=call.usd,
                seconds=call.seconds,
                is_reused=is_reused,
            )
        )


@dataclass(slots=True)
class _Paid:
    started: float
    seconds: float = 0.0
    response: dict[str, Any] | None = None
    call: Call = field(init=False)


class _Memory:
    """A store that forgets everything when the process ends."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}

    def get(self, key: str, /) -> Call | None:
        return self._calls.get(key)

    def put(self, call: Call, /) -> None:
        kept = self._calls.get(call.key)
        if kept is None or kept.failure is not None:
            self._calls[call.key] = call
