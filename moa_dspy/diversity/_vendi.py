from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np

from moa_dspy.diversity._base import Matrix
from moa_dspy.diversity._tfidf import TfidfDistance
from moa_dspy.errors import MetricError

Kernel = Callable[[Sequence[str]], Matrix]
"""Maps n texts to a positive semi-definite (n, n) matrix with 1 on the diagonal."""
_ROUNDING = 1e-8


@dataclass(frozen=True, slots=True)
class VendiScore:
    """(VS - 1) / (n - 1), with the Vendi score VS: how many unlike responses n of them amount to.

    VS = exp(-sum l log l) over the eigenvalues l of K / n (Friedman & Dieng, TMLR 2023), between
    1 for copies and n for responses without similarity. Unlike a mean over pairs it notices that
    two groups of copies are two answers, however large the groups.

    Attributes:
        kernel: By default the TF-IDF cosine with the responses as documents. Others:
            ``TfidfDistance.fitted_on(corpus).similarities``,
            ``EmbeddingDistance(embed).similarities``, or any callable of that form.

    Raises:
        MetricError: when called, if ``kernel`` returns anything but such a matrix.
    """

    kernel: Kernel = TfidfDistance().similarities

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        n = len(responses)
        if len({r.strip() for r in responses}) < 2:
            return 0.0
        shares = np.linalg.eigvalsh(self._checked(responses) / n)
        if shares[0] < -_ROUNDING:
            least = float(shares[0]) * n
            raise MetricError(f"`kernel` has the eigenvalue {least:.3g}; none may be below 0.")
        shares = shares[shares > 0]
        score = exp(float(-(shares * np.log(shares)).sum()))
        return min(max((score - 1) / (n - 1), 0.0), 1.0)

    def _checked(self, responses: Sequence[str]) -> Matrix:
        n = len(responses)
        matrix = np.asarray(self.kernel(responses), dtype=np.float64)
        if matrix.shape != (n, n):
            raise MetricError(f"`kernel` must return shape {(n, n)}, but returned {matrix.shape}.")
        if not np.isfinite(matrix).all():
            raise MetricError("`kernel` must return finite numbers.")
        if not np.allclose(np.diag(matrix), 1.0, rtol=0, atol=_ROUNDING):
            raise MetricError("`kernel` must be 1 between a text and itself.")
        if not np.allclose(matrix, matrix.T, rtol=0, atol=_ROUNDING):
            raise MetricError("`kernel` must be symmetric.")
        return matrix
