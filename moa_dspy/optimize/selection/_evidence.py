from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.votes import Ballots, SmoothedVotes

Rows = NDArray[np.intp]
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """An architecture with its score on every row of val; NaN where it was stopped before.

    ``bonus`` is what a user's weight on diversity adds to its score.
    """

    architecture: Architecture
    scores: Scores
    calls: float
    usd: float
    bonus: float = 0.0
    is_admitted: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether it was measured on all rows."""
        return not np.isnan(self.scores).any()


class Shrink(Protocol):
    """Shrinks measured scores towards what is known of such architectures."""

    def __call__(
        self, evidence: Evidence, incumbent: Measured, measured: Sequence[Measured], /
    ) -> tuple[Sequence[float], Sequence[float]]:
        """Return the gain of each of ``measured`` over the incumbent, one of them, and its error.

        What was stopped early is in ``evidence`` only.
        """
        ...


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was measured on val, as numbers: what a choice is made from, at no further call.

    Attributes:
        singles: Score per row of each agent alone, in the pool's order.
        measured: What may be picked, and what was stopped early.
        ballots: What each agent answered alone; None where no vote is allowed or possible.
        widths: Fewest and most members of a vote.
        admits: Whether a vote of these members may be picked.
        shrink: Of architectures that are no plain vote.
        seed: Of the redrawing of answers.
        smoothed: Every vote on redrawn answers, where that was computed before.
    """

    singles: Mapping[str, Scores]
    measured: tuple[Measured, ...]
    ballots: Ballots | None
    widths: tuple[int, int]
    admits: Callable[[tuple[str, ...]], bool]
    shrink: Shrink
    seed: int
    smoothed: SmoothedVotes | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows of val."""
        return len(next(iter(self.singles.values())))

    @property
    def ranking(self) -> tuple[str, ...]:
        """Agents by their score alone, best first; the pool's order breaks ties."""
        return tuple(sorted(self.singles, key=lambda name: -round(self.singles[name].mean(), 12)))

    def take(self, rows: Rows) -> Evidence:
        """Return the evidence as if only these rows had been there."""
        return replace(
            self,
            singles={name: scores[rows] for name, scores in self.singles.items()},
            measured=tuple(replace(one, scores=one.scores[rows]) for one in self.measured),
            ballots=None if self.ballots is None else self.ballots.take(rows),
            smoothed=None,
        )
