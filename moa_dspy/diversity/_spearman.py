from __future__ import annotations

from collections.abc import Sequence
from math import nan

import numpy as np
from numpy.typing import NDArray

from moa_dspy.diversity._base import Matrix
from moa_dspy.errors import MetricError


def spearman(a: Sequence[float] | Matrix, b: Sequence[float] | Matrix) -> float:
    """Return the rank correlation of two vectors, in [-1, 1] (Spearman 1904).

    Pearson's correlation of the ranks; equal numbers share the mean of their ranks. NaN where a
    vector is constant or has fewer than two numbers: it ranks nothing.

    Raises:
        MetricError: vectors of different length, or a number that is not finite.
    """
    vectors = [np.asarray(v, dtype=np.float64) for v in (a, b)]
    if vectors[0].ndim != 1 or vectors[0].shape != vectors[1].shape:
        shapes = " and ".join(str(v.shape) for v in vectors)
        raise MetricError(f"Two vectors of the same length are needed, but got {shapes}.")
    if not all(np.isfinite(v).all() for v in vectors):
        raise MetricError("Only finite numbers can be ranked, but there is NaN or infinity.")
    first, second = (_centred_ranks(v) for v in vectors)
    scale = float(np.sqrt((first @ first) * (second @ second)))
    return min(max(float(first @ second) / scale, -1.0), 1.0) if scale > 0 else nan


def _centred_ranks(vector: NDArray[np.float64]) -> Matrix:
    _, places, counts = np.unique(vector, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = last - (counts - 1) / 2
    # Ranks are multiples of 1/2 with mean (n + 1) / 2, so a constant gives exact zeros.
    centred: Matrix = ranks[places] - (vector.size + 1) / 2
    return centred
