"""What a judge said about many examples: preferences or grades, with what became of the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import MetricError
from moa_dspy.judges._outcome import Graded, Judgement, JudgeReport
from moa_dspy.winrate import WinRate, win_rate


@dataclass(frozen=True, slots=True)
class JudgeRun:
    """The judgements of one judge on examples, in their order."""

    judgements: tuple[Judgement, ...]

    @property
    def preferences(self) -> NDArray[np.float64]:
        """In [0, 1], 1 if the candidate is preferred; NaN for an excluded example."""
        return _vector(judgement.preference for judgement in self.judgements)

    @property
    def by_place(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Preferences when the candidate was shown first, and when second.

        Of the examples that were judged in both orders: what ``winrate.position_consistency``
        takes.
        """
        both = [one.verdicts for one in self.judgements if len(one.verdicts) == 2]
        return _vector(first for _, first in both), _vector(second for second, _ in both)

    @property
    def report(self) -> JudgeReport:
        """What became of the examples."""
        return JudgeReport.of(self.judgements)

    def win_rate(self, *, confidence: float = 0.95) -> WinRate:
        """Return the candidate's win rate over the examples that were judged.

        Raises:
            MetricError: None was.
        """
        known = self.preferences[~np.isnan(self.preferences)]
        if not known.size:
            raise MetricError(f"There is no preference to sum up: {self.report}.")
        return win_rate(known, confidence=confidence)


@dataclass(frozen=True, slots=True)
class GradeRun:
    """The grades of one system on examples, in their order."""

    graded: tuple[Graded, ...]

    @property
    def scores(self) -> NDArray[np.float64]:
        """Mean grade per example, scaled to [0, 1]; NaN for an excluded example."""
        return _vector(one.score for one in self.graded)

    @property
    def means(self) -> dict[str, float]:
        """Mean grade per turn or skill on the judge's own scale, over every grade that was read."""
        return {name: sum(grades) / len(grades) for name, grades in self._read().items()}

    @property
    def counts(self) -> dict[str, int]:
        """How many grades each of ``means`` is the mean of."""
        return {name: len(grades) for name, grades in self._read().items()}

    @property
    def report(self) -> JudgeReport:
        """What became of the examples."""
        return JudgeReport.of(self.graded)

    def _read(self) -> dict[str, list[float]]:
        read: defaultdict[str, list[float]] = defaultdict(list)
        for one in self.graded:
            for name, grade in one.grades.items():
                if grade is not None:
                    read[name].append(grade)
        return dict(sorted(read.items()))


def _vector(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
