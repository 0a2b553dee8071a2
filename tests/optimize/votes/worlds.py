"""Small worlds of ballots whose votes can be counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moa_dspy.optimize.votes import Ballots


def world(n_agents: int, n_rows: int, *, seed: int = 0, missing: float = 0.05) -> Ballots:
    """Return agents of different skill who pick one of four letters; the right one is 0."""
    random = np.random.default_rng(seed)
    skill = random.uniform(0.3, 0.8, (n_agents, 1))
    wrong = random.integers(1, 4, (n_agents, n_rows))
    codes = np.where(random.random((n_agents, n_rows)) < skill, 0, wrong)
    codes = np.where(random.random((n_agents, n_rows)) < missing, -1, codes)
    return Ballots(names(n_agents), codes.astype(np.int16), (codes == 0).astype(np.float64))


def names(n_agents: int) -> tuple[str, ...]:
    return tuple(f"a{i}" for i in range(n_agents))


def plain_vote(
    codes: NDArray[np.int16], scores: NDArray[Any], seats: tuple[int, ...]
) -> list[float]:
    """Return the vote's score per row, counted in plain Python; ties to the first of ``seats``."""
    out = []
    for row in range(codes.shape[1]):
        given = [int(codes[i, row]) for i in seats]
        backers = [given.count(code) if code >= 0 else 0 for code in given]
        best = backers.index(max(backers))
        out.append(float(scores[seats[best], row]) if backers[best] else 0.0)
    return out
