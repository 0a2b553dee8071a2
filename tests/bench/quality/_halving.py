"""Successive halving: as many cells as everybody, but half as many labels again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.bench.quality._baselines import Dev, exhaustive, top
from tests.bench.quality._folder import Answers, Indices
from tests.bench.quality._votes import Weights


@dataclass(frozen=True, slots=True)
class Halved:
    """What is known of the finalists.

    Attributes:
        dev: Their answers.
        models: Their rows in the pool, in the order of ``dev``.
        labels: Questions whose right answer was needed.
        cells: Answers that were looked at.
    """

    dev: Dev
    models: tuple[int, ...]
    labels: int
    cells: int

    def choices(self) -> dict[str, Weights]:
        """Return what is chosen of the finalists, best first."""
        return {
            "halving_top7": top(self.dev, k=7),
            "halving_exhaustive5": exhaustive(self.dev, most=5),
        }


def halving(pool: Answers, order: Indices, *, n: int) -> Halved:
    """Spend ``n`` answers per model in two rungs of equal cost; the second is for the better half.

    Args:
        pool: All models.
        order: Questions in the order in which they are asked.
        n: Mean answers per model.
    """
    n_first = n // 2
    first = pool.scores[:, order[:n_first]].mean(axis=1)
    n_finalists = max(pool.n_models // 2, 1)
    finalists = np.argsort(-first, kind="stable")[:n_finalists]
    n_second = (n - n_first) * pool.n_models // n_finalists
    labels = n_first + n_second
    known = pool.of(sorted(finalists.tolist())).at(order[:labels])
    dev = Dev.of(known)
    models = tuple(pool.names.index(name) for name in dev.best_first.names)
    return Halved(dev, models, labels, n_first * pool.n_models + n_second * n_finalists)
