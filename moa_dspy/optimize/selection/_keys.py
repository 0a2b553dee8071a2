from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from moa_dspy.architecture import Architecture

Key: TypeAlias = tuple[str, ...] | Architecture
"""Different agents that vote, or one alone, by name; all else by its architecture."""

ALWAYS_TIED = 4
"""Of so few votes every one is tied where any are, so the tie-breaker decides alone."""


def key_of(architecture: Architecture) -> Key:
    """Return what is equal for two forms of one plain vote, whoever decides its ties."""
    if not architecture.layers:
        return architecture.agents
    (*before, members) = architecture.layers
    is_plain = architecture.combine == "vote" and not before and len(set(members)) == len(members)
    return members if is_plain else architecture


def architecture_of(members: Sequence[str], ranking: Sequence[str]) -> Architecture:
    """Return the vote of these members, or the single one of them."""
    if len(members) == 1:
        return Architecture.single(members[0])
    return settled(Architecture((tuple(members),), None, "vote"), ranking)


def settled(architecture: Architecture, ranking: Sequence[str]) -> Architecture:
    """Let the best voters decide ties, so that one vote is one architecture.

    As many are named as it can take to find one among the tied: of n votes at most n - 4
    are not (two pairs are tied, and nobody else agrees).
    """
    if architecture.combine != "vote":
        return architecture
    voters = sorted(architecture.layers[-1], key=ranking.index)
    first, *rest = dict.fromkeys(voters[: max(1, len(voters) - ALWAYS_TIED + 1)])
    return replace(architecture, aggregator=first, order=tuple(rest))
