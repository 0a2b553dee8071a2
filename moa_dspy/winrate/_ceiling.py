"""How far any choice among the candidates could get."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moa_dspy.errors import MetricError
from moa_dspy.winrate._intervals import Interval
from moa_dspy.winrate._scores import Scores, Vector, check_share, score_vector


def oracle(scores: Mapping[str, Scores]) -> Vector:
    """Return the best score of any candidate per example: what perfect selection would get.

    Raises:
        MetricError: no candidate, unequal lengths, no example, or a score that is not finite.
    """
    if not scores:
        raise MetricError("`scores` must hold at least one candidate, but got 0.")
    vectors = {name: score_vector(s, name=name) for name, s in scores.items()}
    lengths = {name: v.size for name, v in vectors.items()}
    if len(set(lengths.values())) > 1:
        raise MetricError(f"Candidates must score the same examples, but have {lengths}.")
    best: Vector = np.max(np.stack(list(vectors.values())), axis=0)
    return best


def co_failure(
    scores: Mapping[str, Scores], *, threshold: float = 0.5, confidence: float = 0.95
) -> Interval:
    """Bound the share of examples on which every candidate scores below ``threshold``.

    No way of choosing among the candidates' answers can beat one minus this share. The interval
    is exact (Clopper & Pearson 1934): it covers at least ``confidence``, usually more.

    Raises:
        MetricError: as ``oracle``, or a confidence outside (0, 1).
    """
    check_share(confidence, name="confidence")
    from scipy.special import betaincinv

    failed = oracle(scores) < threshold
    n, k = failed.size, int(failed.sum())
    tail = (1 - confidence) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Interval(k / n, low, high, confidence)
