"""The making of one call: attempts, each paid and stored, until one is answered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Final, Protocol

from moa_dspy.calls.budget import Ledger, Reservation
from moa_dspy.calls.call import (
    Call,
    SharedBackend,
    UsageWarnings,
    WritableBackend,
    canonical_json,
    has_counts,
    token_counts,
)
from moa_dspy.calls.reply import reply_facts
from moa_dspy.calls.request import (
    CONNECTIONS,
    AgentCalls,
    CallRequest,
    Limiter,
    backoff_seconds,
    hinted_seconds,
    is_transient,
    is_unreadable,
    poll_seconds,
)
from moa_dspy.calls.scope import CallFacts, Clock, Deadline, DeadlineError, current_scope
from moa_dspy.calls.timeout import CallPlan, Send, Sleep, Step, Wait, Work
from moa_dspy.errors import MoaError, OutageError

_ENDED_BY: Final = {asyncio.CancelledError: "Cancelled", GeneratorExit: "Abandoned"}
_USAGE_WARNINGS: Final = UsageWarnings()


@dataclass(slots=True)
class Attempt:
    """A request that is being made.

    Attributes:
        request: The request.
        number: Number of the attempt, from 1 on; 0 means that it is not sent.
        clock: Source of time.
        started: When it began, by the clock's ``monotonic``.
        seconds: Its duration; 0 while it lasts.
    """

    request: CallRequest
    number: int
    clock: Clock
    started: float
    seconds: float = 0.0

    def answered(self, response: dict[str, Any]) -> Call:
        """Return the call with its response (plain data)."""
        self._end()
        tokens = token_counts(self.request.content, response)
        if tokens.is_estimated:
            _USAGE_WARNINGS.warn(self.request.caller.agent)
        usd = self.request.caller.usd(tokens.prompt, tokens.completion, tokens.cached)
        return self._call(canonical_json(response), tokens.prompt, tokens.completion, usd=usd)

    def failed(self, error: BaseException) -> Call:
        """Return the call with the reason why there is no response, without secrets."""
        self._end()
        reason = f"{type(error).__name__}: {error}"
        if not isinstance(error, Exception):
            ended = _ENDED_BY.get(type(error), type(error).__name__)
            reason = f"{ended} after {self.seconds:.2f} s."
        return self._call(None, failure=self.request.caller.without_secrets(reason))

    def _end(self) -> None:
        self.seconds = self.clock.monotonic() - self.started

    def _call(
        self,
        response: str | None,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        *,
        usd: float = 0.0,
        failure: str | None = None,
    ) -> Call:
        return Call(
            key=self.request.key,
            agent=self.request.caller.agent,
            identity=self.request.caller.identity,
            sample=self.request.sample,
            request=self.request.content,
            response=response,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            usd=usd,
            seconds=self.seconds,
            failure=failure,
            attempt=self.number,
            time=self.clock.time() - self.seconds,
        )


def facts_of(call: Call, *, is_reused: bool) -> CallFacts:
    """Return what a call cost, for the log of a scope."""
    reply = reply_facts(call.response, call.request)
    return CallFacts(
        agent=call.agent,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        usd=call.usd,
        seconds=call.seconds,
        is_reused=is_reused,
        failure=call.failure,
        attempt=call.attempt,
        finish_reason=reply.finish_reason,
        no_answer=reply.no_answer,
        is_estimated=call.response is not None and not has_counts(call.response),
        key=call.key,
        time=call.time,
    )


_MAX_UNREADABLE = 10
"""Attempts after which replies that hold no answer are the model's failure."""


