"""Which of two systems did better, example by example."""

from __future__ import annotations

import numpy as np

from moa_dspy.errors import MetricError
from moa_dspy.winrate._scores import Scores, Vector, paired_vectors


def preferences(scores: Scores, reference: Scores, *, tolerance: float = 0.0) -> Vector:
    """Say per example whether ``scores`` wins (1), ties (0.5) or loses (0) against ``reference``.

    Works on the scores of any DSPy metric where more is better, on any scale. Differences of at
    most ``tolerance`` are ties. Swapping the arguments gives one minus the result.

    Raises:
        MetricError: lengths differ, nothing to compare, a score that is not finite, or a
            negative tolerance.
    """
    if not tolerance >= 0:
        raise MetricError(f"`tolerance` must be at least 0, but got {tolerance}.")
    ours, theirs = paired_vectors(scores, reference, names=("scores", "reference"))
    gap = ours - theirs
    return np.where(np.abs(gap) <= tolerance, 0.5, np.where(gap > 0, 1.0, 0.0))
