from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import DataError
from moa_dspy.optimize.votes._answer_model import fit_answers
from moa_dspy.optimize.votes._ballots import Ballots
from moa_dspy.optimize.votes._redraw import Urns
from moa_dspy.optimize.votes._subsets import LARGEST_POOL, Camps, count_right

Layer = tuple[str, ...]
PSEUDO_ROWS: Final = 240_000
"""Monte Carlo sd of the gains of the best votes: 0.0004; with 60,000, 0.0008 and other picks."""
SHORTLIST: Final = 10
"""The best agents whose votes are judged; 8, 10 and 12 measured the same."""


@dataclass(frozen=True, slots=True, eq=False)
class SmoothedVotes:
    """What votes score on rows whose answers are half redrawn from a model of all agents.

    Attributes:
        layers: The best agent alone first; members stand in the order of ``ranking``.
        per_row: (layers, rows), in [0, 1].
        ranking: All agents, best recorded mean first.
    """

    layers: tuple[Layer, ...]
    per_row: NDArray[np.float32]
    ranking: tuple[str, ...]

    def expected(self) -> NDArray[np.float64]:
        """Return the mean of every layer; of the greatest of them it is a flattering report."""
        means: NDArray[np.float64] = self.per_row.mean(1, dtype=np.float64)
        return means

    def gains(self, incumbent: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return by how much each layer beats ``incumbent``, and the standard error of that.

        Both are exactly 0 for the incumbent. The error is that of the sample of rows; a single
        row cannot show it, and then it is 1, the greatest gain there is.

        Raises:
            DataError: the incumbent is none of ``layers``; the order of its names is free.
        """
        sets = [frozenset(layer) for layer in self.layers]
        if len(set(incumbent)) < len(incumbent) or frozenset(incumbent) not in sets:
            raise DataError(
                f"`incumbent` must be one of the {len(sets)} smoothed votes of "
                f"{', '.join(self.ranking)}, but got {tuple(incumbent)}."
            )
        at = sets.index(frozenset(incumbent))
        gap = self.per_row.astype(np.float64) - self.per_row[at]
        if gap.shape[1] > 1:
            return gap.mean(1), gap.std(1, ddof=1) / np.sqrt(gap.shape[1])
        return gap[:, 0], (np.arange(len(sets)) != at).astype(np.float64)


def anything(layer: Layer) -> bool:
    """Admit every ``layer``."""
    return True


def smooth(
    ballots: Ballots,
    *,
    widths: range | tuple[int, int],
    seed: int,
    admits: Callable[[Layer], bool] = anything,
    pseudo: int = PSEUDO_ROWS,
    shortlist: int = SHORTLIST,
) -> SmoothedVotes:
    """Return the smoothed score of every vote among the best agents; asks nobody.

    The agents are ranked by their recorded means, a model of who answers what beside whom is
    fitted, every answer is redrawn from it with chance 1/2, and all votes are counted on the
    rows so made. Names do not matter, nor the order of the agents but where means are equal.

    Args:
        ballots: What every agent answered alone.
        widths: Of the votes; a pair is the smallest and the largest. Greater widths than there
            are agents in the shortlist are no error.
        seed: The same ballots, order and seed give the same numbers.
        admits: Whether a layer, best agent first, may be proposed. Each agent of the shortlist
            is there alone in any case.
        pseudo: How many rows to draw, rounded up to a multiple of the recorded ones.
        shortlist: How many of the best agents vote.

    Raises:
        DataError: ``pseudo`` or ``shortlist`` is out of range.
    """
    if pseudo < 1 or not 1 <= shortlist <= LARGEST_POOL:
        raise DataError(
            f"`pseudo` must be at least 1 and `shortlist` in 1 to {LARGEST_POOL}, "
            f"but got {pseudo} and {shortlist}."
        )
    ranked = ballots.ranked()
    best = ranked.agents[:shortlist]
    seats = _seats(best, widths, admits)
    n_rows = ranked.codes.shape[1]
    n_each = -(-pseudo // n_rows)
    camps = _redrawn(ranked, n_best=len(best), n_each=n_each, seed=seed)
    masks = np.array([sum(1 << i for i in seat) for seat in seats], np.uint32)
    right = count_right(camps, masks, n_rows=n_rows)
    layers = tuple(tuple(best[i] for i in seat) for seat in seats)
    return SmoothedVotes(layers, (right / n_each).astype(np.float32), ranked.agents)


def _redrawn(ranked: Ballots, *, n_best: int, n_each: int, seed: int) -> Camps:
    codes = _relabelled(ranked.codes)
    model = fit_answers(codes, ranked.scores)
    urns = Urns.of(model, codes[:n_best], ranked.scores[:n_best])
    return Camps.joined(Camps.of(*chunk) for chunk in urns.redraw(n_each=n_each, seed=seed))


def _seats(
    agents: Layer, widths: range | tuple[int, int], admits: Callable[[Layer], bool]
) -> list[tuple[int, ...]]:
    allowed = widths if isinstance(widths, range) else range(widths[0], widths[1] + 1)
    wider = (
        seats
        for width in range(2, len(agents) + 1)
        if width in allowed
        for seats in combinations(range(len(agents)), width)
    )
    admitted = (seats for seats in wider if admits(tuple(agents[i] for i in seats)))
    return [*((i,) for i in range(len(agents))), *admitted]


def _relabelled(codes: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the codes numbered from 0 in every row, as the agents in order bring them up.

    Draws then do not depend on which agent was coded first.
    """
    order = np.arange(len(codes))[:, None]
    leader = (codes[:, None] == codes).argmax(1)
    new = ((leader == order) & (codes >= 0)).cumsum(0) - 1
    label = np.take_along_axis(new, leader, 0)
    return np.where(codes >= 0, label, -1).astype(np.int16)
