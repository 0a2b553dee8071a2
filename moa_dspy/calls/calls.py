"""The path of a request to its answer: from a store, a recording, or the endpoint.

Requests for the same key share one call (single flight): the threads and tasks of this process
through a future, the processes on one store through a claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, Final, Protocol

from moa_dspy.calls.budget import Attempt, Ledger, Reservation
from moa_dspy.calls.call import (
    Call,
    CallBackend,
    MemoryCalls,
    SharedBackend,
    SingleFlight,
    WritableBackend,
    call_key,
    canonical_json,
    facts_of,
)
from moa_dspy.calls.request import (
    CONNECTIONS,
    AgentCalls,
    CallRequest,
    Limiter,
    Limiters,
    OutagePolicy,
    ProbePolicy,
)
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
    Send,
    Sender,
    Sleep,
    Step,
    Wait,
    Work,
    arun_plan,
    aunless,
    poll_seconds,
    run_plan,
    unless,
)
from moa_dspy.errors import BudgetReachedError, MoaError, UnknownCallError

_LONGEST_BUDGET_WAIT_SECONDS: Final = 600.0
"""Time after which a call in flight is not waited for: it may never be settled."""


class _BudgetWait:
    """The wait of a request until calls in flight are settled and leave room in a budget."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline, self._pauses = deadline, poll_seconds()
        self._ends = math.inf

    def wait(self, refused: BudgetReachedError) -> Generator[Step, Any, None]:
        """Wait a moment; raise ``refused`` if there will be no room, or not in time."""
        now = self._deadline.clock.monotonic()
        self._ends = min(self._ends, now + _LONGEST_BUDGET_WAIT_SECONDS)
        if not (refused.may_fit_later and current_scope().waits_for_budget and now < self._ends):
            raise refused
        try:
            yield Sleep(self._deadline, next(self._pauses))
        except DeadlineError:
            if self._deadline.left_seconds == -math.inf:  # cancelled
                raise
            # The budget, and no agent, was too slow.
            raise refused from None


class SharedSlots(Protocol):
    """Limits of endpoints that all processes on one store share."""

    def applies_to(self, limiter: Limiter) -> bool:
        """Return whether ``acquire`` might refuse or delay a request."""
        ...

    def acquire(self, limiter: Limiter) -> Any:
        """Acquire a slot of the endpoint, if a slot is free and the endpoint asked for no pause.

        Returns:
            An object to pass to ``release``, with ``is_open``, whether a request may be sent now,
            and ``wait_seconds``, the rest of the endpoint's pause.
        """
        ...

    def release(self, admission: Any) -> None:
        """Release the slot, if there is one."""
        ...

    def note_pause(self, error: Exception, endpoint: str) -> None:
        """Store the pause that ``error`` asks for, for all processes."""
        ...


