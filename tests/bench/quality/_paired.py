"""Two rules on the same splits: who is better, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from statistics import fmean, stdev

from scipy import stats


@dataclass(frozen=True, slots=True)
class Lead:
    """The mean of paired differences and its one-sided 95 % lower bound; None of one split."""

    mean: float
    low: float | None


def lead(gaps: Sequence[float], *, shared: float = 0.0) -> Lead:
    """Return the lead of paired differences, by Student's t.

    Args:
        gaps: One per split.
        shared: Variance that drawing other judged questions would add: splits share most of
            them, so it does not get smaller with more splits.
    """
    if len(gaps) < 2:
        return Lead(fmean(gaps), None)
    quantile = float(stats.t.ppf(0.95, len(gaps) - 1))
    return Lead(fmean(gaps), fmean(gaps) - quantile * hypot(standard_error(gaps), sqrt(shared)))


def standard_error(values: Sequence[float]) -> float:
    """Return that of the mean; 0 of a single value."""
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
