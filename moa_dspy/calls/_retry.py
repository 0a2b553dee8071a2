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
        failure = _as_dspy_says(error)
        if failure is None:
            return None
        most = min(2.0 ** min(attempt - 1, 6), _LONGEST_BACKOFF_SECONDS)
        jitter = Random(f"{key}/{attempt}").uniform(0.0, most)
        hint = _hint(failure)
        return hint + jitter if hint <= _LONGEST_HINT_SECONDS else None


def _as_dspy_says(error: Exception) -> Exception | None:
    """Return the error as DSPy shows it to its users if it calls that retryable, else None."""
    if isinstance(error, MoaError):
        return None
    import dspy
    from dspy.clients.engines.litellm_errors import to_lm15_error
    from dspy.clients.errors import wrap_error

    if type(error).__module__.partition(".")[0] == "litellm":
        error = to_lm15_error(error)
    shown = wrap_error(error, model="")
    return shown if dspy.is_retryable_lm_error(shown) else None


def _hint(error: Exception) -> float:
    value = getattr(error, "retry_after", None)
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return max(0.0, float(value)) if is_number else 0.0  # type: ignore[arg-type]  # checked above
