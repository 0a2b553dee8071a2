from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moa_dspy.diversity._base import jaccard_distance, mean_over_pairs
from moa_dspy.errors import MetricError


@dataclass(frozen=True, slots=True)
class NgramJaccardDistance:
    """Mean over pairs of the Jaccard distance on sets of character n-grams, casefolded.

    Works where words are not split by spaces, and forgives small edits of a word. White space
    counts as it is. A text shorter than ``n`` is one gram.

    Raises:
        MetricError: ``n`` is below 1.
    """

    n: int = 3

    def __post_init__(self) -> None:
        if self.n < 1:
            raise MetricError(f"`n` must be at least 1, but got {self.n}.")

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        grams = [self._grams(r.casefold()) for r in responses]
        return mean_over_pairs(grams, jaccard_distance)

    def _grams(self, text: str) -> frozenset[str]:
        starts = range(max(len(text) - self.n + 1, 1))
        return frozenset(text[i : i + self.n] for i in starts)
