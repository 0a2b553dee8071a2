"""What the caller knows and an engine must learn: sample index, example, and a log to fill.

DSPy passes engines only the request, so these travel in a context variable;
threads that are started with a copied context and tasks inherit them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


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
        is_thought_only: Whether the model reasoned and then said nothing.
    """

    agent: str
    prompt_tokens: int
    completion_tokens: int
    usd: float
    seconds: float
    is_reused: bool
    failure: str | None = None
    attempt: int = 1
    is_thought_only: bool = False


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
    """

    sample: int = 0
    example: str | None = None
    log: list[CallFacts] = field(default_factory=list)
    deadline: float | None = None
    cancelled: tuple[threading.Event, ...] = ()


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
    )
    token = _SCOPE.set(scope)
    try:
        yield scope
    finally:
        _SCOPE.reset(token)


def _earlier(outer: float | None, inner: float | None) -> float | None:
    given = [moment for moment in (outer, inner) if moment is not None]
    return min(given, default=None)
