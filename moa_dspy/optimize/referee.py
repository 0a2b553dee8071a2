"""Judges architectures on val, block by block; a clear loser stops early."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.diversity import DiversityMetric
from moa_dspy.optimize.measure import Measurer, Outcome, scores
from moa_dspy.optimize.objectives import (
    DiversityObjective,
    Measured,
    Objective,
    ScoreObjective,
    WinRateObjective,
)
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import Limits
from moa_dspy.winrate import paired_interval

FIRST_LOOKS = (1 / 3, 2 / 3)
"""Shares of the rows after which a trial may stop; few looks, since each one can err."""
LOOK_CONFIDENCE = 0.98
"""Two looks, one-sided 1 % each: a trial as good as the leader stops wrongly in at most 2 %."""
FEWEST_ROWS = 20
"""Rows below which nobody is stopped: intervals of so few say nothing."""


class Referee:
    """Gives every architecture a record; the leader has the best score on all rows up to now.

    Args:
        measurer: Runs architectures.
        rows: The validation rows.
        best_single: Whom the win rate is against.
        diversity: Of the texts that a last step reads.
        limits: An architecture beyond them can be no pick, so it cannot lead either.
    """

    def __init__(
        self,
        measurer: Measurer,
        rows: Sequence[dspy.Example],
        *,
        best_single: str,
        diversity: DiversityMetric,
        limits: Limits | None = None,
    ) -> None:
        self._measurer, self._rows = measurer, tuple(rows)
        self._limits = limits or Limits()
        self._reference = scores(measurer.measure(Architecture.single(best_single), self._rows))
        self._diversity = DiversityObjective(diversity)
        self.leader: TrialRecord | None = None

    def judge(self, architecture: Architecture, origin: str, *, number: int) -> TrialRecord:
        """Measure ``architecture`` until all rows are known or the leader is out of reach."""
        outcomes: tuple[Outcome, ...] = ()
        for n_rows in self._looks(architecture):
            outcomes = self._measurer.measure(architecture, self._rows[:n_rows])
            if n_rows < len(self._rows) and self._is_lost(outcomes):
                break
        record = self._record(architecture, origin, number, outcomes)
        if self._leads(record):
            self.leader = record
        return record

    def announce(self, architectures: Iterable[Architecture], *, is_urgent: bool = True) -> None:
        """Say which will be judged: a crew begins with the rows that each needs at first."""
        for architecture in architectures:
            first, *_ = self._looks(architecture)
            rows = self._rows[:first]
            self._measurer.announce([architecture], rows, is_urgent=is_urgent)

    def values(self, record: TrialRecord, objectives: Sequence[Objective]) -> list[float]:
        """Return the objectives of a judged architecture, from what was measured."""
        measured = self._measured(Architecture.parse(record.architecture), record.rows)
        return [
            self._diversity(measured)
            if isinstance(objective, DiversityObjective)
            else objective(measured)
            for objective in objectives
        ]

    def _looks(self, architecture: Architecture) -> list[int]:
        n = len(self._rows)
        if self._measurer.knows(architecture, self._rows):
            # Stopping saves nothing, and a single agent must stay in the choice.
            return [n]
        return [*(k for share in FIRST_LOOKS if (k := int(n * share)) >= FEWEST_ROWS), n]

    def _is_lost(self, outcomes: Sequence[Outcome]) -> bool:
        if self.leader is None:
            return False
        rows = self._rows[: len(outcomes)]
        leader = self._measurer.measure(Architecture.parse(self.leader.architecture), rows)
        gap = paired_interval(scores(outcomes), scores(leader), confidence=LOOK_CONFIDENCE)
        return gap.high < 0

    def _leads(self, record: TrialRecord) -> bool:
        if record.is_stopped_early or not self._limits.admit(record):
            return False
        return self.leader is None or record.score > self.leader.score

    def _measured(self, architecture: Architecture, n_rows: int) -> Measured:
        outcomes = self._measurer.measure(architecture, self._rows[:n_rows])
        return Measured(
            scores=scores(outcomes),
            reference=self._reference[:n_rows],
            layers=[outcome.layer for outcome in outcomes],
            calls=[outcome.calls for outcome in outcomes],
            usd=[outcome.usd for outcome in outcomes],
            seconds=[outcome.seconds for outcome in outcomes],
        )

    def _record(
        self,
        architecture: Architecture,
        origin: str,
        number: int,
        outcomes: Sequence[Outcome],
    ) -> TrialRecord:
        n = len(outcomes)
        measured = self._measured(architecture, n)
        return TrialRecord(
            number=number,
            architecture=str(architecture),
            origin=origin,
            win_rate=WinRateObjective()(measured),
            score=ScoreObjective()(measured),
            diversity=self._diversity(measured),
            calls=sum(measured.calls) / n,
            usd=sum(measured.usd) / n,
            seconds=sum(measured.seconds) / n,
            rows=n,
            is_stopped_early=n < len(self._rows),
        )
