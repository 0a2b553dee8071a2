"""Several comparisons at once."""

from __future__ import annotations

from collections.abc import Mapping

from moa_dspy.errors import MetricError
from moa_dspy.winrate._intervals import Interval, paired_interval
from moa_dspy.winrate._scores import Scores, check_share


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values so that the chance of any false claim among them stays at the level.

    Holm's step-down method (Scandinavian Journal of Statistics 6, 1979): the k-th smallest of m
    is multiplied by m - k + 1; the results are made monotone and capped at 1. Valid however the
    tests depend on each other. The order of the names is kept.

    Raises:
        MetricError: a p-value outside [0, 1].
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise MetricError(f"p-values must be in [0, 1], but {name!r} is {p}.")
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def simultaneous_intervals(
    pick: Scores, others: Mapping[str, Scores], *, confidence: float = 0.95
) -> dict[str, Interval]:
    """Bound pick minus each other so that all intervals hold at once with ``confidence``.

    Bonferroni: each is a ``paired_interval`` at confidence 1 - (1 - confidence) / m, which is
    what its ``confidence`` says. Intervals that follow Holm's steps say nothing about size once
    a test is rejected, so these are wider: one may hold 0 where ``holm`` finds p < 0.05.

    Raises:
        MetricError: as ``paired_interval``.
    """
    check_share(confidence, name="confidence")
    each = 1 - (1 - confidence) / max(len(others), 1)
    return {name: paired_interval(pick, s, confidence=each) for name, s in others.items()}
