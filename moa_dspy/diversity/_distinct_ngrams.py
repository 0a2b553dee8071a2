from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moa_dspy.diversity._base import Matrix
from moa_dspy.diversity._grams import Ids, gram_counts, shared_grams, word_ids
from moa_dspy.errors import MetricError


@dataclass(frozen=True, slots=True)
class DistinctNgrams:
    """Distinct-n of the responses together, rescaled to 0 on copies and 1 on nothing shared.

    Distinct-n is the number of distinct word n-grams divided by the number of all (Li et al.,
    NAACL 2016). Here a repetition inside one response does not count, so that d lies between
    1 / k and 1 for k responses, and (k d - 1) / (k - 1) between 0 and 1. For two responses it is
    1 - the coefficient of Dice (1945). Words are split at white space and casefolded; a text of
    fewer than ``n`` words is one n-gram. Linear in the total length, where pairs are quadratic in
    the number of responses.

    Raises:
        MetricError: ``n`` is below 1.
    """

    n: int = 2

    def __post_init__(self) -> None:
        if self.n < 1:
            raise MetricError(f"`n` must be at least 1, but got {self.n}.")

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        if len(responses) < 2:
            return 0.0
        counts = self._counts(responses)
        n_all, n_distinct = int(np.count_nonzero(counts)), int(counts.shape[1])
        return (len(responses) * n_distinct - n_all) / ((len(responses) - 1) * n_all)

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return 2 |A & B| / (|A| + |B|) of every two responses."""
        shared = shared_grams(self._counts(responses))
        sizes = np.diag(shared)
        return 2.0 * shared / (sizes[:, None] + sizes[None, :])

    def _counts(self, responses: Sequence[str]) -> Ids:
        words, _ = word_ids([r.casefold().split() for r in responses])
        return gram_counts(words, self.n, short_is_one=True)
