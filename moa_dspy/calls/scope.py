"""The context of a call (sample, example, deadline, ledgers, log), and waiting within it.

DSPy passes only the request to engines, so the context is kept in a context variable. Threads that
are started with a copied context, and tasks, inherit it.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol


class Interrupt(Protocol):
    """A signal that ends a caller's work, such as a ``threading.Event``."""

    def is_set(self) -> bool:
        """Return whether the work has ended."""
        ...


@dataclass(frozen=True, slots=True)
class CallFacts:
    """Cost and end of one call, as in production: a reused call has the cost of the original call.

    Attributes:
        agent: The agent's name.
        prompt_tokens, completion_tokens, usd: 0 for a failed call.
        seconds: Wall time of the call, or until the caller stopped waiting.
        is_reused: Whether the answer is from a store or recording.
        failure: Why there is no answer; None if there is an answer.
        attempt: Number of the attempt, from 1; 0 means that the request was never sent.
        is_estimated: Whether tokens and usd are an estimate, as the endpoint counted none.
        finish_reason: ``stop``, ``length``, ``content_filter``, ``tool_call``; None if it failed.
        no_answer: Why a reply holds no answer, such as a refusal; None if it holds an answer.
        key: As in ``Call``; empty if there is none.
        time: As in ``Call``.
    """

    agent: str
    prompt_tokens: int
    completion_tokens: int
    usd: float
    seconds: float
    is_reused: bool
    failure: str | None = None
    attempt: int = 1
    is_estimated: bool = False
    finish_reason: str | None = None
    no_answer: str | None = None
    key: str = field(default="", compare=False, repr=False)
    time: float = field(default=0.0, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class CallEstimate:
    """An upper bound of one call's usage, or of its request alone if its answer may be any length.

    Attributes:
        tokens, usd: Bytes of the request plus the longest answer, and their price.
        is_bounded: Whether the answer is limited.
    """

    tokens: int = 0
    usd: float = 0.0
    is_bounded: bool = True


@dataclass(slots=True)
class CallCount:
    """Calls of one agent in one stage of a search: their numbers, tokens and cost in this run.

    Attributes:
        made: Requests sent; one that failed and was sent again counts each time.
        reused: Answers from a store or a recording.
        failed: Calls without an answer, among both.
        tokens: Prompt and completion tokens that were paid for.
        usd: Cost of the requests sent; reused answers are free.
    """

    made: int = 0
    reused: int = 0
    failed: int = 0
    tokens: int = 0
    usd: float = 0.0

    def add(self, other: CallCount) -> None:
        """Add another count to this one."""
        self.made += other.made
        self.reused += other.reused
        self.failed += other.failed
        self.tokens += other.tokens
        self.usd += other.usd


@dataclass(slots=True)
class CallTable:
    """The calls of one process by stage and agent, and the rows it scored. Safe for threads.

    Attributes:
        stage: The current stage.
        counts: Counts by stage and agent, in the order of their first calls.
        rows: Number of scored answers of architectures to rows, by stage.
    """

    stage: str = ""
    counts: dict[tuple[str, str], CallCount] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    _open_calls: dict[int, tuple[str, float]] = field(default_factory=dict)
    _n_begun: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, log: Sequence[CallFacts]) -> None:
        """Count the calls of a log."""
        with self._lock:
            for facts in log:
                count = self.counts.setdefault((self.stage, facts.agent), CallCount())
                is_sent = facts.attempt > 0 and not facts.is_reused  # attempt 0 was never sent
                count.made += facts.attempt * is_sent
                count.reused += facts.is_reused
                count.failed += facts.failure is not None or facts.no_answer is not None
                if is_sent:
                    count.tokens += facts.prompt_tokens + facts.completion_tokens
                    count.usd += facts.usd

    def add_row(self) -> None:
        """Count one scored row."""
        with self._lock:
            self.rows[self.stage] = self.rows.get(self.stage, 0) + 1

    def begin(self, agent: str) -> int:
        """Record that a request to an agent was sent; return a number for ``end``."""
        with self._lock:
            self._n_begun += 1
            self._open_calls[self._n_begun] = (agent, time.monotonic())
            return self._n_begun

    def end(self, number: int) -> None:
        """Record that the request of this number is no longer waited for."""
        with self._lock:
            self._open_calls.pop(number, None)

    def waiting(self) -> dict[str, tuple[int, float]]:
        """Return by agent the number of requests under way, and the seconds of the longest."""
        by_agent: dict[str, tuple[int, float]] = {}
        now = time.monotonic()
        with self._lock:
            for agent, since in self._open_calls.values():  # the oldest first
                n, longest = by_agent.get(agent, (0, now - since))
                by_agent[agent] = (n + 1, longest)
        return by_agent

    def n_calls(self, stage: str) -> int:
        """Return the calls of a stage that have ended."""
        with self._lock:
            counts = [count for (name, _), count in self.counts.items() if name == stage]
        return sum(count.made + count.reused for count in counts)

    def by_agent(self) -> dict[str, CallCount]:
        """Return the sums over all stages."""
        totals: dict[str, CallCount] = {}
        with self._lock:
            for (_, agent), count in self.counts.items():
                totals.setdefault(agent, CallCount()).add(count)
        return totals


