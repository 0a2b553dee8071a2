"""What the caller knows and an engine must learn: sample index, example, and a log to fill.

DSPy passes engines only the request, so these travel in a context variable;
threads that are started with a copied context and tasks inherit them.
"""

# DOCS: calls/_clock: Time as the calls see it; a test may give one that does not have to wait. | calls/_patience: How long the asker of a call waits: until a deadline, or until somebody says to stop.

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final

from moa_dspy.calls.budget import Ledger


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What one call cost, in production terms (a stored call keeps what it cost).

    Attributes:
        agent: Who was asked.
        prompt_tokens: 0 where it failed.
        completion_tokens: 0 where it failed.
        usd: 0 where it failed.
        seconds: As long as it took when it was made, or was given up.
        is_reused: Whether it came from a store or recording.
        failure: Why there is no answer; None when there is one.
        attempt: Which try it was, from 1 on; 0 was given up before it was sent.
        finish_reason: Why the reply ended: ``stop``, ``length`` (the token limit cut it),
            ``content_filter``, ``tool_call``; None where it failed.
        no_answer: Why the reply holds no answer, in one line: reasoning only, a refusal, an
            empty text; None where it holds one, or the call failed.
    """

    agent: str
    prompt_tokens: int
    completion_tokens: int
    usd: float
    seconds: float
    is_reused: bool
    failure: str | None = None
    attempt: int = 1
    finish_reason: str | None = None
    no_answer: str | None = None


@dataclass(frozen=True, slots=True)
class CallScope:
    """The surroundings of a call.

    Attributes:
        sample: Index of the independent sample that is asked for.
        example: What is asked about, for people.
        log: Collects the facts of every call made inside, failed ones included.
        deadline: A moment of ``time.monotonic``; after it no request is sent and nothing
            is waited for, but a request that is on its way is not stopped. None is never.
        cancelled: Once one of them is set, it is as if the deadline had passed.
        ledgers: Count and limit the calls made inside, each by this share of its limits.
    """

    sample: int = 0
    example: str | None = None
    log: list[CallFacts] = field(default_factory=list)
    deadline: float | None = None
    cancelled: tuple[threading.Event, ...] = ()
    ledgers: Mapping[Ledger, float] = field(default_factory=dict)


_SCOPE: ContextVar[CallScope | None] = ContextVar("moa_dspy_call_scope", default=None)


def current_scope() -> CallScope:
    """Return the innermost scope; outside of any, a fresh one whose log nobody reads."""
    return _SCOPE.get() or CallScope()


@contextmanager
def call_scope(
    *,
    sample: int | None = None,
    example: str | None = None,
    deadline: float | None = None,
    cancelled: threading.Event | None = None,
) -> Iterator[CallScope]:
    """Open a scope with its own log; what is not given is taken from the scope around it.

    A scope never outlasts the one around it: the earlier deadline counts, and each event.
    """
    outer = current_scope()
    scope = CallScope(
        sample=outer.sample if sample is None else sample,
        example=outer.example if example is None else example,
        deadline=_earlier(outer.deadline, deadline),
        cancelled=outer.cancelled if cancelled is None else (*outer.cancelled, cancelled),
        ledgers=outer.ledgers,
    )
    with entered(scope):
        yield scope


@contextmanager
def entered(scope: CallScope) -> Iterator[None]:
    """Make ``scope`` the current one; for threads that were started without its context."""
    token = _SCOPE.set(scope)
    try:
        yield
    finally:
        _SCOPE.reset(token)


@contextmanager
def spending_under(ledger: Ledger, *, share: float = 1.0) -> Iterator[None]:
    """Have ``ledger`` count and limit every call made inside, beside the ledger of the calls.

    A call is made only if all ledgers allow it, and is counted in each of them. Other threads
    and tasks are not affected, but those that were started inside with a copied context are.

    Args:
        ledger: May be the one of the calls itself, to give it a share.
        share: Part of its limits that the calls inside may use. A scope never widens the one
            around it: of nested shares of one ledger the smallest counts.
    """
    outer = current_scope()
    share = min(share, outer.ledgers.get(ledger, 1.0))
    others = {other: part for other, part in outer.ledgers.items() if other is not ledger}
    # The innermost comes first: what a search may not spend is not even reserved elsewhere.
    with entered(replace(outer, ledgers={ledger: share, **others})):
        yield


def budget_share(ledger: Ledger) -> float:
    """Return the part of the limits of ``ledger`` that a call made here may use."""
    return current_scope().ledgers.get(ledger, 1.0)


def _earlier(outer: float | None, inner: float | None) -> float | None:
    given = [moment for moment in (outer, inner) if moment is not None]
    return min(given, default=None)


class Clock:
    """The clock of this machine."""

    def time(self) -> float:
        """Return UTC seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that only grow, for deadlines and durations."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait in a thread."""
        time.sleep(seconds)

    async def asleep(self, seconds: float) -> None:
        """Wait in a coroutine."""
        await asyncio.sleep(seconds)


_LOOK_SECONDS: Final = 0.05
"""How often a waiter looks whether it was told to stop; nothing would wake it."""


class DeadlineError(TimeoutError):
    """The asker's time ended before a request was sent: a failure of the agent, nothing else."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Waits for things, but never longer than the asker does.

    Every method that waits or checks raises DeadlineError when the time has ended.
    """

    clock: Clock
    deadline: float = math.inf
    stops: tuple[threading.Event, ...] = ()
    started: float = field(default=0.0)

    @classmethod
    def of(cls, scope: CallScope, clock: Clock) -> Deadline:
        """Return the patience of whoever asks in ``scope``, from this moment on."""
        deadline = math.inf if scope.deadline is None else scope.deadline
        return cls(clock, deadline, scope.cancelled, clock.monotonic())

    @property
    def waited_seconds(self) -> float:
        """How long it has been waited in all."""
        return self.clock.monotonic() - self.started

    @property
    def left_seconds(self) -> float:
        """How long may still be waited; 0 and less is the end."""
        if any(stop.is_set() for stop in self.stops):
            return -math.inf
        return self.deadline - self.clock.monotonic()

    def check(self) -> None:
        """Raise if the time has ended."""
        if (left := self.left_seconds) > 0:
            return
        why = "nobody waits for it any more" if left == -math.inf else "its deadline has passed"
        raise DeadlineError(f"The request was not sent: {why}, after {self.waited_seconds:.2f} s.")

    def wait(self, future: Future[Any]) -> None:
        """Wait until ``future`` is done, whatever its result."""
        while not future.done():
            self.check()
            wait([future], timeout=self._look(self.left_seconds))

    async def await_(self, future: Future[Any]) -> None:
        """``wait`` for coroutines; a running ``future`` cannot be cancelled by it."""
        wrapped = asyncio.wrap_future(future)
        try:
            while not wrapped.done():
                self.check()
                await asyncio.wait([wrapped], timeout=self._look(self.left_seconds))
        finally:
            # Else it would call back into a loop that may be closed by then.
            wrapped.cancel()

    def sleep(self, seconds: float) -> None:
        """Wait ``seconds``."""
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            self.check()
            self.clock.sleep(self._look(left) or 0.0)
        self.check()

    async def asleep(self, seconds: float) -> None:
        """``sleep`` for coroutines."""
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            self.check()
            await self.clock.asleep(self._look(left) or 0.0)
        self.check()

    def _look(self, seconds: float) -> float | None:
        if self.stops:
            return max(0.0, min(seconds, _LOOK_SECONDS))
        return None if seconds == math.inf else max(0.0, seconds)
