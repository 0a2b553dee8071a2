from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moa_dspy.diversity._base import Matrix, equal_pairs


@dataclass(frozen=True, slots=True)
class DistinctShare:
    """Share of responses that are new, (distinct - 1) / (n - 1).

    Texts that differ only in case or white space are the same.
    """

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        distinct = set(map(_normalised, responses))
        return (len(distinct) - 1) / (len(responses) - 1) if len(responses) > 1 else 0.0

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return 1 for every two responses that are the same, else 0."""
        return equal_pairs([_normalised(r) for r in responses])


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())
