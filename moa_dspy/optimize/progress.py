"""Snapshots of a running search, for a display that shows how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from moa_dspy.architecture import Architecture
from moa_dspy.calls.budget import Budget, Ledger, Spending
from moa_dspy.calls.scope import CallTable
from moa_dspy.optimize.early_facts import EarlyFacts
from moa_dspy.optimize.result import TrialRecord

STAGES: Final = (
    "probe",
    "single agents",
    "early facts",
    "search",
    "prompts",
    "random baseline",
    "test",
)
"""The stages of a search, in order; tuning of prompts and search may take turns."""
N_LEADERS: Final = 10
"""Architectures of a leaderboard."""


@dataclass(frozen=True, slots=True)
class Leader:
    """An architecture of the leaderboard: its mean score on val, and what a question costs."""

    architecture: str
    score: float
    calls: float
    usd: float
    rows: int

    @classmethod
    def of(cls, record: TrialRecord) -> Leader:
        """Return the line of a measured architecture."""
        return cls(record.architecture, record.score, record.calls, record.usd, record.rows)


@dataclass(frozen=True, slots=True)
class StageWork:
    """The work of a stage or of its current step, as far as it is known.

    Attributes:
        total: Units of the stage: trials where ``unit`` is ``trials``, else answers that are
            scored; None where it is not known.
        unit: ``trials`` or ``answers``.
        rows: Questions of the current trial.
        calls: Calls that an answer of the current architecture takes.
    """

    total: float | None = None
    unit: str = "answers"
    rows: int = 0
    calls: float = 1.0

    @classmethod
    def of_unknown(
        cls,
        knows: Callable[[Architecture, Sequence[Any]], bool],
        wanted: Iterable[tuple[Iterable[Architecture], Sequence[Any]]],
    ) -> StageWork:
        """Return the answers of architectures to rows that are not known yet."""
        parts = ((one, row) for every, rows in wanted for one in every for row in rows)
        return cls(sum(not knows(one, [row]) for one, row in parts))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a search at one moment.

    Attributes:
        stage: One of ``STAGES``, or what a process without the lead of a study does.
        trial: Architectures measured up to now.
        n_trials: Architectures the search will measure at most.
        current: The architecture or agent that is measured now, in text notation.
        best: The best architecture up to now, in text notation.
        best_score: Its mean score on val.
        spending: Calls made and reused, usd, seconds.
        budget: The limits they count against.
        early: Facts of the single agents, at the stage ``early facts``.
        leaders: The best on all rows of val up to now, best first.
        last: The trial that was finished before this moment.
        work: Of the stage.
        table: The calls of this process, counted as they end: it moves between snapshots.
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
    leaders: tuple[Leader, ...] = ()
    last: TrialRecord | None = None
    work: StageWork = StageWork()
    table: CallTable = field(default_factory=CallTable, compare=False)


ShowSnapshot: TypeAlias = Callable[[Snapshot], None]
"""Takes a snapshot at every step; it must return fast and not raise."""


def silent(snapshot: Snapshot, /) -> None:
    """Show nothing."""


@dataclass(slots=True)
class Progress:
    """Makes the snapshots of one search.

    Attributes:
        show_snapshot: Takes each of them.
        ledger: What the search spends from.
        n_trials: Architectures the search will measure at most.
        table: Is told the stage whose calls it counts.
        admits: Whether a trial may be picked, and so may lead.
        leaders: The leaderboard, best first.
    """

    show_snapshot: ShowSnapshot
    ledger: Ledger
    n_trials: int
    table: CallTable = field(default_factory=CallTable)
    admits: Callable[[TrialRecord], bool] = lambda record: True
    leaders: tuple[Leader, ...] = ()

    def show(
        self,
        stage: str,
        *,
        current: str = "",
        trial: int = 0,
        best: TrialRecord | None = None,
        early: EarlyFacts | None = None,
        last: TrialRecord | None = None,
        work: StageWork | None = None,
    ) -> None:
        """Show where the search is; see ``Snapshot`` for the arguments."""
        self.table.stage = stage
        if self.show_snapshot is silent:
            return
        if last is not None and not last.is_stopped_early and self.admits(last):
            self.lead(Leader.of(last))
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
                leaders=self.leaders,
                last=last,
                work=work or StageWork(),
                table=self.table,
            )
        )

    def lead(self, leader: Leader) -> None:
        """Put an architecture on the leaderboard, in the place of what was known of it before."""
        others = [one for one in self.leaders if one.architecture != leader.architecture]
        # A stable order: of equals the earlier one leads.
        ranked = sorted((*others, leader), key=lambda one: -one.score)
        self.leaders = tuple(ranked[:N_LEADERS])
