from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moa_dspy.diversity._base import jaccard_distance, mean_over_pairs


@dataclass(frozen=True, slots=True)
class JaccardDistance:
    """Mean over pairs of 1 - |A & B| / |A | B| on sets of words (Jaccard 1901).

    Words are split at white space and casefolded; punctuation stays with its word. Two texts
    without words are the same.
    """

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        words = [frozenset(r.casefold().split()) for r in responses]
        return mean_over_pairs(words, jaccard_distance)
