"""One attempt at a call: when it was made, how long it took, and what came of it."""

# DOCS: calls/_endurance: How a study meets endpoints that are down: it asks again, for no answer is no fact. | calls/_making: The making of one call: attempts, each paid and stored, until one is answered.

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Final

from moa_dspy.calls.budget import Ledger, Reservation
from moa_dspy.calls.call import Call, SharedBackend, WritableBackend, canonical_json
from moa_dspy.calls.reply import reply_facts
from moa_dspy.calls.request import CallRequest
from moa_dspy.calls.retry import backoff_seconds, hinted_seconds, is_transient, is_unreadable
from moa_dspy.calls.scope import CallFacts, Clock, Deadline, DeadlineError, current_scope
from moa_dspy.calls.steps import CallPlan, Send, Sleep, Step, Wait, Work
from moa_dspy.calls.store.limits import SharedLimits, wait_for_slot
from moa_dspy.errors import MoaError, OutageError

_ENDED_BY: Final = {asyncio.CancelledError: "Cancelled", GeneratorExit: "Abandoned"}


@dataclass(slots=True)
class Attempt:
    """A request that is made now.

    Attributes:
        ask: What is asked.
        number: Which try it is, from 1 on; 0 is one that is given up.
        clock: What time it is.
        started: When it began, by the clock's ``monotonic``.
        seconds: How long it took; 0 while it lasts.
    """

    ask: CallRequest
    number: int
    clock: Clock
    started: float
    seconds: float = 0.0

    def answered(self, response: dict[str, Any]) -> Call:
        """Return the call with its response (plain data)."""
        self._end()
        usage = response.get("usage", {})
        prompt, completion = usage.get("input_tokens") or 0, usage.get("output_tokens") or 0
        usd = self.ask.caller.usd(prompt, completion)
        return self._call(canonical_json(response), prompt, completion, usd=usd)

    def failed(self, error: BaseException) -> Call:
        """Return the call with the reason why there is no response, without secrets."""
        self._end()
        reason = f"{type(error).__name__}: {error}"
        if not isinstance(error, Exception):
            ended = _ENDED_BY.get(type(error), type(error).__name__)
            reason = f"{ended} after {self.seconds:.2f} s."
        return self._call(None, failure=self.ask.caller.without_secrets(reason))

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
            key=self.ask.key,
            agent=self.ask.caller.agent,
            identity=self.ask.caller.identity,
            sample=self.ask.sample,
            request=self.ask.request,
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
    )


_MOST_UNREADABLE = 10
"""Attempts at one question after which replies that hold no answer are the model's failure."""


class OutagePolicy:
    """Waits for an endpoint that is busy, down, slow or cut off until it answers again.

    Safe for threads.

    Args:
        outage_seconds: How long an endpoint may fail, without one answer to any question,
            until it is given up.
        clock: What time it is.
    """

    def __init__(self, outage_seconds: float, clock: Clock | None = None) -> None:
        self.outage_seconds = outage_seconds
        self._clock = clock or Clock()
        self._down_since: dict[str, float] = {}
        self._lock = threading.Lock()

    def is_passing(self, error: BaseException, *, attempt: int) -> bool:
        """Whether ``error`` says nothing of the model: it is asked again, and not noted."""
        if not isinstance(error, Exception):
            return False
        return is_transient(error) or (is_unreadable(error) and attempt < _MOST_UNREADABLE)

    def answered(self, ask: CallRequest) -> None:
        """Note that the endpoint of ``ask`` works."""
        if self._down_since:
            with self._lock:
                self._down_since.pop(_endpoint(ask), None)

    def wait_seconds(self, error: Exception, ask: CallRequest, *, attempt: int) -> float | None:
        """Return how long to wait after ``attempt`` (from 1) failed; None is a model's failure.

        Raises:
            OutageError: If the endpoint has been down for too long, or says that it will be.
        """
        if not self.is_passing(error, attempt=attempt):
            return None
        now, hint = self._clock.monotonic(), hinted_seconds(error)
        with self._lock:
            since = self._down_since.setdefault(_endpoint(ask), now)
        if now - since > self.outage_seconds or hint > self.outage_seconds:
            reason = ask.caller.without_secrets(f"{type(error).__name__}: {error}")
            raise OutageError(
                f"{_endpoint(ask)} gave no answer for {now - since:.0f} s and more is not waited "
                f"for ({reason}). Every answer up to now is kept; the same command goes on."
            ) from error
        return hint + backoff_seconds(attempt, ask.key)


