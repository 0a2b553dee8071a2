from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moa_dspy.diversity._base import Matrix, mean_distance
from moa_dspy.diversity._grams import gram_counts, jaccard, shared_grams, word_ids


@dataclass(frozen=True, slots=True)
class JaccardDistance:
    """Mean over pairs of 1 - |A & B| / |A | B| on sets of words (Jaccard 1901).

    Words are split at white space and casefolded; punctuation stays with its word. Two texts
    without words are the same.
    """

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        return mean_distance(self.pairs(responses))

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return |A & B| / |A | B| of every two responses."""
        words, _ = word_ids([r.casefold().split() for r in responses])
        return jaccard(shared_grams(gram_counts(words, 1, short_is_one=True)))
