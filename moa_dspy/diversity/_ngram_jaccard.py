from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moa_dspy.diversity._base import Matrix, mean_distance
from moa_dspy.diversity._grams import character_ids, gram_counts, jaccard, shared_grams
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
        return mean_distance(self.pairs(responses))

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return |A & B| / |A | B| of every two responses."""
        characters = character_ids([r.casefold() for r in responses])
        return jaccard(shared_grams(gram_counts(characters, self.n, short_is_one=True)))
