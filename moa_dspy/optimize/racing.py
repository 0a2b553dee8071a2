"""Trials as races on val rows: architectures are measured block by block, and losers are stopped.

With several objectives a loser is worse in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import dspy
import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.diversity import DiversityMetric
from moa_dspy.optimize.evaluate import Evaluator
from moa_dspy.optimize.metric import Outcome, scores
from moa_dspy.optimize.objectives import (
    DiversityObjective,
    MeasuredArchitecture,
    Objective,
    ScoreObjective,
    WinRateObjective,
)
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import Limits
from moa_dspy.winrate.tests import Race, look_points

_Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """The results of one arm, an architecture in the race, on each row.

    Attributes:
        gains: By name of each objective that is maximised, diversity left out.
        costs: By name of each objective that is minimised.
    """

    gains: Mapping[str, _Vector]
    costs: Mapping[str, _Vector]

    @classmethod
    def of(cls, measured: MeasuredArchitecture, objectives: Sequence[Objective]) -> Standing:
        """Return the values of each objective per row; the score where nothing else is maximised.

        Diversity neither saves an arm nor stops it, as it only guides the search.
        """
        counted = [one for one in objectives if not isinstance(one, DiversityObjective)]
        high = [one for one in counted if one.direction == "maximize"] or [ScoreObjective()]
        low = [one for one in counted if one.direction == "minimize"]
        return cls(_rows(high, measured), _rows(low, measured))


def is_dominated(arm: Standing, other: Standing, race: Race) -> bool:
    """True if ``other`` is better beyond doubt in every gain, and no worse in any cost.

    Both are compared on the rows of ``arm``, which are the first of those of ``other``. Costs are
    compared as they were measured. An arm that is better, or cheaper, in anything goes on.
    """
    for name, costs in arm.costs.items():
        if other.costs[name][: len(costs)].sum() > costs.sum():
            return False
    return all(
        race.is_lost(gains, other.gains[name][: len(gains)]) for name, gains in arm.gains.items()
    )


def _rows(objectives: Sequence[Objective], measured: MeasuredArchitecture) -> dict[str, _Vector]:
    return {type(o).__name__: np.array(o.rows(measured), np.float64) for o in objectives}


ReportBlock: TypeAlias = Callable[[list[float], list[float]], None]
"""Takes the metric on each of the first rows, and the values of the objectives on them all."""


class TrialJudge:
    """Measures architectures and makes their records; the leader has the best score on all rows.

    Args:
        evaluator: Runs architectures.
        rows: The validation rows, in the order in which they are measured.
        best_single: The agent to which the win rate compares.
        diversity: Measures the texts that a last step reads.
        limits: An architecture beyond them cannot be picked, so it neither leads nor stops another.
        objectives: Of the study, by which arms are stopped; without any, the score decides.
        n_arms: Most architectures in the race: an arm as good as the others is stopped in at most
            5 % of races.
        is_win_rate: Whether scores are a judge's preferences, and so win rates already.
        unknown_costs: Names the costs of agents that are unknown, as ``Pool.unknown_costs`` does.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        rows: Sequence[dspy.Example],
        *,
        best_single: str,
        diversity: DiversityMetric,
        limits: Limits | None = None,
        objectives: Sequence[Objective] = (),
        n_arms: int = 40,
        is_win_rate: bool = False,
        unknown_costs: Callable[[Iterable[str]], frozenset[str]] = lambda _: frozenset(),
    ) -> None:
        self._evaluator, self._rows = evaluator, tuple(rows)
        self._limits = limits or Limits()
        single = Architecture.single(best_single)
        self._reference = None if is_win_rate else scores(evaluator.measure(single, self._rows))
        self._diversity = DiversityObjective(diversity)
        self._objectives, self._unknown_costs = tuple(objectives), unknown_costs
        self._race = Race(n_arms, max(len(look_points(len(self._rows))), 1))
        self._whole: dict[str, Standing] = {}
        self.leader: TrialRecord | None = None

    @property
    def n_rows(self) -> int:
        """Rows on which an architecture is measured at most."""
        return len(self._rows)

    def judge(
        self,
        architecture: Architecture,
        origin: str,
        *,
        number: int,
        report: ReportBlock | None = None,
    ) -> TrialRecord:
        """Measure ``architecture`` until all rows are known or it is beaten beyond doubt.

        It is beaten by any architecture that was measured on all rows, stays within the limits,
        is better beyond doubt on the rows up to now, and costs no more on them in each objective
        that is minimised. Where no cost is minimised this is nearly always the leader.

        Args:
            architecture: To measure.
            origin: Of its record.
            number: Of its record.
            report: Called after each block of rows.
        """
        outcomes: tuple[Outcome, ...] = ()
        for n_rows in self._ends(architecture):
            outcomes = self._evaluator.measure(architecture, self._rows[:n_rows])
            if report is not None:
                report(scores(outcomes), self._values(outcomes))
            if n_rows < len(self._rows) and self._is_lost(outcomes):
                break
        record = self._record(architecture, origin, number, outcomes)
        if not record.is_stopped_early and self._limits.admit(record):
            self._admit(record, outcomes)
        return record

    def announce(self, architectures: Iterable[Architecture], *, is_urgent: bool = True) -> None:
        """Announce the arms to be judged: workers begin with the rows that each needs first."""
        for architecture in architectures:
            first, *_ = self._ends(architecture)
            rows = self._rows[:first]
            self._evaluator.announce([architecture], rows, is_urgent=is_urgent)

    def _values(self, outcomes: Sequence[Outcome]) -> list[float]:
        measured = self._measured(outcomes)
        return [
            self._diversity(measured)
            if isinstance(objective, DiversityObjective)
            else objective(measured)
            for objective in self._objectives
        ]

    def _ends(self, architecture: Architecture) -> list[int]:
        n = len(self._rows)
        if self._evaluator.knows(architecture, self._rows):
            # Stopping would save nothing, and single agents must remain options of the pick.
            return [n]
        return [*look_points(n), n]

    def _is_lost(self, outcomes: Sequence[Outcome]) -> bool:
        if not self._whole:
            return False
        arm = Standing.of(self._measured(outcomes), self._objectives)
        return any(is_dominated(arm, other, self._race) for other in self._whole.values())

    def _admit(self, record: TrialRecord, outcomes: Sequence[Outcome]) -> None:
        standing = Standing.of(self._measured(outcomes), self._objectives)
        self._whole[record.architecture] = standing
        if self.leader is None or record.score > self.leader.score:
            self.leader = record

    def _measured(self, outcomes: Sequence[Outcome]) -> MeasuredArchitecture:
        return MeasuredArchitecture(
            scores=scores(outcomes),
            reference=None if self._reference is None else self._reference[: len(outcomes)],
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
        unknown = self._unknown_costs(architecture.agents)
        return TrialRecord(
            number=number,
            architecture=str(architecture),
            origin=origin,
            win_rate=WinRateObjective()(measured),
            score=ScoreObjective()(measured),
            diversity=self._diversity(measured),
            calls=sum(measured.calls) / n,
            usd=None if "usd" in unknown else sum(measured.usd) / n,
            seconds=None if "seconds" in unknown else sum(measured.seconds) / n,
            rows=n,
            is_stopped_early=n < len(self._rows),
        )
