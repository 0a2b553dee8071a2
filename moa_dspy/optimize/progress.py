"""Snapshots of a running search, for a display that shows how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from moa_dspy.calls.budget import Budget, Ledger, Spending
from moa_dspy.calls.scope import CallTable
from moa_dspy.optimize.early_facts import EarlyFacts
from moa_dspy.optimize.result import TrialRecord


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a search at one moment.

    Attributes:
        stage: ``probe``, ``single agents``, ``early facts``, ``search``, ``prompts``,
            ``random baseline`` or ``test``.
        trial: Architectures measured up to now.
        n_trials: Architectures the search will measure at most.
        current: The architecture or agent that is measured now, in text notation.
        best: The best architecture up to now, in text notation.
        best_score: Its mean score on val.
        spending: Calls made and reused, usd, seconds.
        budget: The limits they count against.
        early: Facts of the single agents, at the stage ``early facts``.
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


ShowSnapshot: TypeAlias = Callable[[Snapshot], None]
"""Takes a snapshot at every step; it must return fast and not raise."""


def silent(snapshot: Snapshot, /) -> None:
    """Show nothing."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Makes the snapshots of one search.

    Attributes:
        show_snapshot: Takes each of them.
        ledger: What the search spends from.
        n_trials: Architectures the search will measure at most.
        table: Is told the stage whose calls it counts.
    """

    show_snapshot: ShowSnapshot
    ledger: Ledger
    n_trials: int
    table: CallTable = field(default_factory=CallTable)

    def show(
        self,
        stage: str,
        *,
        current: str = "",
        trial: int = 0,
        best: TrialRecord | None = None,
        early: EarlyFacts | None = None,
    ) -> None:
        """Show where the search is; see ``Snapshot`` for the arguments."""
        self.table.stage = stage
        self.show_snapshot(
            Snapshot(
                stage=stage,
                trial=trial,
                n_trials=self.n_trials,
                current=current,
                best=best.architecture if best else None,
                best_score=best.score if best else None,
                spending=self.ledger.spending,
                budget=self.ledger.budget,
                early=early,
            )
        )
