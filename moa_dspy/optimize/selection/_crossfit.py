"""What the whole way of choosing will score on new rows, from stored measurements alone."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Final

import numpy as np

from moa_dspy.optimize.selection._choice import choose
from moa_dspy.optimize.selection._evidence import Evidence, Scores
from moa_dspy.winrate import Interval, mean_interval

FOLDS: Final = 10
REPEATS: Final = 3
"""Partitions into folds, averaged: which rows a fold holds is luck of its own."""
PSEUDO: Final = 60_000
"""Redrawn questions of a fold: fewer than for the pick, as thirty folds average their noise."""
CORRELATED: Final = 0.9
"""Folds share most of their rows, so their scores are worth fewer rows than they are:
counted as 0.9 of them the interval covers in about 95 % of splits instead of 92."""


def expected_score(evidence: Evidence, *, seed: int) -> Interval | None:
    """Estimate the score of a pick on rows that it was not chosen on; costs no call.

    The choice is made again on nine tenths of the rows and scored on the rest, ten times in
    each of three partitions (cross-fitting). The mean is that of the procedure, which now
    and then picks another architecture. None with fewer than 10 rows.
    """
    if evidence.n_rows < FOLDS:
        return None
    rng = np.random.default_rng([seed, evidence.n_rows])
    held = np.mean([_held_out(evidence, rng) for _ in range(REPEATS)], axis=0)
    return _wider(mean_interval(held.clip(0, 1)))


def _held_out(evidence: Evidence, rng: np.random.Generator) -> Scores:
    """Return the score of each row, of what was picked without its fold."""
    n = evidence.n_rows
    is_free = not any(one.bonus for one in evidence.measured)  # a bonus is known where measured
    fold = rng.permutation(np.arange(n) % FOLDS)
    held = np.zeros(n)
    for k in range(FOLDS):
        inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        choice = choose(evidence.take(inside), pseudo=PSEUDO, may_be_unmeasured=is_free)
        held[outside] = choice.scores(evidence.take(outside))
    return held


def _wider(interval: Interval) -> Interval:
    low, high = (
        interval.estimate + (end - interval.estimate) / sqrt(CORRELATED)
        for end in (interval.low, interval.high)
    )
    return replace(interval, low=max(low, 0.0), high=min(high, 1.0))
