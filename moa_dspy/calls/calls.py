"""The one place that decides where an answer comes from: a store, a recording or the endpoint.

Requests for the same key share one call (single flight): among the threads and tasks of this
process by a future, among the processes on one store by a claim.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import Any, TypeAlias

from moa_dspy.calls.attempts import Attempts, OutagePolicy, SharedSlots, facts_of
from moa_dspy.calls.budget import Ledger
from moa_dspy.calls.call import (
    Call,
    CallBackend,
    MemoryCalls,
    SharedBackend,
    WritableBackend,
    call_key,
    canonical_json,
)
from moa_dspy.calls.request import AgentCalls, CallRequest, Limiters, poll_seconds
from moa_dspy.calls.scope import (
    CallEstimate,
    Clock,
    Deadline,
    DeadlineError,
    current_scope,
    interrupt_event,
    interruptible,
)
from moa_dspy.calls.timeout import (
    THREADS,
    ASender,
    CallPlan,
    Sender,
    Sleep,
    Wait,
    Work,
    arun_plan,
    aunless,
    run_plan,
    unless,
)
from moa_dspy.errors import UnknownCallError


class Calls:
    """Answers requests from a store, a recording or the endpoint, each key once at a time.

    Args:
        store: Keeps new answers; None keeps them in memory only.
        recording: Read-only answers that were made elsewhere.
        replay_only: Whether an unknown request is an error instead of a call.
        ledger: Counts and limits all that is spent; ``spending_under`` adds others.
        clock: Source of time.

    Attributes:
        outage_policy: May be set. Then a temporary failure is no failed call, and is retried,
            as the policy says instead of ``num_retries``.
    """

    def __init__(
        self,
        store: WritableBackend | None = None,
        *,
        recording: CallBackend | None = None,
        replay_only: bool = False,
        ledger: Ledger | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.store: WritableBackend = store if store is not None else MemoryCalls()
        self.recording = recording
        self.replay_only = replay_only
        self.ledger = ledger or Ledger()
        self.clock = clock or Clock()
        self.limiters = Limiters()
        self.outage_policy: OutagePolicy | None = None
        self._shared = self.store if isinstance(self.store, SharedBackend) else None
        self._in_flight = SingleFlight()

    def prepare(
        self, caller: AgentCalls, content: Mapping[str, Any], *, sample: int | None = None
    ) -> CallRequest:
        """Return the request with its key and its estimate; nothing is sent.

        Args:
            caller: The agent that asks.
            content: The request as plain JSON data, without the model's name.
            sample: Index of the independent sample; None means that of the current scope.
        """
        config = content.get("config", {})
        sample = current_scope().sample if sample is None else sample
        # A greedy agent gives one answer however often it is asked: asking twice is paying twice.
        sample = 0 if config.get("temperature") == 0 else sample
        text = canonical_json(content)
        longest = config.get("max_tokens")
        prompt, completion = len(text.encode("utf-8", "replace")), longest or 0
        usd = caller.usd(prompt, completion)
        estimate = CallEstimate(prompt + completion, usd, is_bounded=longest is not None)
        return CallRequest(caller, call_key(caller.identity, sample, text), sample, text, estimate)

    def known(self, request: CallRequest) -> Call | None:
        """Return the stored or recorded call and log it as reused, or None.

        A recorded failure is an answer in a replay; elsewhere it is retried.

        Raises:
            UnknownCallError: In a replay, when the recording has no such call.
        """
        call = self.store.get(request.key)
        if call is None and self.recording is not None:
            call = self.recording.get(request.key)
        if call is not None and (call.failure is None or self.replay_only):
            self.count_reuse()
            current_scope().note(facts_of(call, is_reused=True))
            return call
        if self.replay_only:
            example = current_scope().example
            where = f" for example {example!r}" if example is not None else ""
            raise UnknownCallError(
                f"The recording has no call of agent {request.caller.agent!r}{where} "
                f"(sample {request.sample}, key {request.key[:12]})."
            )
        return None

    def count_reuse(self, n: int = 1) -> None:
        """Count answers that were known already, in every ledger that counts here."""
        for ledger in self._ledgers():
            ledger.count_reuse(n)

    def _ledgers(self) -> dict[Ledger, float]:
        scoped = current_scope().ledgers
        return {**scoped, self.ledger: scoped.get(self.ledger, 1.0)}

    def answer(self, request: CallRequest, send: Sender) -> Call:
        """Return the call of ``request``, making it with ``send`` only if it is not known.

        Raises:
            DeadlineError: If the scope's time ended before a request was sent.
        """
        if (call := self.known(request)) is not None:
            return call
        interrupted = interrupt_event()
        if interrupted is None:
            return run_plan(self.plan(request), send)
        with interruptible():
            task = partial(copy_context().run, partial(run_plan, self.plan(request), send))
        answered: Call = unless(interrupted, THREADS.submit(task))
        return answered

    async def aanswer(self, request: CallRequest, send: ASender) -> Call:
        """``answer`` for coroutines."""
        if (call := self.known(request)) is not None:
            return call
        interrupted = interrupt_event()
        if interrupted is None:
            return await arun_plan(self.plan(request), send)
        with interruptible():
            return await aunless(interrupted, arun_plan(self.plan(request), send))

    def plan(self, request: CallRequest) -> CallPlan:
        """Describe how to get the call of ``request``, which was not known just now."""
        deadline, interrupted = Deadline.of(current_scope(), self.clock), interrupt_event()
        limits: SharedSlots | None = getattr(self._shared, "limits", None)
        attempts = Attempts(
            request,
            deadline,
            self.store,
            self._ledgers(),
            shared=self._shared,
            limits=limits,
            outage_policy=self.outage_policy,
        )
        try:
            while True:
                flight, is_first = self._in_flight.join(request.key)
                if not is_first:
                    yield Wait(deadline, flight)
                    if (call := self.known(request)) is not None:
                        return call
                    continue
                try:
                    # It may have been answered since the look before.
                    return self.known(request) or (yield from self._claimed(attempts))
                finally:
                    self._in_flight.finish(request.key, flight)
        except DeadlineError as error:
            if not (interrupted is not None and interrupted.is_set()):
                attempts.note_unsent(error)
            raise

    def _claimed(self, attempts: Attempts) -> CallPlan:
        """Make the call under a claim, or take it over from the process that made it."""
        request, shared = attempts.request, attempts.shared
        if shared is None:
            return (yield from attempts.plan())
        claiming = Work(partial(shared.claim, request.key))
        try:
            for pause in poll_seconds():
                yield claiming
                if claiming.result:
                    break
                yield Sleep(attempts.deadline, pause)
                if (call := self.known(request)) is not None:
                    return call
            # It may have been answered between the last look and the claim.
            return self.known(request) or (yield from attempts.plan())
        finally:
            if claiming.result:
                shared.release(request.key)


InFlight: TypeAlias = Future[None]
"""Done when the call of a key has ended, answered or not; its result is read from the store."""


class SingleFlight:
    """Keys whose calls are being made in this process."""

    def __init__(self) -> None:
        self._flights: dict[str, InFlight] = {}
        self._lock = threading.Lock()

    def join(self, key: str) -> tuple[InFlight, bool]:
        """Return the future of ``key``, and whether it is new: then the caller must finish it."""
        with self._lock:
            if (flight := self._flights.get(key)) is not None:
                return flight, False
            flight = self._flights[key] = Future()
            # A running future cannot be cancelled by a task that waits for it.
            flight.set_running_or_notify_cancel()
        return flight, True

    def finish(self, key: str, flight: InFlight) -> None:
        """Let all that wait for ``key`` go on."""
        with self._lock:
            del self._flights[key]
        flight.set_result(None)