@dataclass(frozen=True, slots=True)
class CallScope:
    """The context of a call.

    Attributes:
        sample: Index of the requested independent sample.
        example: Name of the example that is being answered, for messages.
        log: Collects the facts of every call made inside, failed ones included.
        deadline: A time of ``time.monotonic``, after which no request is sent and no wait
            continues; a request in flight is not stopped. None means no deadline.
        cancelled: Events, each of which has the effect of a passed deadline once it is set.
        interrupted: Set when the surrounding caller has ended: an interrupted ``dspy.Parallel`` or
            ``dspy.Evaluate``, or a cancelled coroutine. Then no request is sent, and requests in
            flight are not waited for.
        ledgers: Ledgers that count and limit the calls made inside, each with the share of
            its limits that they may use; see ``spending_under``.
        tables: Count each call made inside as it ends.
        waits_for_budget: Whether a call waits while only calls in flight leave no room for it.
    """

    sample: int = 0
    example: str | None = None
    log: list[CallFacts] = field(default_factory=list)
    deadline: float | None = None
    cancelled: tuple[threading.Event, ...] = ()
    interrupted: Interrupt | None = None
    ledgers: Mapping[Any, float] = field(default_factory=dict)
    tables: tuple[CallTable, ...] = ()
    waits_for_budget: bool = False

    def note(self, *ended: CallFacts) -> None:
        """Log and count calls that have ended."""
        self.log.extend(ended)
        for table in self.tables:
            table.add(ended)

    @contextmanager
    def asking(self, agent: str) -> Iterator[None]:
        """Count an agent as being waited for while inside."""
        entries = [(table, table.begin(agent)) for table in self.tables]
        try:
            yield
        finally:
            for table, number in entries:
                table.end(number)


_SCOPE: ContextVar[CallScope | None] = ContextVar("moa_dspy_call_scope", default=None)


def current_scope() -> CallScope:
    """Return the innermost scope; outside of any, a fresh one."""
    return _SCOPE.get() or CallScope()


@contextmanager
def call_scope(
    *,
    sample: int | None = None,
    example: str | None = None,
    deadline: float | None = None,
    cancelled: threading.Event | None = None,
    table: CallTable | None = None,
) -> Iterator[CallScope]:
    """Open a scope with its own log; other values that are not given are those of the outer scope.

    A scope never outlasts the outer scope: the earlier deadline applies, and all events of both.
    """
    outer = current_scope()
    is_known = any(other is table for other in outer.tables)
    scope = CallScope(
        sample=outer.sample if sample is None else sample,
        example=outer.example if example is None else example,
        deadline=min((at for at in (outer.deadline, deadline) if at is not None), default=None),
        cancelled=outer.cancelled if cancelled is None else (*outer.cancelled, cancelled),
        interrupted=outer.interrupted,
        ledgers=outer.ledgers,
        tables=outer.tables if table is None or is_known else (*outer.tables, table),
        waits_for_budget=outer.waits_for_budget,
    )
    with entered(scope):
        yield scope


@contextmanager
def waiting_for_budget(*, waits: bool = True) -> Iterator[None]:
    """Set whether calls inside wait while only calls in flight leave no room in a budget."""
    with entered(replace(current_scope(), waits_for_budget=waits)):
        yield


@contextmanager
def entered(scope: CallScope) -> Iterator[None]:
    """Make ``scope`` the current scope, for threads that were started without its context."""
    token = _SCOPE.set(scope)
    try:
        yield
    finally:
        _SCOPE.reset(token)


@contextmanager
def interruptible() -> Iterator[None]:
    """End threads and tasks started inside, with a copied context, together with the caller.

    See ``interrupt_event``.
    """
    outer = current_scope()
    event = interrupt_event()
    if event is outer.interrupted:
        yield
        return
    with entered(replace(outer, interrupted=event)):
        yield


def interrupt_event() -> Interrupt | None:
    """Return the signal that ends the surrounding caller, if this thread gets no other signal.

    The caller is a ``dspy.Parallel`` or ``dspy.Evaluate`` that runs this thread, or a coroutine
    that waits for this thread (``dspy.asyncify``, ``dspy.streamify``, a web server); else None.
    """
    if (event := current_scope().interrupted) is not None:
        return event
    return _executors_event() or _hosts_event()


