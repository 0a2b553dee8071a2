"""Who was asked, in which stage, and how often; counted across the threads of an optimizer."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import dspy
from dspy.utils.callback import BaseCallback

from moa_dspy.calls import CallFacts, CallScope, call_scope, current_scope

ROLES: Final = ("proposers", "aggregator", "prompt_model")
STAGES: Final = ("references", "tuning", "validation", "test")

_IN_SEAT: Final[ContextVar[bool]] = ContextVar("moa_dspy_in_seat", default=False)


@dataclass(frozen=True, slots=True)
class Counted:
    """Requests to models.

    Attributes:
        made: Were sent, failed ones included.
        reused: Came from a store or a recording.
    """

    made: int = 0
    reused: int = 0


@dataclass(slots=True)
class Tally:
    """Counts calls by stage and role; copies of a program share it.

    Attributes:
        stage: What is going on, one of ``STAGES``.
    """

    stage: str = STAGES[0]
    _counts: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, role: str, log: Sequence[CallFacts]) -> None:
        """Count the calls of a log."""
        with self._lock:
            for facts in log:
                # Attempt 0 was given up before it was sent.
                self._counts[self.stage, role, facts.is_reused] += facts.attempt > 0

    def add_one(self, role: str) -> None:
        """Count one call of which nothing is known."""
        with self._lock:
            self._counts[self.stage, role, False] += 1

    def by_stage(self) -> Mapping[str, Mapping[str, Counted]]:
        """Return the counts by stage and role."""
        return {
            stage: {
                role: Counted(self._counts[stage, role, False], self._counts[stage, role, True])
                for role in ROLES
            }
            for stage in STAGES
        }


@contextmanager
def seat() -> Iterator[CallScope]:
    """Open the scope of a seat of the mixture: what is asked inside prompts nobody."""
    token = _IN_SEAT.set(True)
    try:
        with call_scope() as scope:
            yield scope
    finally:
        _IN_SEAT.reset(token)


@contextmanager
def count_prompting(tally: Tally) -> Iterator[None]:
    """Count every call of an LM that is made inside, but not in a seat, as the prompt model's.

    A request each where the LM logs its calls, as those of a pool do; else a call of the
    LM each, whatever DSPy's cache answered and however many completions it asked for.
    """
    with call_scope() as scope:
        callbacks = [*dspy.settings.callbacks, _Prompting(tally, scope)]
        try:
            with dspy.context(callbacks=callbacks):
                yield
        finally:
            tally.add("prompt_model", scope.log)


class _Prompting(BaseCallback):
    """Counts the calls that no log tells of."""

    def __init__(self, tally: Tally, scope: CallScope) -> None:
        self._tally, self._scope = tally, scope

    def __deepcopy__(self, memo: dict[int, Any]) -> _Prompting:
        return self

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Count the call of an LM unless its engine logs it where it is counted."""
        is_logged = getattr(getattr(instance, "engine", None), "logs_calls", False)
        # In a thread of the optimizer's own there is another log, or none.
        if not _IN_SEAT.get() and not (is_logged and current_scope().log is self._scope.log):
            self._tally.add_one("prompt_model")