class OutagePolicy:
    """Retries for as long as an endpoint is busy, down, slow or cut off, however often that is.

    Safe for threads.

    Args:
        outage_seconds: How long an endpoint may go on failing, without one answer to any
            request, before the study ends.
        clock: Source of time.
    """

    def __init__(self, outage_seconds: float, clock: Clock | None = None) -> None:
        self.outage_seconds = outage_seconds
        self._clock = clock or Clock()
        self._down_since: dict[str, float] = {}
        self._lock = threading.Lock()

    def is_temporary(self, error: BaseException, request: CallRequest, *, attempt: int) -> bool:
        """True if ``error`` says nothing about the model: it is retried, and no failed call."""
        if not isinstance(error, Exception):
            return False
        return is_transient(error) or (is_unreadable(error) and attempt < _MAX_UNREADABLE)

    def answered(self, caller: AgentCalls) -> None:
        """Note that the endpoint of ``caller`` works."""
        if self._down_since:
            with self._lock:
                self._down_since.pop(caller.endpoint, None)

    def wait_seconds(self, error: Exception, request: CallRequest, *, attempt: int) -> float | None:
        """Return how long to wait after ``attempt`` (from 1) failed; None means a model's failure.

        Raises:
            OutageError: If the endpoint has been down for too long, or says that it will be.
        """
        if not self.is_temporary(error, request, attempt=attempt):
            return None
        caller = request.caller
        now, hint = self._clock.monotonic(), hinted_seconds(error)
        with self._lock:
            since = self._down_since.setdefault(caller.endpoint, now)
        if now - since > self.outage_seconds or hint > self.outage_seconds:
            reason = caller.without_secrets(f"{type(error).__name__}: {error}")
            raise OutageError(
                f"{caller.endpoint} gave no answer for {now - since:.0f} s, which is the longest "
                f"wait ({reason}). Every answer up to now is kept; the same command goes on."
            ) from error
        return hint + backoff_seconds(attempt, request.key)


class ProbePolicy(OutagePolicy):
    """Retries as often as the agent allows, for nobody knows yet whether its endpoint works.

    What a retry mends is no failed call here either: else an agent that was busy when it was
    probed would seem to take two calls for that question.
    """

    def __init__(self) -> None:
        super().__init__(outage_seconds=0.0)

    def is_temporary(self, error: BaseException, request: CallRequest, *, attempt: int) -> bool:
        """True if the agent's own policy retries after ``error``."""
        retries = request.caller.retries
        return retries.wait_seconds(error, attempt=attempt, key=request.key) is not None

    def wait_seconds(self, error: Exception, request: CallRequest, *, attempt: int) -> float | None:
        """Return how long the agent's own policy waits; None means no more."""
        return request.caller.retries.wait_seconds(error, attempt=attempt, key=request.key)


class SharedSlots(Protocol):
    """Limits of endpoints that hold for all processes on one store together."""

    def applies_to(self, limiter: Limiter) -> bool:
        """True if ``acquire`` might do anything but let a request pass."""
        ...

    def acquire(self, limiter: Limiter) -> Any:
        """Take a slot of the endpoint, if one is free and the endpoint asked for no pause.

        Returns:
            An object with ``is_open``, whether a request may be sent now, and ``wait_seconds``,
            for how long the endpoint still wants none; for ``release``.
        """
        ...

    def release(self, admission: Any) -> None:
        """Give the slot back, if there is one."""
        ...

    def note_pause(self, error: Exception, endpoint: str) -> None:
        """Keep the pause that came with ``error``, for all processes."""
        ...


