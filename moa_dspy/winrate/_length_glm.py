"""The penalised logistic regression behind the length-controlled win rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moa_dspy.errors import MetricError
from moa_dspy.winrate._scores import Vector

GRID: Vector = np.logspace(-4, 4, 10)
_N_FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of a logistic regression whose targets are probabilities."""

    features: Vector
    """(n_rows, 3): length, difficulty, model."""
    targets: Vector
    weights: Vector

    def where(self, kept: NDArray[np.bool_]) -> Rows:
        """Return the rows that are marked."""
        return Rows(self.features[kept], self.targets[kept], self.weights[kept])


def fitted(rows: Rows, c: float, *, seed: int) -> tuple[float, float, float]:
    """Minimise the L1 norm of the coefficients + ``c`` times the weighted cross-entropy.

    There is no intercept. liblinear's stopping tolerance of 1e-4 is part of the definition: the
    exact minimum lies up to 0.016 percent points of win rate away. A target p enters as two
    rows, a win with weight p and a loss with weight 1 - p.

    Raises:
        MetricError: all targets are 0, or all are 1.
    """
    # Imported here: scikit-learn costs a second that most callers of this package never need.
    from sklearn.linear_model import LogisticRegression

    if rows.targets.max() == 0 or rows.targets.min() == 1:
        raise MetricError(f"All preferences are {rows.targets[0]:g}: nothing can be fitted.")
    model = LogisticRegression(
        C=c, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=seed
    )
    labels = np.repeat([1, 0], rows.targets.size)
    shares = np.concatenate([rows.targets, 1 - rows.targets]) * np.tile(rows.weights, 2)
    model.fit(np.tile(rows.features, (2, 1)), labels, sample_weight=shares)
    length, difficulty, constant = model.coef_[0].tolist()
    return length, difficulty, constant


def chosen_c(rows: Rows, *, seed: int) -> float:
    """Choose c among ten from 1e-4 to 1e4 by the cross-entropy on held-out rows.

    Five folds; row k is in fold k modulo 5, which is what scikit-learn's grouped folds amount to.
    The mean of a fold is over its rows, not over their weights. The smallest of equals wins.

    Raises:
        MetricError: fewer than 5 rows, or a fold leaves targets that are all 0 or all 1.
    """
    n_rows = rows.targets.size
    if n_rows < _N_FOLDS:
        raise MetricError(f"Cross-validation needs at least {_N_FOLDS} rows, but got {n_rows}.")
    folds = np.arange(n_rows) % _N_FOLDS
    scores = [[_score(rows, folds == fold, c, seed) for fold in range(_N_FOLDS)] for c in GRID]
    return float(GRID[np.mean(scores, axis=1).argmax()])


def _score(rows: Rows, held_out: NDArray[np.bool_], c: float, seed: int) -> float:
    weights = np.array(fitted(rows.where(~held_out), c, seed=seed))
    test = rows.where(held_out)
    predicted = np.clip(0.5 + 0.5 * np.tanh(test.features @ weights / 2), 1e-15, 1 - 1e-15)
    likelihood = test.targets * np.log(predicted) + (1 - test.targets) * np.log1p(-predicted)
    return float((test.weights * likelihood).mean())
