from __future__ import annotations

import numpy as np

from moa_dspy.optimize.response._traits import Matrix


def means_and_noise(scores: Matrix) -> tuple[Matrix, Matrix]:
    """Return each architecture's score, as if all rows were measured, and its error variance.

    ``scores`` is (architectures, rows), NaN where a trial was stopped. Rows differ in
    difficulty, which all architectures share, so their effects are fitted away: an
    architecture that saw the easy rows only is not taken for a good one, and the error left
    is that of differences. The sample covariance of the architectures is not used: with more of
    them than rows it is singular, and calls everything noise.
    """
    known = ~np.isnan(scores)
    filled = np.where(known, scores, 0.0)
    n_rows, n_seen = known.sum(1), known.sum(0)
    row = filled.sum(0) / np.maximum(n_seen, 1)
    own = np.zeros(len(scores))
    for _ in range(20):
        own = np.where(known, scores - row, 0.0).sum(1) / np.maximum(n_rows, 1)
        row = np.where(known, scores - own[:, None], 0.0).sum(0) / np.maximum(n_seen, 1)
    left = np.where(known, scores - own[:, None] - row, 0.0)
    freedom = max(int(known.sum()) - len(scores) - scores.shape[1] + 1, 1)
    variance = float((left**2).sum()) / freedom
    mean_row = float(row[n_seen > 0].mean())
    return own + mean_row, np.maximum(variance, 1e-6) / np.maximum(n_rows, 1)
