"""What the best choice could reach with half of all questions labelled."""

from __future__ import annotations

from typing import Final

import numpy as np

from tests.bench.quality._baselines import WIDEST
from tests.bench.quality._folder import Answers
from tests.bench.quality._votes import MOST, every_vote, ranked

N_HALVINGS: Final = 5


def ceiling(pool: Answers) -> float:
    """Return the score, on one half, of the vote that is best on the other; of the best size.

    Ties go by the scores on all questions. The mean of five halvings, each used both ways:
    what one half is easier, the other is harder.
    """
    best_first = pool.of(ranked(pool)[:WIDEST])
    rng = np.random.default_rng(0)
    sizes = range(1, min(MOST, best_first.n_models) + 1)
    found = []
    for _ in range(N_HALVINGS):
        order = rng.permutation(pool.n_questions)
        half = pool.n_questions // 2
        half_votes, other = (
            every_vote(best_first.at(part)) for part in (order[:half], order[half:])
        )
        for seen, truth in ((half_votes, other), (other, half_votes)):
            bests = [np.where(seen.sizes == size, seen.means, -1.0).argmax() for size in sizes]
            found.append(truth.means[bests])
    return float(np.mean(found, axis=0).max())
