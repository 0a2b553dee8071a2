"""The test that stops losers of a race on val rows, and races that are played with made-up scores.

One error rate holds for a whole race.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.errors import StudyError
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
        """True if ``other`` is better than ``scores`` on the same examples beyond doubt.

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