def _executors_event() -> Interrupt | None:
    # DSPy's executor does not stop its threads when it is interrupted or meets too many errors; the
    # only sign is the event `cancel_jobs`, which is found on their stack.
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == _WORKER and frame.f_globals.get("__name__") == _EXECUTOR:
            event = getattr(frame.f_locals.get("self"), "cancel_jobs", None)
            return event if isinstance(event, threading.Event) else None
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    return None


_EXECUTOR, _WORKER = "dspy.utils.parallelizer", "safe_func"


def _hosts_event() -> Interrupt | None:
    # anyio's own check works only in this thread, but requests are also made in other threads.
    local = getattr(sys.modules.get("anyio._core._eventloop"), "threadlocals", None)
    scope, token = (getattr(local, f"current_{name}", None) for name in ("cancel_scope", "token"))
    if scope is None:
        return None
    return _CancelledHost(scope, getattr(token, "native_token", None))


@dataclass(frozen=True, slots=True)
class _CancelledHost:
    """The cancelled state of the coroutine that waits for one of anyio's worker threads."""

    scope: Any  # the coroutine's
    loop: Any = None  # a closed one has cancelled all its coroutines

    def is_set(self) -> bool:
        """Return whether the coroutine was cancelled."""
        if isinstance(self.loop, asyncio.AbstractEventLoop) and self.loop.is_closed():
            return True
        scope = self.scope
        while scope is not None:
            if scope.cancel_called:
                return True
            scope = None if scope.shield else getattr(scope, "_parent_scope", None)
        return False


class Clock:
    """The clock of this machine; tests replace it by a clock that does not wait."""

    def time(self) -> float:
        """Return UTC seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never decrease, for deadlines and durations."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait in a thread."""
        time.sleep(seconds)

    async def sleep_async(self, seconds: float) -> None:
        """Wait in a coroutine."""
        await asyncio.sleep(seconds)


_POLL_SECONDS: Final = 0.05
"""Time between two checks of the events that cancel a waiter; nothing else would wake it."""


class DeadlineError(TimeoutError):
    """The caller's time ended before a request was sent; it counts as a failure of the agent."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Waits for futures or times, but never beyond the deadline of a scope.

    Every method that waits or checks raises DeadlineError after the deadline.

    Attributes:
        clock: Gives the time of ``at``, the deadline, and of ``started``, the start of the wait.
        cancelled: Events that end the wait early.
    """

    clock: Clock
    at: float = math.inf
    cancelled: tuple[Interrupt, ...] = ()
    started: float = 0.0

    @classmethod
    def of(cls, scope: CallScope, clock: Clock) -> Deadline:
        """Return the deadline of ``scope``, with waiting time counted from now."""
        at = math.inf if scope.deadline is None else scope.deadline
        event = interrupt_event()
        cancelled = scope.cancelled if event is None else (*scope.cancelled, event)
        return cls(clock, at, cancelled, clock.monotonic())

    @property
    def left_seconds(self) -> float:
        """Time left until the deadline; 0 or less after it."""
        if any(event.is_set() for event in self.cancelled):
            return -math.inf
        return self.at - self.clock.monotonic()

    def check(self) -> None:
        """Raise if the deadline has passed."""
        if (left := self.left_seconds) > 0:
            return
        waited = self.clock.monotonic() - self.started
        is_given_up = left == -math.inf
        why = "its caller has stopped waiting" if is_given_up else "its deadline has passed"
        raise DeadlineError(f"The request was not sent: {why}, after {waited:.2f} s.")

    def wait(self, future: Future[Any]) -> None:
        """Wait until ``future`` is done, whatever its result."""
        while not future.done():
            self.check()
            wait([future], timeout=self._timeout(self.left_seconds))

    async def wait_async(self, future: Future[Any]) -> None:
        """Wait until ``future`` is done, in a coroutine that cannot cancel it while it runs."""
        wrapped = asyncio.wrap_future(future)
        try:
            while not wrapped.done():
                self.check()
                await asyncio.wait([wrapped], timeout=self._timeout(self.left_seconds))
        finally:
            # Otherwise it would call back into a loop that may be closed by then.
            wrapped.cancel()

    def sleep(self, seconds: float) -> None:
        """Wait ``seconds``."""
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            self.check()
            self.clock.sleep(self._timeout(left) or 0.0)
        self.check()

    async def sleep_async(self, seconds: float) -> None:
        """Wait ``seconds``, in a coroutine."""
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            self.check()
            await self.clock.sleep_async(self._timeout(left) or 0.0)
        self.check()

    def _timeout(self, seconds: float) -> float | None:
        if self.cancelled:
            return max(0.0, min(seconds, _POLL_SECONDS))
        return None if seconds == math.inf else max(0.0, seconds)