class Calls:
    """Answers requests from a store, a recording or the endpoint, one call per key at a time.

    Args:
        store: Where new answers are stored; None keeps them in memory only.
        recording: Read-only answers from an earlier recording.
        replay_only: Whether an unknown request is an error instead of a call.
        ledger: Counts and limits all spending; ``spending_under`` adds further ledgers.
        clock: Source of time.

    Attributes:
        outage_policy: If set, a temporary failure does not count as a failed call, and it is
            retried by this policy instead of ``num_retries``.
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
        self.outage_policy: OutagePolicy | ProbePolicy | None = None
        self._shared = self.store if isinstance(self.store, SharedBackend) else None
        self._in_flight = SingleFlight()

    def prepare(
        self, caller: AgentCalls, content: Mapping[str, Any], *, sample: int | None = None
    ) -> CallRequest:
        """Return the request with its key and its estimate, without sending it.

        Args:
            caller: The agent that asks.
            content: The request as plain JSON data, without the model's name.
            sample: Index of the independent sample; None takes that of the current scope.
        """
        config = content.get("config", {})
        sample = current_scope().sample if sample is None else sample
        # At temperature 0 all samples are equal, so a second one would only be paid for again.
        sample = 0 if config.get("temperature") == 0 else sample
        text = canonical_json(content)
        longest = config.get("max_tokens")
        prompt, completion = len(text.encode("utf-8", "replace")), longest or 0
        usd = caller.usd(prompt, completion)
        estimate = CallEstimate(prompt + completion, usd, is_bounded=longest is not None)
        return CallRequest(caller, call_key(caller.identity, sample, text), sample, text, estimate)

    def known(self, request: CallRequest) -> Call | None:
        """Return the stored or recorded call and log it as reused, or None.

        In a replay, a recorded failure is returned; otherwise the request is retried.

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
        """Count reused answers in every ledger of the current scope."""
        for ledger in self._ledgers():
            ledger.count_reuse(n)

    def _ledgers(self) -> dict[Ledger, float]:
        scoped = current_scope().ledgers
        return {**scoped, self.ledger: scoped.get(self.ledger, 1.0)}

    def answer(self, request: CallRequest, send: Sender) -> Call:
        """Return the call of ``request``, calling ``send`` only if it is not stored or recorded.

        Raises:
            DeadlineError: If the scope's deadline passed before a request was sent.
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
        """Return the call of ``request`` as ``answer``, in a coroutine."""
        if (call := self.known(request)) is not None:
            return call
        interrupted = interrupt_event()
        if interrupted is None:
            return await arun_plan(self.plan(request), send)
        with interruptible():
            return await aunless(interrupted, arun_plan(self.plan(request), send))

    def plan(self, request: CallRequest) -> CallPlan:
        """Return the steps that get the call of ``request``, which is not known yet."""
        deadline, interrupted = Deadline.of(current_scope(), self.clock), interrupt_event()
        room = _BudgetWait(deadline)
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
                    # It may have been answered since the last check.
                    return self.known(request) or (yield from self._claimed(attempts))
                except BudgetReachedError as error:
                    refused = error
                finally:
                    self._in_flight.finish(request.key, flight)
                # Here nothing is held that a call in flight may need for calls of its own.
                yield from room.wait(refused)
        except DeadlineError as error:
            if not (interrupted is not None and interrupted.is_set()):
                attempts.note_unsent(error)
            raise

    def _claimed(self, attempts: Attempts) -> CallPlan:
        """Make the call under a claim, or read the answer of the process that holds the claim."""
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
            # It may have been answered between the last check and the claim.
            return self.known(request) or (yield from attempts.plan())
        finally:
            if claiming.result:
                shared.release(request.key)


@dataclass(frozen=True, slots=True)
class Attempts:
    """The attempts at one request; ``plan`` yields their steps, which the caller carries out.

    Attributes:
        request: The request.
        deadline: How long the caller waits.
        store: Where the call is stored.
        ledgers: The ledgers that count this call, each with the share of its limits that it may
            use.
        shared: The store again if other processes use it too, else None.
        limits: Limits that these processes share; None means no shared limits.
        outage_policy: If set, it decides about retries instead of the caller's policy.
        is_check: Whether the call only shows that the model works: it is paid, but not stored.
    """

    request: CallRequest
    deadline: Deadline
    store: WritableBackend
    ledgers: Mapping[Ledger, float]
    shared: SharedBackend | None = None
    limits: SharedSlots | None = None
    outage_policy: OutagePolicy | ProbePolicy | None = None
    is_check: bool = False

    def plan(self) -> CallPlan:
        """Try as often as the retry policy allows, but not beyond the deadline."""
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
                wait = yield from self._wait_seconds(error, number)
                if wait is None and send.failure and not isinstance(error, MoaError):
                    self._keep(send.failure)
                if wait is None or send.has_shown or wait >= self.deadline.left_seconds:
                    raise
                last, pause = error, wait
        raise AssertionError("attempts end by themselves")

    def _wait_seconds(self, error: Exception, number: int) -> Generator[Step, Any, float | None]:
        """Return the wait after a failed attempt; None means that it was the last one."""
        request, policy = self.request, self.outage_policy
        if self.limits is not None:
            self.limits.note_pause(error, request.caller.limiter.endpoint)
        if policy is None:
            return request.caller.retries.wait_seconds(error, attempt=number, key=request.key)
        if not isinstance(error, MoaError) and (sent := policy.failed(request)) is not None:
            works = yield from replace(self, request=sent[0], is_check=True)._works(sent[1])
            policy.checked(request, works=works)
        return policy.wait_seconds(error, request, attempt=number)

    def _works(self, send: Sender) -> Generator[Step, Any, bool]:
        """Send the request once; return whether it was answered."""
        try:
            yield from self._attempt(1, Work(send))
        except Exception as error:
            if isinstance(error, MoaError):  # such as the end of the budget
                raise
            return False
        return True

    def note_unsent(self, error: DeadlineError) -> None:
        """Store that nothing was sent, so that a replay ends in the same way."""
        deadline, loaded = self.deadline, self.request.caller.loading()
        unsent = Attempt(self.request, 0, deadline.clock, started=deadline.started, loaded=loaded)
        self._keep(unsent.failed(error))

    def _attempt(self, number: int, send: Send | Work) -> CallPlan:
        caller = self.request.caller
        make = partial(self._paid, number, send)
        if caller.is_remote:
            make = partial(self._with_slot, CONNECTIONS, make)
        if self.limits is not None and self.limits.applies_to(caller.limiter):
            make = partial(self._with_shared_slot, self.limits, make)
        return (yield from self._with_slot(caller.limiter, make))

    def _with_slot(self, limiter: Limiter, make: Callable[[], CallPlan]) -> CallPlan:
        """Wait for a slot of the limiter, then make the call."""
        slot = limiter.acquire()
        try:
            if not slot.done():
                yield Wait(self.deadline, slot)
            self.deadline.check()
            return (yield from make())
        finally:
            limiter.release(slot)

    def _with_shared_slot(self, limits: SharedSlots, make: Callable[[], CallPlan]) -> CallPlan:
        """Wait for a slot that is shared by all processes, then make the call."""
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

    def _paid(self, number: int, send: Send | Work) -> CallPlan:
        request, policy = self.request, self.outage_policy
        reserving = Work(partial(Reservation.make, self.ledgers, request.estimate, key=request.key))
        try:
            yield from self._do(reserving)
        except BaseException:
            if reserving.result is not None:
                reserving.result.cancel()
            raise
        reservation: Reservation = reserving.result
        clock, loaded = self.deadline.clock, request.caller.loading()
        attempt = Attempt(request, number, clock, started=clock.monotonic(), loaded=loaded)
        try:
            with current_scope().asking(request.caller.agent):
                response = yield send
            call = attempt.answered(send.result if isinstance(send, Work) else response)
        except BaseException as error:
            failure = attempt.failed(error)
            if policy is not None and isinstance(send, Send) and isinstance(error, Exception):
                send.failure = failure  # the policy decides whether the call has failed
            elif not isinstance(error, MoaError):
                self._keep(failure)
            reservation.settle(tokens=0, usd=0.0, seconds=attempt.seconds)
            raise
        if policy is not None:
            sender = send.sender if isinstance(send, Send) else None
            policy.answered(request, sender)
        storing = Work(partial(self._settled, call, reservation))
        yield from self._do(storing)
        kept: Call = storing.result
        return kept

    def _do(self, work: Work) -> Generator[Step, None, None]:
        """Do ``work``, in a thread only for a shared store, which may take long."""
        if self.shared is not None:
            yield work
        else:
            work.run()

    def _settled(self, call: Call, reservation: Reservation) -> Call:
        # Stored before it is settled, so a process that dies in between loses nothing.
        try:
            return self._keep(call)
        finally:
            tokens = call.prompt_tokens + call.completion_tokens
            reservation.settle(tokens=tokens, usd=call.usd, seconds=call.seconds)

    def _keep(self, call: Call) -> Call:
        if self.is_check:
            return call
        kept = self.store.put(call) or call
        current_scope().note(facts_of(call, is_reused=False))
        return kept
