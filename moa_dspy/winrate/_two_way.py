"""Candidates' means when not every candidate saw every example."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import MetricError
from moa_dspy.winrate._scores import Vector


@dataclass(frozen=True, slots=True, eq=False)
class TwoWayFit:
    """Each candidate's mean on all examples, and the variance of comparing it with the rest."""

    means: Vector
    variances: Vector


def two_way_fit(matrix: Vector) -> TwoWayFit:
    """Fit score = example effect + candidate effect by least squares on the measured cells.

    Without missing cells the means are the row means, and a variance is the residual variance
    over the number of examples. A lone candidate gets its mean's ordinary variance.

    Raises:
        MetricError: not a matrix, an infinite score, a candidate without a score, groups of
            candidates without common examples, or no cell left to see the noise.
    """
    scores = np.asarray(matrix, dtype=np.float64)
    measured = _measured(scores)
    scores, measured = scores[:, measured.any(axis=0)], measured[:, measured.any(axis=0)]
    n_candidates, n_examples = scores.shape
    degrees = int(measured.sum()) - n_candidates - n_examples + 1
    if n_candidates == 1:
        degrees = n_examples - 1
    if degrees < 1:
        raise MetricError(
            f"{int(measured.sum())} scores of {n_candidates} candidates on {n_examples} examples "
            "are too few to see the noise."
        )
    cells = np.where(measured, scores, 0.0)
    if n_candidates == 1:
        variance = float(cells.var(ddof=1)) / n_examples
        return TwoWayFit(cells.mean(axis=1), np.array([variance]))
    effects, inverse = _candidate_effects(cells, measured)
    per_example = measured.sum(axis=0)
    examples = (cells - effects[:, None] * measured).sum(axis=0) / per_example
    residuals = np.where(measured, cells - effects[:, None] - examples, 0.0)
    noise = float((residuals**2).sum()) / degrees
    # Exact agreement leaves rounding errors behind, which are not noise.
    noise = noise if noise > 1e-24 else 0.0
    variances = noise * np.diag(inverse) * n_candidates / (n_candidates - 1)
    return TwoWayFit(effects + float(examples.mean()), variances)


def _measured(scores: Vector) -> NDArray[np.bool_]:
    if scores.ndim != 2 or not scores.size:
        raise MetricError(f"`matrix` must be (candidates, examples), but has shape {scores.shape}.")
    if np.isinf(scores).any():
        raise MetricError(f"`matrix` must not be infinite, but {np.isinf(scores).sum()} are.")
    measured = ~np.isnan(scores)
    if not measured.any(axis=1).all():
        missing = int((~measured.any(axis=1)).argmax())
        raise MetricError(f"Every candidate needs a score, but candidate {missing} has none.")
    seen = measured.astype(np.float64)
    if not _are_connected(seen @ seen.T > 0):
        raise MetricError("Candidates cannot be compared: some groups share no examples.")
    return measured


def _candidate_effects(cells: Vector, measured: NDArray[np.bool_]) -> tuple[Vector, Vector]:
    """Return effects that sum to 0, and the generalised inverse of their normal equations."""
    seen = measured.astype(np.float64)
    per_example = seen.sum(axis=0)
    # Example effects are swept out first, which leaves one equation per candidate.
    equations = np.diag(seen.sum(axis=1)) - (seen / per_example) @ seen.T
    # A constant fixes the sum at 0: a pseudo-inverse would have to guess which eigenvalue is 0.
    share = np.full(equations.shape, 1 / len(seen))
    size = float(np.trace(equations)) / len(seen)
    inverse: Vector = np.linalg.inv(equations + size * share) - share / size
    swept = cells.sum(axis=1) - seen @ (cells.sum(axis=0) / per_example)
    return inverse @ swept, inverse


def _are_connected(share_examples: NDArray[np.bool_]) -> bool:
    """Tell whether every candidate is linked to the first, if need be through others."""
    reached = share_examples[0]
    while (further := share_examples[reached].any(axis=0)).sum() > reached.sum():
        reached = further
    return bool(reached.all())
