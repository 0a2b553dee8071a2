"""Judges architectures on val, block by block; a clear loser stops early."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import dspy

from moa_dspy.architecture import Architecture
from moa_dspy.diversity import DiversityMetric
from moa_dspy.optimize.measure import Measurer
from moa_dspy.optimize.objectives import (
    DiversityObjective,
    Measured,
    Objective,
    ScoreObjective,
    WinRateObjective,
)
from moa_dspy.optimize.outcome import Outcome, scores
from moa_dspy.optimize.racing._blocks import looks
from moa_dspy.optimize.racing._dominance import Standing, is_dominated
from moa_dspy.optimize.racing._race import Race
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import Limits


class Referee:
    """Gives every architecture a record; the leader has the best score on all rows up to now.

    Args:
        measurer: Runs architectures.
        rows: The validation rows, in the order in which they are measured.
        best_single: Whom the win rate is against.
        diversity: Of the texts that a last step reads.
        limits: An architecture beyond them can be no pick, so it cannot lead, or stop another.
        objectives: Of the study: which arms stop; without any, the score decides.
        n_arms: Most architectures that race: an equal one is stopped in at most 5 % of races.
    """

    def __init__(
        self,
        measurer: Measurer,
        rows: Sequence[dspy.Example],
        *,
        best_single: str,
        diversity: DiversityMetric,
        limits: Limits | None = None,
        objectives: Sequence[Objective] = (),
        n_arms: int = 40,
    ) -> None:
        self._measurer, self._rows = measurer, tuple(rows)
        self._limits = limits or Limits()
        self._reference = scores(measurer.measure(Architecture.single(best_single), self._rows))
        self._diversity = DiversityObjective(diversity)
        self._objectives = tuple(objectives)
        self._race = Race(n_arms, max(len(looks(len(self._rows))), 1))
        self._whole: dict[str, Standing] = {}
        self.leader: TrialRecord | None = None

    def judge(self, architecture: Architecture, origin: str, *, number: int) -> TrialRecord:
        """Measure ``architecture`` until all rows are known or it is beaten beyond doubt.

        It is beaten by any architecture that was measured on all rows, stays within the limits,
        is better beyond doubt on the rows up to now and costs no more on them, in each objective
        that is minimised. With none of those, that holds for the leader or for nobody, save where
        another one won more clearly.
        """
        outcomes: tuple[Outcome, ...] = ()
        for n_rows in self._ends(architecture):
            outcomes = self._measurer.measure(architecture, self._rows[:n_rows])
            if n_rows < len(self._rows) and self._is_lost(outcomes):
                break
        record = self._record(architecture, origin, number, outcomes)
        if not record.is_stopped_early and self._limits.admit(record):
            self._admit(record, outcomes)
        return record

    def announce(self, architectures: Iterable[Architecture], *, is_urgent: bool = True) -> None:
        """Say which will be judged: a crew begins with the rows that each needs at first."""
        for architecture in architectures:
            first, *_ = self._ends(architecture)
            rows = self._rows[:first]
            self._measurer.announce([architecture], rows, is_urgent=is_urgent)

    def values(self, record: TrialRecord, objectives: Sequence[Objective]) -> list[float]:
        """Return the objectives of a judged architecture, from what was measured."""
        architecture = Architecture.parse(record.architecture)
        measured = self._measured(self._measurer.measure(architecture, self._rows[: record.rows]))
        return [
            self._diversity(measured)
            if isinstance(objective, DiversityObjective)
            else objective(measured)
            for objective in objectives
        ]

    def _ends(self, architecture: Architecture) -> list[int]:
        n = len(self._rows)
        if self._measurer.knows(architecture, self._rows):
            # Stopping saves nothing, and a single agent must stay in the choice.
            return [n]
        return [*looks(n), n]

    def _is_lost(self, outcomes: Sequence[Outcome]) -> bool:
        if not self._whole:
            return False
        arm = Standing.of(self._measured(outcomes), self._objectives)
        return any(is_dominated(arm, rival, self._race) for rival in self._whole.values())

    def _admit(self, record: TrialRecord, outcomes: Sequence[Outcome]) -> None:
        standing = Standing.of(self._measured(outcomes), self._objectives)
        self._whole[record.architecture] = standing
        if self.leader is None or record.score > self.leader.score:
            self.leader = record

    def _measured(self, outcomes: Sequence[Outcome]) -> Measured:
        return Measured(
            scores=scores(outcomes),
            reference=self._reference[: len(outcomes)],
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
        measured = self._measured(outcomes)
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
