"""What a running study tells whoever watches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from moa_dspy.calls import Budget, Spending
from moa_dspy.optimize.early import EarlyFacts


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a study at one moment.

    Attributes:
        stage: ``probe``, ``single agents``, ``early facts``, ``search``, ``random baseline``
            or ``test``.
        trial: Architectures measured up to now.
        n_trials: Architectures the search will measure at most.
        current: What is being measured, in text notation.
        best: The best architecture up to now, in text notation.
        best_score: Its mean score on val.
        spending: Calls made and reused, usd, seconds.
        budget: The limits they count against.
        early: What the single agents tell, at the stage ``early facts``.
    """

    stage: str
    trial: int
    n_trials: int
    current: str
    best: str | None
    best_score: float | None
    spending: Spending
    budget: Budget
    early: EarlyFacts | None = None


class Watcher(Protocol):
    """Is shown a snapshot at every step; must return fast and not raise."""

    def __call__(self, snapshot: Snapshot, /) -> None:
        """Show it."""
        ...


def silent(snapshot: Snapshot, /) -> None:
    """Show nothing."""
