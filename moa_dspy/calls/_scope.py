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
    """What one answered call cost, in production terms (a stored call keeps what it cost)."""

    agent: str
    prompt_tokens: int
    completion_tokens: int
    usd: float
    seconds: float
    is_reused: bool


@dataclass(frozen=True, slots=True)
class CallScope:
    """The surroundings of a call; ``log`` collects the facts of every call made inside."""

    sample: int = 0
    example: str | None = None
    log: list[CallFacts] = field(default_factory=list)
    deadline: float | None = None
    cancelled: threading.Event | None = None


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
    """Open a scope with its own log; what is not given is taken from the scope around it."""
    outer = current_scope()
    scope = CallScope(
        sample=outer.sample if sample is None else sample,
        example=outer.example if example is None else example,
        deadline=outer.deadline if deadline is None else deadline,
        cancelled=outer.cancelled if cancelled is None else cancelled,
    )
    token = _SCOPE.set(scope)
    try:
        yield scope
    finally:
        _SCOPE.reset(token)
