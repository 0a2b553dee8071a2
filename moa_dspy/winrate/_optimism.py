"""How much of the best score of a search is luck."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import MetricError
from moa_dspy.winrate._scores import Vector

Choose = Callable[[NDArray[np.float64]], int]
"""Maps the mean score of every candidate to the index of the one it picks."""


def selection_optimism(
    matrix: Vector, *, choose: Choose | None = None, n_repeats: int = 200, seed: int = 0
) -> float:
    """Estimate how far the picked candidate's mean lies above its true mean; costs no call.

    The winner's curse, in score units: subtract it from the pick's mean. Examples are resampled
    with replacement, ``choose`` picks on the resampled means, and the pick is scored on the
    examples left out. Resampled means err sqrt(2 - 1/n) times as much as means on all examples,
    so the gap is divided by that. The average gap of all candidates, 0 in expectation, is
    subtracted from each resample: it takes out the luck of the examples drawn.

    Simulated with right-or-wrong scores, 3 to 300 candidates, n = 100 to 500: unbiased within
    0.5 points where all candidates are equal (uncorrected: 40 % too large), up to 1.9 points too
    large, so cautious, where one candidate is truly 6 points better than many equals; the
    estimate's standard deviation is 0.4 to 1.7 points. Resampling after Tsamardinos et al.
    (Machine Learning 107, 2018); the division is ours.

    Args:
        matrix: Scores, (n_candidates, n_examples), no gaps; all on the same examples.
        choose: How the search picks; by default the highest mean, the first of equals.
        n_repeats: Resamples, at least 1.
        seed: Of the resampling; the same seed gives the same number.

    Raises:
        MetricError: not a matrix, no candidate, fewer than 2 examples, a score that is not
            finite, no repeat, or a choice that is not a candidate.
    """
    scores = _complete(matrix)
    n_candidates, n_examples = scores.shape
    if n_repeats < 1:
        raise MetricError(f"`n_repeats` must be at least 1, but got {n_repeats}.")
    weights = _resamples(n_examples, n_repeats, seed)
    left_out = (weights == 0).astype(np.float64)
    inside = weights @ scores.T / n_examples
    outside = left_out @ scores.T / left_out.sum(axis=1, keepdims=True)
    picks = _picks(inside, choose, n_candidates)
    gaps = inside - outside
    excess = np.take_along_axis(gaps, picks[:, None], axis=1)[:, 0] - gaps.mean(axis=1)
    return float(excess.mean()) / sqrt(2 - 1 / n_examples)


def _complete(matrix: Vector) -> Vector:
    scores = np.asarray(matrix, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] < 1 or scores.shape[1] < 2:
        raise MetricError(
            "`matrix` must be (candidates, examples) with at least 1 candidate and 2 examples, "
            f"but has shape {scores.shape}."
        )
    if not np.isfinite(scores).all():
        raise MetricError(f"`matrix` must be finite, but {(~np.isfinite(scores)).sum()} are not.")
    return scores


def _resamples(n_examples: int, n_repeats: int, seed: int) -> Vector:
    """Return how often each example is drawn, per repeat; repeats that leave none out redrawn."""
    generator = np.random.default_rng(seed)
    share = np.full(n_examples, 1 / n_examples)
    weights = generator.multinomial(n_examples, share, size=n_repeats)
    while (full := (weights > 0).all(axis=1)).any():
        weights[full] = generator.multinomial(n_examples, share, size=int(full.sum()))
    return weights.astype(np.float64)


def _picks(inside: Vector, choose: Choose | None, n_candidates: int) -> NDArray[np.intp]:
    if choose is None:
        return np.asarray(inside.argmax(axis=1), dtype=np.intp)
    picks = np.array([choose(means) for means in inside], dtype=np.intp)
    if picks.min() < 0 or picks.max() >= n_candidates:
        raise MetricError(
            f"`choose` must return an index below {n_candidates}, "
            f"but returned {picks.min()} to {picks.max()}."
        )
    return picks
