"""The rivals that stand beside every pick, as architectures of the same pool."""

from __future__ import annotations

from collections.abc import Sequence

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.space import SearchSpace
from moa_dspy.pool import Pool

SELF_MOA_SAMPLES = 3
TOP_K = 3


def top_k(ranking: Sequence[str], k: int, *, combine: str = "vote") -> Architecture:
    """Return the ``k`` best single agents together; the best one decides ties, or synthesizes."""
    return Architecture((tuple(ranking[:k]),), ranking[0], combine)


def self_moa(ranking: Sequence[str], pool: Pool, *, combine: str = "vote") -> Architecture | None:
    """Return samples of the best agent (arXiv:2502.00674), or None if its samples are copies.

    A greedy agent gives one answer however often it is asked; the same model under
    another name with a temperature stands in for it.
    """
    best = pool[ranking[0]]
    twins = [name for name in ranking if pool[name].identity == best.identity]
    sampled = [name for name in twins if pool[name].temperature > 0]
    if not sampled:
        return None
    return Architecture(((sampled[0],) * SELF_MOA_SAMPLES,), sampled[0], combine)


def way(space: SearchSpace) -> str:
    """Return how the simple rivals combine: a vote where answers can be equal, else the paper's."""
    return "vote" if "vote" in space.combines else "synthesize"


def openers(ranking: Sequence[str], pool: Pool, space: SearchSpace) -> list[Architecture]:
    """Return what every study tries first: Self-MoA, each top-k, and the paper's full layers."""
    combine = way(space)
    widest = min(space.max_width, len(ranking))
    found = [top_k(ranking, k, combine=combine) for k in range(2, widest + 1)]
    if (samples := self_moa(ranking, pool, combine=combine)) is not None:
        found.insert(0, samples)
    if "synthesize" in space.combines:
        layer = tuple(ranking[:widest])
        found += [
            Architecture((layer,) * depth, ranking[0]) for depth in range(1, space.max_depth + 1)
        ]
    return found
