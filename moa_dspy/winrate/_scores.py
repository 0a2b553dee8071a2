"""Turn what a caller calls scores into vectors that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import MetricError

Vector: TypeAlias = NDArray[np.float64]
Scores: TypeAlias = Sequence[float] | Vector
"""One number per example, in dataset order."""


def score_vector(scores: Scores, *, name: str = "scores", unit: bool = False) -> Vector:
    """Return ``scores`` as a finite, non-empty vector; ``unit`` also asks for [0, 1].

    Raises:
        MetricError: not one-dimensional, empty, not finite, or outside [0, 1].
    """
    vector = np.asarray(scores, dtype=np.float64)
    if vector.ndim != 1:
        raise MetricError(f"`{name}` must be one score per example, but has shape {vector.shape}.")
    if not vector.size:
        raise MetricError(f"`{name}` must hold at least one example, but got 0.")
    wrong = ~np.isfinite(vector)
    if unit:
        wrong |= (vector < 0) | (vector > 1)
    if wrong.any():
        place = int(wrong.argmax())
        wanted = "in [0, 1]" if unit else "finite"
        raise MetricError(f"`{name}` must be {wanted}, but example {place} is {vector[place]}.")
    return vector


def paired_vectors(
    a: Scores, b: Scores, *, names: tuple[str, str] = ("a", "b"), unit: bool = False
) -> tuple[Vector, Vector]:
    """Return two vectors of scores of the same examples.

    Raises:
        MetricError: as ``score_vector``, or the two have different lengths.
    """
    first = score_vector(a, name=names[0], unit=unit)
    second = score_vector(b, name=names[1], unit=unit)
    if first.size != second.size:
        raise MetricError(
            f"`{names[0]}` and `{names[1]}` must score the same examples, "
            f"but have {first.size} and {second.size}."
        )
    return first, second


def is_binary(differences: Vector) -> bool:
    """Tell whether every difference is -1, 0 or 1 (up to rounding): right or wrong, no grades."""
    sizes = np.abs(differences)
    return bool(np.all((sizes < 1e-12) | (np.abs(sizes - 1) < 1e-12)))


def check_share(value: float, *, name: str) -> None:
    """Refuse a level that is not strictly between 0 and 1.

    Raises:
        MetricError: ``value`` is not in (0, 1).
    """
    if not 0 < value < 1:
        raise MetricError(f"`{name}` must be between 0 and 1, but got {value}.")