def _endpoint(ask: CallRequest) -> str:
    return ask.caller.limiter.endpoint or ask.caller.identity


@dataclass(frozen=True, slots=True)
class Attempts:
    """Makes the call of ``ask``; ``plan`` says how and does nothing by itself.

    Attributes:
        ask: What is asked.
        patience: How long the asker waits.
        store: Keeps what comes of it.
        shared: The store again if other processes use it too, else None.
        ledgers: Count what is spent, each with the share of its limits that the call may use.
        endurance: Says what is tried again instead of the caller's policy; None is that.
    """

    ask: CallRequest
    patience: Deadline
    store: WritableBackend
    shared: SharedBackend | None
    ledgers: Mapping[Ledger, float]
    endurance: OutagePolicy | None = None

    @property
    def _clock(self) -> Clock:
        return self.patience.clock

    def plan(self) -> CallPlan:
        """Try as often as the caller's policy says, but not beyond the asker's patience."""
        last: Exception | None = None
        pause = 0.0
        for number in count(1):
            send = Send()
            try:
                if last is not None:
                    yield Sleep(self.patience, pause)
                return (yield from self._attempt(number, send))
            except DeadlineError:
                if last is None:
                    raise
                raise last from last.__cause__
            except Exception as error:
                wait = self._wait_seconds(error, number)
                if wait is None or send.has_shown or wait >= self.patience.left_seconds:
                    raise
                last, pause = error, wait
        raise AssertionError("attempts end by themselves")

    def _wait_seconds(self, error: Exception, number: int) -> float | None:
        caller = self.ask.caller
        if (limits := self._limits) is not None:
            limits.note(error, caller.limiter.endpoint)
        if self.endurance is not None:
            return self.endurance.wait_seconds(error, self.ask, attempt=number)
        return caller.retries.wait_seconds(error, attempt=number, key=self.ask.key)

    @property
    def _limits(self) -> SharedLimits | None:
        return None if self.shared is None else getattr(self.shared, "limits", None)

    def give_up(self, error: DeadlineError) -> None:
        """Note that nothing was sent: a replay must come to the same end."""
        unsent = Attempt(self.ask, 0, self._clock, started=self.patience.started)
        self._keep(unsent.failed(error))

    def _attempt(self, number: int, send: Send) -> CallPlan:
        limiter = self.ask.caller.limiter
        ticket = limiter.enter()
        try:
            if not ticket.done():
                yield Wait(self.patience, ticket)
            self.patience.check()
            paid = partial(self._paid, number, send)
            if (limits := self._limits) is None or not limits.has_say(limiter):
                return (yield from paid())
            return (yield from wait_for_slot(limits, limiter, self.patience, make=paid))
        finally:
            limiter.leave(ticket)

    def _paid(self, number: int, send: Send) -> CallPlan:
        ask = self.ask
        reserving = Work(partial(Reservation.make, self.ledgers, ask.estimate, key=ask.key))
        try:
            yield from self._worked(reserving)
        except BaseException:
            if reserving.result is not None:
                reserving.result.cancel()
            raise
        reservation: Reservation = reserving.result
        attempt = Attempt(ask, number, self._clock, started=self._clock.monotonic())
        try:
            call = attempt.answered((yield send))
        except BaseException as error:
            if not isinstance(error, MoaError) and not self._is_passing(error, number):
                self._keep(attempt.failed(error))
            reservation.settle(tokens=0, usd=0.0, seconds=attempt.seconds)
            raise
        if self.endurance is not None:
            self.endurance.answered(ask)
        storing = Work(partial(self._settled, call, reservation))
        yield from self._worked(storing)
        kept: Call = storing.result
        return kept

    def _is_passing(self, error: BaseException, number: int) -> bool:
        endurance = self.endurance
        return endurance is not None and endurance.is_passing(error, attempt=number)

    def _worked(self, work: Work) -> Generator[Step, None, None]:
        """Have ``work`` done; only that on a shared store may take long enough for a thread."""
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
        current_scope().log.append(facts_of(call, is_reused=False))
        return kept
