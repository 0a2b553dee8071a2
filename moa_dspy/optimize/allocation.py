"""Which single agents are worth more rows, when not every agent can have all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import StudyError

Matrix = NDArray[np.float64]
Ask = Callable[[str, Sequence[int]], Sequence[float]]
"""Measures an agent on the rows at these places; returns its scores there."""

FIRST_SHARE = 1 / 3
"""Part of the rows that all agents get before any falls behind."""
N_BLOCKS = 20
"""Blocks of all rows; after each block the places are given out anew."""
_SWEEPS = 30


@dataclass(frozen=True, slots=True)
class Allocation:
    """Gives each block of rows to the agents whose place is least clear, within a share of cells.

    Two places matter to a vote of the best ``n_best`` agents: who is first, since that agent
    decides ties, and who is the last of them. An agent is asked the sooner the nearer its mean is
    to the middle between the first two, or between the last member and the next agent, counted in
    its own standard errors. (Best-arm identification by gaps: Gabillon et al., NeurIPS 2011;
    Bubeck, Wang & Viswanathan, ICML 2013.) The leader comes first of all.

    Args:
        share: Of agents x rows, in (0, 1], that may be measured.
        n_best: Most members of a vote.

    Raises:
        StudyError: If ``share`` is too small for the rows that all agents get, or above 1.
    """

    share: float
    n_best: int = 7

    def __post_init__(self) -> None:
        if not FIRST_SHARE < self.share <= 1 or self.n_best < 1:
            raise StudyError(
                f"`share` must be above {FIRST_SHARE:.2f} and at most 1 and `n_best` at least 1, "
                f"but got {self.share} and {self.n_best}."
            )

    def run(self, agents: Sequence[str], n_rows: int, ask: Ask) -> dict[str, dict[int, float]]:
        """Ask until the cells are spent; return the score of each agent by place of row."""
        scores = np.full((len(agents), n_rows), np.nan)
        for block, n_cells in self._blocks(len(agents), n_rows):
            left = n_cells
            for agent in contested(scores, n_best=self.n_best):
                if places := block[: max(left, 0)]:
                    scores[agent, list(places)] = ask(agents[agent], places)
                left -= len(block)
        return {
            name: {int(place): float(row[place]) for place in np.flatnonzero(~np.isnan(row))}
            for name, row in zip(agents, scores, strict=True)
        }

    def _blocks(self, n_agents: int, n_rows: int) -> Iterator[tuple[range, int]]:
        """Yield places, and how many cells of them may be measured."""
        start = n_rows if self.share == 1 else ceil(FIRST_SHARE * n_rows)
        yield range(start), n_agents * start
        left, size = int(self.share * n_agents * n_rows) - n_agents * start, ceil(n_rows / N_BLOCKS)
        for first in range(start, n_rows, size):
            block = range(first, min(first + size, n_rows))
            n_cells = max(left, 0) * len(block) // (n_rows - first)
            yield block, n_cells
            left -= n_cells


def contested(scores: Matrix, *, n_best: int) -> list[int]:
    """Return the agents in the order in which more rows tell most; the leader first.

    Args:
        scores: (agents, rows), NaN where not measured; without any score the order is that given.
        n_best: Agents whose place among the best matters.
    """
    counts = (~np.isnan(scores)).sum(axis=1)
    if len(scores) == 1 or not counts.any():
        return list(range(len(scores)))
    means = adjusted_means(scores)
    order = np.argsort(-means, kind="stable")
    ranked = means[order]
    last = min(n_best, len(scores) - 1)
    middles = [(ranked[k - 1] + ranked[k]) / 2 for k in (1, last)]
    gaps = np.min([np.abs(means - middle) for middle in middles], axis=0)
    unclear = gaps * np.sqrt(counts)
    unclear[order[0]] = -1
    return [int(agent) for agent in np.argsort(unclear, kind="stable")]


def adjusted_means(scores: Matrix) -> Matrix:
    """Return the agents' means as if all had had the same rows: harder rows are allowed for.

    Least squares of score = agent + row on the measured cells, by turns.
    """
    seen = ~np.isnan(scores)
    cells = np.where(seen, scores, 0.0)
    per_agent, per_row = np.maximum(seen.sum(1), 1), np.maximum(seen.sum(0), 1)
    agents, rows = np.zeros(len(scores)), np.zeros(scores.shape[1])
    for _ in range(_SWEEPS):
        rows = (cells - agents[:, None] * seen).sum(0) / per_row
        agents = (cells - rows * seen).sum(1) / per_agent
    return np.asarray(np.round(agents + rows[seen.any(0)].mean(), 12))


def ranking(found: Mapping[str, Mapping[int, float]], n_rows: int) -> tuple[str, ...]:
    """Return the agents of ``Allocation.run``, best adjusted mean first."""
    scores = np.full((len(found), n_rows), np.nan)
    for row, by_place in zip(scores, found.values(), strict=True):
        row[list(by_place)] = list(by_place.values())
    order = np.argsort(-adjusted_means(scores), kind="stable")
    names = list(found)
    return tuple(names[agent] for agent in order)
