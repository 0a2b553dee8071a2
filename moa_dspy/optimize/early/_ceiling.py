"""How far one vote of recorded answers could get at best, whichever agents vote."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations, islice
from math import comb
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moa_dspy.optimize.votes import Ballots

MOST_CELLS: Final = 40_000_000
"""Sets of agents x answers up to which every set is tried: a third of a second."""
_AT_ONCE = 512  # a block then stays in the cache

Floats = NDArray[np.float64]


def vote_ceiling(ballots: Ballots, *, max_width: int) -> float:
    """Return what no plurality vote of at most ``max_width`` of the agents beats on these rows.

    In [0, 1]. Every set of agents is tried, with ties decided for the better answer; of
    many agents, it is a bound that holds for every set, which may be above the best set.

    Args:
        ballots: What each agent answered alone.
        max_width: Most members of a vote, at least 1; a vote of one is that agent.
    """
    width = min(max_width, len(ballots.agents))
    members, values, starts = _answers(ballots)
    if not starts.size:
        return 0.0
    n_sets = sum(comb(len(ballots.agents), k) for k in range(1, width + 1))
    n_rows = ballots.codes.shape[1]
    if n_sets * values.size > MOST_CELLS:
        return _best_cover(np.where(ballots.codes >= 0, ballots.scores, 0.0), width)
    best = 0.0
    sets = _sets(len(ballots.agents), width)
    while block := list(islice(sets, _AT_ONCE)):
        votes = np.zeros((len(ballots.agents), len(block)), np.float32)
        for column, seats in enumerate(block):
            votes[list(seats), column] = 1
        # Twice the votes, plus the score: of the answers with most votes, the best.
        standing = members @ votes
        standing *= 2
        standing += values[:, None]
        winner = np.maximum.reduceat(standing, starts, axis=0)
        won = np.where(winner >= 2, np.mod(winner, 2), 0)
        best = max(best, float(won.sum(0, dtype=np.float64).max()) / n_rows)
    return best


def _answers(
    ballots: Ballots,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.intp]]:
    """Return who gave each answer, (answers, agents), what it scores, and where rows begin.

    Rows on which no answer scores are left out: every vote of them scores 0.
    """
    members: list[NDArray[np.bool_]] = []
    values: list[float] = []
    starts: list[int] = []
    for codes, scores in zip(ballots.codes.T, ballots.scores.T, strict=True):
        answers = [codes == code for code in np.unique(codes[codes >= 0])]
        worth = [float(scores[who].max()) for who in answers]
        if max(worth, default=0.0) > 0:
            starts.append(len(values))
            members += answers
            values += worth
    table = np.array(members, np.float32).reshape(len(values), len(ballots.agents))
    return table, np.array(values, np.float32), np.array(starts, np.intp)


def _best_cover(scores: Floats, width: int) -> float:
    """Bound the mean best score within any ``width`` agents, (agents, rows).

    The mean best score of a set is submodular, so that no set beats one built greedily by
    more than the ``width`` largest gains that single agents would still add to it
    (Nemhauser, Wolsey & Fisher 1978).
    """
    covered = np.zeros(scores.shape[1])
    bound = float(scores.max(0).mean())
    for _ in range(width):
        gains = np.sort((np.maximum(scores, covered) - covered).mean(1))
        bound = min(bound, float(covered.mean() + gains[-width:].sum()))
        covered = np.maximum(
            covered, scores[(np.maximum(scores, covered) - covered).mean(1).argmax()]
        )
    return bound


def _sets(n: int, width: int) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(range(n), k) for k in range(1, width + 1))
