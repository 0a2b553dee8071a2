from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moa_dspy.diversity._base import Matrix, equal_pairs, mean_distance


def _casefolded(text: str) -> str:
    return text.casefold().strip()


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Share of pairs whose texts differ after ``normalise`` (Skalak 1996, on answers).

    By default texts are casefolded and stripped. Give a function that extracts the final answer
    to compare what the responses conclude rather than how they say it.
    """

    normalise: Callable[[str], str] = _casefolded

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        return mean_distance(self.pairs(responses))

    def pairs(self, responses: Sequence[str], /) -> Matrix:
        """Return 1 for every two responses that agree, else 0."""
        return equal_pairs([self.normalise(r) for r in responses])
