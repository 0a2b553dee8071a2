from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from moa_dspy.optimize.selection._evidence import Evidence, Measured


def paired(
    evidence: Evidence, incumbent: Measured, measured: Sequence[Measured], /
) -> tuple[Sequence[float], Sequence[float]]:
    """Return plain paired differences with their standard errors: nothing is shrunk."""
    del evidence
    gaps = np.array([one.scores - incumbent.scores for one in measured])
    n = gaps.shape[1]
    errors = gaps.std(1, ddof=1) / sqrt(n) if n > 1 else np.ones(len(gaps))
    return gaps.mean(1).tolist(), errors.tolist()
