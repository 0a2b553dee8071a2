"""The Gaussian process that predicts scores of architectures, with its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.surrogate.features import BLOCKS, PARTS, FeatureMatrix, Kernels


def means_and_noise(scores: FeatureMatrix) -> tuple[FeatureMatrix, FeatureMatrix]:
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


WEIGHTS: Final = (0.0, 0.01, 0.03, 0.1, 0.3)
"""Standard deviations, as shares of the score, that a part may have."""
OWN_WEIGHTS: Final = (0.01, 0.02, 0.04, 0.08)
"""Those of what is an architecture's own: never nothing, as no model is right."""
FIRST_WEIGHT: Final = 0.03
_SWEEPS = 2
_OWN = "own"
_MEAN_VARIANCE = 1.0
_BORDER = 1e9
"""Above any quadratic form: what is its own gives every score a variance of 1e-4 or more."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Mean and standard deviation of what architectures truly score, as far as is known."""

    mean: FeatureMatrix
    sd: FeatureMatrix


class SurrogateModel:
    """A score is a mean, a part per block of traits, one by nearness, and one of its own.

    Every part is Gaussian; how much each explains is learned by marginal likelihood, so the
    weight of diversity against performance is the data's. Scores of few rows are shrunk towards
    what the parts predict: empirical Bayes, or a Gaussian process with a linear
    mean (Rasmussen & Williams 2006, eq. 2.25 and 5.8). It makes no call.

    Args:
        kernels: Compare architectures.
        architectures: Those that were measured.
        scores: (architectures, rows), in [0, 1]; NaN where a trial was stopped.
        weights: Learned ones of a model of nearly the same data; None learns them.
    """

    def __init__(
        self,
        kernels: Kernels,
        architectures: Sequence[Architecture],
        scores: FeatureMatrix,
        *,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.kernels, self.architectures = kernels, tuple(architectures)
        self._parts = kernels.parts(self.architectures, self.architectures)
        self._y, self._noise = means_and_noise(scores)
        self.weights = dict(weights) if weights is not None else self._learned()
        self._factor, self._alpha = self._solved(self.weights)

    def predict(self, architectures: Sequence[Architecture]) -> Prediction:
        """Return what architectures will score, measured or not."""
        cross = self._cross(architectures)
        own = self._combined(self.kernels.own(architectures)) + self.weights[_OWN] ** 2
        # Imported here: scipy costs a second that `import moa_dspy` shall not.
        from scipy.linalg import solve_triangular

        reduced = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        variance = own + _MEAN_VARIANCE - (reduced**2).sum(0)
        return Prediction(cross @ self._alpha, np.sqrt(np.maximum(variance, 1e-12)))

    def fitted(self) -> FeatureMatrix:
        """Return the means of the measured architectures, as ``predict`` does, in less time."""
        return np.asarray(self._prior(self.weights) @ self._alpha, np.float64)

    def gains(self, incumbent: Architecture) -> tuple[FeatureMatrix, FeatureMatrix]:
        """Return by how much each measured architecture beats ``incumbent``, and the sd of that."""
        prior = self._prior(self.weights)
        reduced = np.linalg.solve(self._factor, prior)
        covariance = prior - reduced.T @ reduced
        mean = prior @ self._alpha
        at = self.architectures.index(incumbent)
        spread = np.diag(covariance)
        variance = spread + spread[at] - 2 * covariance[at]
        variance[at] = 0.0
        return mean - mean[at], np.sqrt(np.maximum(variance, 0.0))

    def explained(self) -> dict[str, float]:
        """Return the share of the differences between measured scores that each part explains.

        Of the de-noised scores, in [0, 1]; what is left is ``rest``. A part that pulls against the
        others explains nothing. Empty where scores do not differ.
        """
        fitted = {
            part: self.weights[part] ** 2 * (self._parts[part] @ self._alpha) for part in PARTS
        }
        whole = self._prior(self.weights) @ self._alpha
        centred = whole - whole.mean()
        variance = float(centred @ centred)
        if variance < 1e-12 * len(centred):
            return {}
        shares = {part: float(centred @ value) / variance for part, value in fitted.items()}
        kept = {part: min(max(shares[part], 0.0), 1.0) for part in BLOCKS}
        scale = max(sum(kept.values()), 1.0)
        named = {part: share / scale for part, share in kept.items()}
        return {**named, "rest": max(0.0, 1 - sum(named.values()))}

    def _combined(self, parts: Mapping[str, FeatureMatrix]) -> FeatureMatrix:
        total: FeatureMatrix = sum(
            (self.weights[part] ** 2 * matrix for part, matrix in parts.items()),
            start=np.zeros_like(parts["near"]),
        )
        return total

    def _cross(self, architectures: Sequence[Architecture]) -> FeatureMatrix:
        cross = self._combined(self.kernels.parts(architectures, self.architectures))
        places = {one: place for place, one in enumerate(self.architectures)}
        for row, one in enumerate(architectures):
            if one in places:
                cross[row, places[one]] += self.weights[_OWN] ** 2
        return cross + _MEAN_VARIANCE

    def _prior(self, weights: Mapping[str, float]) -> FeatureMatrix:
        prior = np.full_like(self._parts["near"], _MEAN_VARIANCE)
        for part, matrix in self._parts.items():
            if weights[part]:
                prior += weights[part] ** 2 * matrix
        prior[np.diag_indices_from(prior)] += weights[_OWN] ** 2
        return prior

    def _solved(self, weights: Mapping[str, float]) -> tuple[FeatureMatrix, FeatureMatrix]:
        """Return the Cholesky factor and the weights of the observations."""
        covariance = self._covariance(weights)
        factor = np.asarray(np.linalg.cholesky(covariance), np.float64)
        return factor, np.asarray(np.linalg.solve(covariance, self._y), np.float64)

    def _covariance(self, weights: Mapping[str, float]) -> FeatureMatrix:
        covariance = self._prior(weights)
        covariance[np.diag_indices_from(covariance)] += self._noise + 1e-9
        return covariance

    def _likelihood(self, weights: Mapping[str, float]) -> float:
        """Return the log likelihood but for a constant; one factorisation gives all of it.

        Of the covariance with a last row of observations the factor's last row is what solves
        the first. Rounded, so that the order of the trials does not decide between equals.
        """
        n = len(self._y)
        bordered = np.empty((n + 1, n + 1))
        bordered[:n, :n] = self._covariance(weights)
        bordered[n, :n] = bordered[:n, n] = self._y
        bordered[n, n] = _BORDER
        factor = np.linalg.cholesky(bordered)
        half, diagonal = factor[n, :n], np.diag(factor)[:n]
        return round(-0.5 * float(half @ half) - float(np.log(diagonal).sum()), 6)

    def _learned(self) -> dict[str, float]:
        """Climb the likelihood, one weight after the other; of equals the smaller weight."""
        weights: dict[str, float] = dict.fromkeys((*PARTS, _OWN), FIRST_WEIGHT)
        for _ in range(_SWEEPS):
            for part in weights:
                grid = OWN_WEIGHTS if part == _OWN else WEIGHTS
                tried = [(self._likelihood(weights | {part: value}), -value) for value in grid]
                weights[part] = -max(tried)[1]
        return weights
