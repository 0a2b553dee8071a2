"""Races of architectures on val rows: the order of rows, the looks, and early stopping.

One error rate holds for a whole race; with several objectives a loser is worse in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import dspy
import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.diversity import DiversityMetric
from moa_dspy.errors import StudyError
from moa_dspy.optimize.nodes import Outcome, scores
from moa_dspy.optimize.objectives import (
    DiversityObjective,
    MeasuredArchitecture,
    Objective,
    ScoreObjective,
    WinRateObjective,
)
from moa_dspy.optimize.result import TrialRecord
from moa_dspy.optimize.selection import Limits
from moa_dspy.optimize.space.programs import ProgramArchitecture
from moa_dspy.winrate import sign_flip_mid_p

N_BLOCKS = 5
"""Equal blocks, so four looks. At a fixed error of the whole race, 40 arms and 200 rows, arms that
are 5 to 55 points worse take 69 % of the rows with three blocks, 66 % with five, 66 % with ten."""
FEWEST_ROWS = 20
"""Rows below which no architecture is stopped."""


def look_points(n_rows: int) -> tuple[int, ...]:
    """Return after how many rows a race looks, ascending; the end is no look."""
    ends = (n_rows * block // N_BLOCKS for block in range(1, N_BLOCKS))
    return tuple(end for end in ends if end >= FEWEST_ROWS)


_Vector = NDArray[np.floating[Any]]
_FEWEST_SDS = 2.0
"""Standard deviations of randomly signed differences below which no arm is stopped. Only many tiny
differences beside a few large ones could pass the test below it; most tests are saved."""


@dataclass(frozen=True, slots=True)
class Race:
    """Arms enter one by one; each may be stopped at every look by any arm measured before it.

    The chance that some arm is stopped by one that is truly no better is at most ``alpha``
    over the whole race, whatever the arms have in common: there are n (n - 1) / 2 pairs of an
    arm and an earlier one, each is tested at ``n_looks`` looks, and each test gets an equal part
    of ``alpha`` (Bonferroni). Testing against the leader alone does not need less: who leads is
    chosen from the same data. The test is the paired sign-flip test with mid-p values, which may
    exceed its level a little; the sum does not (simulated: 1 to 4 % of 2,000 races at 5 %).

    Args:
        n_arms: Most arms that will ever race, those that may not be stopped included.
        n_looks: Looks at each arm before its last example; stopping at the last saves nothing.
        alpha: Chance of one wrong stop or more.

    Raises:
        StudyError: If a number is below 1, or ``alpha`` not in (0, 1).
    """

    n_arms: int
    n_looks: int
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if self.n_arms < 1 or self.n_looks < 1:
            raise StudyError(
                "`n_arms` and `n_looks` must be at least 1, but got "
                f"{self.n_arms} and {self.n_looks}."
            )
        if not 0 < self.alpha < 1:
            raise StudyError(f"`alpha` must be in (0, 1), but got {self.alpha}.")

    @property
    def level(self) -> float:
        """The level of one test."""
        n_pairs = max(self.n_arms * (self.n_arms - 1) // 2, 1)
        return self.alpha / (self.n_looks * n_pairs)

    def is_lost(self, scores: Sequence[float] | _Vector, other: Sequence[float] | _Vector) -> bool:
        """Whether ``other`` is better than ``scores`` on the same examples beyond doubt.

        Raises:
            StudyError: If the lengths differ.
        """
        if len(scores) != len(other):
            raise StudyError(
                f"Both arms must be scored on the same examples, but have {len(scores)} and "
                f"{len(other)}."
            )
        gaps = np.asarray(other, dtype=np.float64) - np.asarray(scores, dtype=np.float64)
        ahead = float(gaps.sum())
        if ahead <= _FEWEST_SDS * float(np.sqrt((gaps**2).sum())):
            return False
        return sign_flip_mid_p(gaps) <= self.level


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """One arm, row by row: what is to be high, and what is to be low.

    Attributes:
        gains: Of each objective that is maximised, diversity left out.
        costs: Of each objective that is minimised.
    """

    gains: Mapping[str, _Vector]
    costs: Mapping[str, _Vector]

    @classmethod
    def of(cls, measured: MeasuredArchitecture, objectives: Sequence[Objective]) -> Standing:
        """Return the rows of each objective; the score where nothing else is maximised.

        Diversity neither saves an arm nor stops it: it is no end in itself.
        """
        counted = [one for one in objectives if not isinstance(one, DiversityObjective)]
        high = [one for one in counted if one.direction == "maximize"] or [ScoreObjective()]
        low = [one for one in counted if one.direction == "minimize"]
        return cls(_rows(high, measured), _rows(low, measured))


def is_dominated(arm: Standing, other: Standing, race: Race) -> bool:
    """Whether ``other`` is better beyond doubt in every gain, and no worse in any cost.

    Both are compared on the arm's rows, the first of the other's. Costs are compared as they
    were measured. An arm that wins anything, or is cheaper in anything, goes on.
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
"""Takes the metric of the first rows, one by one, and the values of the objectives on them."""


