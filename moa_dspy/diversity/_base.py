from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from statistics import fmean
from typing import Protocol, TypeVar

T = TypeVar("T")


class DiversityMetric(Protocol):
    """Maps the responses of one layer to a number in [0, 1]; more is more diverse.

    0 on copies and on fewer than two responses; blind to the order of the responses; changes
    nothing. Every name in ``METRICS`` is called without arguments and held to this by
    ``tests/diversity/test_contract.py``.
    """

    def __call__(self, responses: Sequence[str], /) -> float:
        """Score the texts of one layer's responses."""
        ...


def mean_over_pairs(items: Sequence[T], distance: Callable[[T, T], float]) -> float:
    """Return the mean ``distance`` of all unordered pairs; 0 where there is no pair."""
    distances = [distance(a, b) for a, b in combinations(items, 2)]
    # fmean sums exactly, so the order of the responses cannot show in the last digit.
    return fmean(distances) if distances else 0.0


def jaccard_distance(a: frozenset[str], b: frozenset[str]) -> float:
    """Return 1 - |A & B| / |A | B| (Jaccard 1901); 0 for two empty sets."""
    union = len(a | b)
    return 1 - len(a & b) / union if union else 0.0
