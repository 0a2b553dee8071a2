"""What a search has to beat before it may pick anything else."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Final

from moa_dspy.optimize.selection._evidence import Evidence
from moa_dspy.optimize.selection._keys import Key
from moa_dspy.optimize.votes import SHORTLIST, SmoothedVotes

Members = tuple[str, ...]

WORTH: Final = 0.55
"""Least score of a member of the incumbent, as a share of the best agent's: 0.5 to 0.6 measure
the same, and a vote with much worse members is too easy to beat to be a yardstick."""


class VoteTable:
    """Smoothed votes by their members' names, in the order of names; empty without votes."""

    def __init__(self, smoothed: SmoothedVotes | None) -> None:
        self._smoothed = smoothed
        layers = () if smoothed is None else smoothed.layers
        self._layers = {tuple(sorted(layer)): layer for layer in layers}

    def __contains__(self, key: object) -> bool:
        return key in self._layers

    @property
    def several(self) -> set[Key]:
        """All votes of more than one member."""
        return {key for key in self._layers if len(key) > 1}

    def gains(self, incumbent: Members) -> dict[Members, tuple[float, float]]:
        """Return the gain of every vote over ``incumbent``, and its error."""
        assert self._smoothed is not None  # the incumbent is in the table
        gains, errors = self._smoothed.gains(self._layers[incumbent])
        pairs = zip(gains.tolist(), errors.tolist(), strict=True)
        return dict(zip(self._layers, pairs, strict=True))


def incumbent_of(evidence: Evidence, allowed: AbstractSet[Key], votes: VoteTable) -> Key:
    """Return the vote of the best agents, as many as there may be; without one, the best agent.

    Members score at least 0.55 of what the best agent scores; 0 must mean worthless. Where
    neither is allowed, the architecture that is first by name.
    """
    vote = next((key for key in _top_votes(evidence) if key in allowed and key in votes), None)
    singles = ((name,) for name in evidence.ranking if (name,) in allowed)
    return vote or next(singles, None) or min(allowed, key=str)


def _top_votes(evidence: Evidence) -> Iterator[Members]:
    fewest, most = evidence.widths
    ranking = evidence.ranking
    widest = min(most, _n_worthy(evidence), SHORTLIST)
    for width in range(widest, max(fewest, 2) - 1, -1):
        yield tuple(sorted(ranking[:width]))


def _n_worthy(evidence: Evidence) -> int:
    means = [round(float(scores.mean()), 12) for scores in evidence.singles.values()]
    return sum(mean >= WORTH * max(means) for mean in means)
