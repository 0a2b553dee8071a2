from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moa_dspy.diversity._base import Matrix, mean_distance
from moa_dspy.errors import MetricError


@dataclass(frozen=True, slots=True)
class LevenshteinDistance:
    """Mean over pairs of the edit distance divided by the longer length (Levenshtein 1966).

    1 - the Levenshtein ratio of rapidfuzz (``distance.Levenshtein.normalized_similarity``), on
    code points, case and white space as they are. Only the first ``n_characters`` of each text
    are read: texts that begin with the same 2,000 characters are the same. A pair at that limit
    takes some tens of microseconds.

    Raises:
        MetricError: ``n_characters`` is below 1.
    """

    n_characters: int = 2_000

    def __post_init__(self) -> None:
        if self.n_characters < 1:
            raise MetricError(f"`n_characters` must be at least 1, but got {self.n_characters}.")

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        return mean_distance(self.pairs(responses))

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return 1 - edits / longer length of every two responses."""
        # Late: a study that measures something else does not load it.
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cdist

        texts = [r[: self.n_characters] for r in responses]
        scorer = Levenshtein.normalized_similarity
        return np.asarray(cdist(texts, texts, scorer=scorer, dtype=np.float64), dtype=np.float64)
