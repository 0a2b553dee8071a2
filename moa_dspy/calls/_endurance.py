"""How a study meets endpoints that are down: it asks again, for no answer is no fact."""

from __future__ import annotations

import threading

from moa_dspy.calls._caller import Ask
from moa_dspy.calls._clock import Clock
from moa_dspy.calls._retry import backoff_seconds, hinted_seconds, is_transient, is_unreadable
from moa_dspy.errors import OutageError

_MOST_UNREADABLE = 10
"""Attempts at one question after which replies that hold no answer are the model's failure."""


class Endurance:
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

    def answered(self, ask: Ask) -> None:
        """Note that the endpoint of ``ask`` works."""
        if self._down_since:
            with self._lock:
                self._down_since.pop(_endpoint(ask), None)

    def wait_seconds(self, error: Exception, ask: Ask, *, attempt: int) -> float | None:
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


def _endpoint(ask: Ask) -> str:
    return ask.caller.limiter.endpoint or ask.caller.identity
