from __future__ import annotations

from dataclasses import dataclass

from moa_dspy.optimize.result import TrialRecord


@dataclass(frozen=True, slots=True)
class Limits:
    """What a question may cost at most; None is no limit. A pick never goes beyond."""

    calls: float | None = None
    usd: float | None = None
    seconds: float | None = None

    def admit(self, trial: TrialRecord) -> bool:
        """Whether the trial stays within every limit."""
        return self.allow(calls=trial.calls, usd=trial.usd, seconds=trial.seconds)

    def allow(self, *, calls: float, usd: float, seconds: float) -> bool:
        """Whether these costs of a question stay within every limit."""
        pairs = ((self.calls, calls), (self.usd, usd), (self.seconds, seconds))
        return all(limit is None or value <= limit for limit, value in pairs)