@dataclass(frozen=True, slots=True)
class Attempts:
    """Makes the call of ``request``; ``plan`` describes how and does nothing by itself.

    Attributes:
        request: The request.
        deadline: How long the caller waits.
        store: Keeps the call.
        ledgers: Count what is spent, each with the share of its limits that the call may use.
        shared: The store again if other processes use it too, else None.
        limits: Limits that these processes share; None means none.
        outage_policy: Decides about retries instead of the caller's policy, if there is one.
    """

    request: CallRequest
    deadline: Deadline
    store: WritableBackend
    ledgers: Mapping[Ledger, float]
    shared: SharedBackend | None = None
    limits: SharedSlots | None = None
    outage_policy: OutagePolicy | None = None

    def plan(self) -> CallPlan:
        """Try as often as the retry policy says, but not beyond the deadline."""
        last: Exception | None = None
        pause = 0.0
        for number in count(1):
            send = Send()
            try:
                if last is not None:
                    yield Sleep(self.deadline, pause)
                return (yield from self._attempt(number, send))
            except DeadlineError:
                if last is None:
                    raise
                raise last from last.__cause__
            except Exception as error:
                wait = self._wait_seconds(error, number)
                if wait is None or send.has_shown or wait >= self.deadline.left_seconds:
                    raise
                last, pause = error, wait
        raise AssertionError("attempts end by themselves")

    def _wait_seconds(self, error: Exception, number: int) -> float | None:
        caller = self.request.caller
        if self.limits is not None:
            self.limits.note_pause(error, caller.limiter.endpoint)
        if self.outage_policy is not None:
            return self.outage_policy.wait_seconds(error, self.request, attempt=number)
        return caller.retries.wait_seconds(error, attempt=number, key=self.request.key)

    def note_unsent(self, error: DeadlineError) -> None:
        """Keep that nothing was sent: a replay must come to the same end."""
        unsent = Attempt(self.request, 0, self.deadline.clock, started=self.deadline.started)
        self._keep(unsent.failed(error))

    def _attempt(self, number: int, send: Send) -> CallPlan:
        caller = self.request.caller
        make = partial(self._paid, number, send)
        if caller.is_remote:
            make = partial(self._with_slot, CONNECTIONS, make)
        if self.limits is not None and self.limits.applies_to(caller.limiter):
            make = partial(self._with_shared_slot, self.limits, make)
        return (yield from self._with_slot(caller.limiter, make))

    def _with_slot(self, limiter: Limiter, make: Callable[[], CallPlan]) -> CallPlan:
        """Wait until the limiter leaves room for the call, then make it."""
        slot = limiter.acquire()
        try:
            if not slot.done():
                yield Wait(self.deadline, slot)
            self.deadline.check()
            return (yield from make())
        finally:
            limiter.release(slot)

    def _with_shared_slot(self, limits: SharedSlots, make: Callable[[], CallPlan]) -> CallPlan:
        """Wait until all processes together leave room for the call, then make it."""
        acquiring = Work(partial(limits.acquire, self.request.caller.limiter))
        try:
            for pause in poll_seconds():
                acquiring.result = None
                yield acquiring
                if acquiring.result.is_open:
                    break
                yield Sleep(self.deadline, acquiring.result.wait_seconds or pause)
            return (yield from make())
        finally:
            if acquiring.result is not None:
                limits.release(acquiring.result)

    def _paid(self, number: int, send: Send) -> CallPlan:
        request = self.request
        reserving = Work(partial(Reservation.make, self.ledgers, request.estimate, key=request.key))
        try:
            yield from self._worked(reserving)
        except BaseException:
            if reserving.result is not None:
                reserving.result.cancel()
            raise
        reservation: Reservation = reserving.result
        clock = self.deadline.clock
        attempt = Attempt(request, number, clock, started=clock.monotonic())
        try:
            with current_scope().asking(request.caller.agent):
                response = yield send
            call = attempt.answered(response)
        except BaseException as error:
            if not isinstance(error, MoaError) and not self._is_temporary(error, number):
                self._keep(attempt.failed(error))
            reservation.settle(tokens=0, usd=0.0, seconds=attempt.seconds)
            raise
        if self.outage_policy is not None:
            self.outage_policy.answered(request.caller)
        storing = Work(partial(self._settled, call, reservation))
        yield from self._worked(storing)
        kept: Call = storing.result
        return kept

    def _is_temporary(self, error: BaseException, number: int) -> bool:
        policy = self.outage_policy
        return policy is not None and policy.is_temporary(error, self.request, attempt=number)

    def _worked(self, work: Work) -> Generator[Step, None, None]:
        """Do ``work``; only a shared store may take long enough to need a thread."""
        if self.shared is not None:
            yield work
        else:
            work.run()

    def _settled(self, call: Call, reservation: Reservation) -> Call:
        # Stored before it is settled: a process that dies in between has lost nothing.
        try:
            return self._keep(call)
        finally:
            tokens = call.prompt_tokens + call.completion_tokens
            reservation.settle(tokens=tokens, usd=call.usd, seconds=call.seconds)

    def _keep(self, call: Call) -> Call:
        kept = self.store.put(call) or call
        current_scope().note(facts_of(call, is_reused=False))
        return kept
