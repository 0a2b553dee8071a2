"""Whether and when a failed call is tried again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Final

from moa_dspy.errors import MoaError

_LONGEST_BACKOFF_SECONDS: Final = 60.0
_LONGEST_HINT_SECONDS: Final = 600.0
"""Who is told to come back later than this has met a quota, not a hiccup."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter, for errors that DSPy calls retryable.

    Before attempt 2, 3, 4, ... it is waited between 0 and 1, 2, 4, ... seconds, at most
    60: who failed together does not come back together. A ``Retry-After`` is waited for in
    addition; one of more than 600 seconds ends the attempts. The jitter is drawn from the
    call's key, so equal studies wait equally long.

    Attributes:
        num_retries: Attempts after the first; 0 is none.
    """

    num_retries: int = 0

    def wait_seconds(self, error: BaseException, *, attempt: int, key: str) -> float | None:
        """Return how long to wait after ``attempt`` (from 1) failed; None is not to try again."""
        if attempt > self.num_retries or not isinstance(error, Exception):
            return None
        if not is_transient(error):
            return None
        hint = hinted_seconds(error)
        return hint + backoff_seconds(attempt, key) if hint <= _LONGEST_HINT_SECONDS else None


def backoff_seconds(attempt: int, key: str) -> float:
    """Return how long to wait after ``attempt`` (from 1), drawn by the call's key."""
    most = min(2.0 ** min(attempt - 1, 6), _LONGEST_BACKOFF_SECONDS)
    return Random(f"{key}/{attempt}").uniform(0.0, most)


def is_transient(error: Exception) -> bool:
    """Whether DSPy calls ``error`` retryable: busy, down, slow or cut off."""
    import dspy

    return not isinstance(error, MoaError) and dspy.is_retryable_lm_error(_as_dspy_says(error))


def is_unreadable(error: Exception) -> bool:
    """Whether a server that answered sent no answer: another kind of JSON, none, or no choice."""
    import dspy

    if isinstance(error, MoaError):
        return False
    shown = _as_dspy_says(error)
    has_succeeded = (getattr(shown, "status", None) or 200) < 400
    return type(shown) is dspy.LMProviderError and has_succeeded


def _as_dspy_says(error: Exception) -> Exception:
    """Return the error as DSPy shows it to its users."""
    from dspy.clients.engines.litellm_errors import to_lm15_error
    from dspy.clients.errors import wrap_error

    if type(error).__module__.partition(".")[0] == "litellm":
        error = to_lm15_error(error)
    shown: Exception = wrap_error(error, model="")
    return shown


def hinted_seconds(error: Exception) -> float:
    """Return the ``Retry-After`` that came with ``error``; 0 without one."""
    value = None if isinstance(error, MoaError) else _as_dspy_says(error)
    value = getattr(value, "retry_after", None)
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return max(0.0, float(value)) if is_number else 0.0  # type: ignore[arg-type]  # checked above