class MeasuresArchitectures(Protocol):
    """Measures architectures on rows; see ``Evaluator``."""

    def measure(
        self, architecture: Architecture, rows: Sequence[dspy.Example]
    ) -> tuple[Outcome, ...]:
        """Return one outcome per row, in the rows' order."""
        ...

    def knows(self, architecture: Architecture, rows: Sequence[dspy.Example]) -> bool:
        """Whether ``measure`` of these rows would ask nothing."""
        ...

    def announce(
        self,
        architectures: Iterable[Architecture],
        rows: Sequence[dspy.Example],
        *,
        is_urgent: bool = True,
    ) -> None:
        """Have workers begin with these rows."""
        ...


class TrialJudge:
    """Gives every architecture a record; the leader has the best score on all rows up to now.

    Args:
        evaluator: Runs architectures.
        rows: The validation rows, in the order in which they are measured.
        best_single: Whom the win rate is against.
        diversity: Of the texts that a last step reads.
        limits: An architecture beyond them can be no pick, so it cannot lead, or stop another.
        objectives: Of the study: which arms stop; without any, the score decides.
        n_arms: Most architectures that race: an equal one is stopped in at most 5 % of races.
        is_win_rate: Whether scores are a judge's preferences, and win rates as they are.
    """

    def __init__(
        self,
        evaluator: MeasuresArchitectures,
        rows: Sequence[dspy.Example],
        *,
        best_single: str,
        diversity: DiversityMetric,
        limits: Limits | None = None,
        objectives: Sequence[Objective] = (),
        n_arms: int = 40,
        is_win_rate: bool = False,
    ) -> None:
        self._evaluator, self._rows = evaluator, tuple(rows)
        self._limits = limits or Limits()
        single = Architecture.single(best_single)
        self._reference = None if is_win_rate else scores(evaluator.measure(single, self._rows))
        self._diversity = DiversityObjective(diversity)
        self._objectives = tuple(objectives)
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
        is better beyond doubt on the rows up to now and costs no more on them, in each objective
        that is minimised. With none of those, that holds for the leader or for none, save where
        another one won more clearly.

        Args:
            architecture: To measure.
            origin: Of its record.
            number: Of its record.
            report: Is called after each block of rows.
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
            # Stopping saves nothing, and a single agent must stay in the choice.
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


class PlayedRace:
    """Made-up races: a mixture is taken to answer as a random one of its seats, row by row.

    Args:
        singles: Scores of the single agents, row by row.
        n_trials: Of the study; the random baseline has as many.
        must_cost_less: Whether costs are objectives: then a mixture loses to a single agent only.
        seeds: Of the answers.
    """

    def __init__(
        self,
        singles: Mapping[str, _Vector],
        *,
        n_trials: int,
        must_cost_less: bool = False,
        seeds: tuple[int, int] = (0, 0),
    ) -> None:
        self._n_rows = len(next(iter(singles.values())))
        self._looks = look_points(self._n_rows)
        self._race = Race(2 * n_trials, max(len(self._looks), 1))
        self._singles, self._must_cost_less = singles, must_cost_less
        self._whole: dict[Architecture, _Vector] = {}
        self._rows: dict[Architecture, int] = {}
        self._rng = np.random.default_rng([seed % 2**32 for seed in seeds])
        for name in singles:
            self._admit(Architecture.single(name))

    def _admit(self, key: Architecture) -> _Vector:
        """Give an architecture its scores, as one that is measured on all rows."""
        one = key.parts[-1][1] if isinstance(key, ProgramArchitecture) else key
        seats = [name for layer in (*one.layers[-1:], *one.last_rounds) for name in layer]
        table = np.array([self._singles[name] for name in seats])
        found = table[self._rng.integers(len(seats), size=table.shape[1]), range(table.shape[1])]
        self._whole[key], self._rows[key] = found, self._n_rows
        return found

    def rows_of(self, one: Architecture) -> int:
        """Return on how many rows an architecture is measured."""
        if one not in self._rows:
            rival, found = self._rival(), self._admit(one)
            for look in self._looks:
                if self._race.is_lost(found[:look], rival[:look]):
                    del self._whole[one]
                    self._rows[one] = look
                    break
        return self._rows[one]

    def _rival(self) -> _Vector:
        among = {o: f for o, f in self._whole.items() if not (self._must_cost_less and o.layers)}
        return max(among.values(), key=lambda found: float(found.mean()))

    def best(self, among: Iterable[Architecture] | None = None) -> Architecture | None:
        """Return the best of these that were measured on all rows; None is of all."""
        names = self._whole if among is None else [one for one in among if one in self._whole]
        return max(names, key=lambda one: float(self._whole[one].mean()), default=None)
