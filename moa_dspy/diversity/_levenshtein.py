from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moa_dspy.diversity._base import mean_over_pairs
from moa_dspy.errors import MetricError


@dataclass(frozen=True, slots=True)
class LevenshteinDistance:
    """Mean over pairs of the edit distance divided by the longer length (Levenshtein 1966).

    Only the first ``n_characters`` of each text are read: texts that begin with the same 2,000
    characters are the same. A pair at that limit takes a few milliseconds.

    Raises:
        MetricError: ``n_characters`` is below 1.
    """

    n_characters: int = 2_000

    def __post_init__(self) -> None:
        if self.n_characters < 1:
            raise MetricError(f"`n_characters` must be at least 1, but got {self.n_characters}.")

    def __call__(self, responses: Sequence[str], /) -> float:
        """See the protocol."""
        return mean_over_pairs([r[: self.n_characters] for r in responses], _normalised)


def _normalised(a: str, b: str) -> float:
    return _edits(a, b) / max(len(a), len(b)) if a != b else 0.0


def _edits(a: str, b: str) -> int:
    """Count the insertions, deletions and substitutions that turn ``a`` into ``b``.

    Bit-parallel in Python's whole numbers, one column of the table per character of ``b``
    (Myers, Journal of the ACM 46, 1999; in the form of Hyyro 2003).
    """
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for i, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << i
    everything, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, distance = everything, 0, len(a)
    for character in b:
        match = places.get(character, 0)
        diagonal = (((match & rises) + rises) ^ rises) | match | falls
        up = falls | (everything & ~(diagonal | rises))
        down = rises & diagonal
        distance += bool(up & last) - bool(down & last)
        up = (up << 1 | 1) & everything
        rises = (down << 1 & everything) | (everything & ~(diagonal | up))
        falls = up & diagonal
    return distance
