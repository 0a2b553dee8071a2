"""What the score of an architecture depends on: one surface per family, before scaling."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import combinations
from math import log
from statistics import fmean
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.space import SearchSpace

Matrix = NDArray[np.float64]
Surface = Callable[[Architecture], float]

AGENTS = tuple(f"a{k:02}" for k in range(12))


class Draws:
    """The random numbers of one world: strengths of agents, how unlike they are, interactions."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.seed, self.space, self.names = seed, space, space.agents
        self.rng = np.random.default_rng([77, seed])
        n = len(self.names)
        self.place = {name: k for k, name in enumerate(self.names)}
        self.strength = self.rng.normal(0.5, 0.08, n)
        vendor = self.rng.integers(0, max(n // 3, 1), n)
        unlike = 0.2 + 0.3 * (vendor[:, None] != vendor) + self.rng.normal(0, 0.04, (n, n))
        self.unlike: Matrix = (unlike + unlike.T) / 2 * (1 - np.eye(n))

    def half_and_half(self, left: Surface, right: Surface) -> Surface:
        """Return the sum of two surfaces that spread equally over random architectures."""
        rng = random.Random(f"half-{self.seed}")
        drawn = [arch for arch in (self.space.draw(rng) for _ in range(300)) if arch.layers]
        spreads = [float(np.std([part(arch) for arch in drawn])) for part in (left, right)]
        return lambda arch: left(arch) / spreads[0] + right(arch) / spreads[1]

    def table(self, *shape: int, sd: float = 0.1) -> Matrix:
        """Return normal numbers."""
        return self.rng.normal(0, sd, shape)

    def seats(self, layer: Sequence[str]) -> list[int]:
        """Return the agents of a layer as numbers."""
        return [self.place[name] for name in layer]

    def writer(self, arch: Architecture) -> int:
        """Return who writes the answer; one more than there are agents where nobody does."""
        writes = arch.aggregator_calls_a_model
        return self.place[str(arch.aggregator)] if writes else len(self.names)

    def mean_strength(self, layer: Sequence[str]) -> float:
        """Return the mean strength of a layer."""
        return fmean(self.strength[k] for k in self.seats(layer))

    def mean_unlike(self, layer: Sequence[str]) -> float:
        """Return the mean over pairs of a layer of how unlike they answer."""
        return mean_of_pairs(self.unlike, self.seats(layer))


def mean_of_pairs(table: Matrix, seats: Sequence[int]) -> float:
    """Return the mean of a symmetric table over the pairs of ``seats``."""
    return fmean(float(table[pair]) for pair in combinations(sorted(seats), 2))


def additive(draws: Draws) -> Surface:
    """A mean of strengths, diversity, width and depth: what our model holds for likely."""

    def surface(arch: Architecture) -> float:
        last, writer = arch.layers[-1], draws.writer(arch)
        writes = draws.strength[writer] if writer < len(draws.names) else 0.0
        reads = draws.mean_strength(last)
        text = 0.5 * writes + 0.5 * reads if writes else reads
        before = 0.3 * draws.mean_strength(arch.layers[0]) + 0.02 * arch.depth
        return float(text + before + 0.25 * draws.mean_unlike(last) + 0.03 * log(len(last)))

    return surface


def pairs(draws: Draws) -> Surface:
    """Half of it: who goes well with whom in the layer that is read last."""
    n = len(draws.names)
    table = draws.table(n, n)
    return draws.half_and_half(
        additive(draws), lambda arch: mean_of_pairs(table, draws.seats(arch.layers[-1]))
    )


def triples(draws: Draws) -> Surface:
    """Half of it: which two go well together depends on who writes."""
    n = len(draws.names)
    table = draws.table(n + 1, n, n)

    def interaction(arch: Architecture) -> float:
        return mean_of_pairs(table[draws.writer(arch)], draws.seats(arch.layers[-1]))

    return draws.half_and_half(additive(draws), interaction)


def order(draws: Draws) -> Surface:
    """Half of it: each writer trusts what it reads first, and each likes others there."""
    n = len(draws.names)
    table = draws.table(n + 1, n)

    def interaction(arch: Architecture) -> float:
        first = arch.layers[-1][arch.reading[0]]
        return float(table[draws.writer(arch), draws.place[first]])

    return draws.half_and_half(additive(draws), interaction)


def reversals(draws: Draws) -> Surface:
    """What helps one writer hurts another: strength, diversity, depth and single members."""
    n = len(draws.names)
    signs = draws.rng.choice([-1.0, 1.0], (n + 1, 3))
    likes = draws.table(n + 1, n, sd=0.05)

    def surface(arch: Architecture) -> float:
        writer, last = draws.writer(arch), arch.layers[-1]
        strong, unlike, deep = signs[writer]
        affinity = fmean(float(likes[writer, k]) for k in draws.seats(last))
        reads = strong * draws.mean_strength(last) + 0.5 * unlike * draws.mean_unlike(last)
        return float(reads + 0.03 * deep * arch.depth + affinity)

    return surface


def roles(draws: Draws) -> Surface:
    """Who proposes, who refines and who writes well has nothing to do with who answers well."""
    n = len(draws.names)
    first, later, last, writer = (draws.table(n) for _ in range(4))
    writes, deep = np.append(writer, 0.0), draws.table(4, sd=0.05)

    def surface(arch: Architecture) -> float:
        gain = fmean(first[draws.seats(arch.layers[0])]) + writes[draws.writer(arch)]
        if arch.depth > 1:
            gain += fmean(last[draws.seats(arch.layers[-1])])
        if arch.depth > 2:
            gain += fmean(later[draws.seats(arch.layers[1])])
        return float(gain + deep[arch.depth])

    return surface


def nothing(draws: Draws) -> Surface:
    """Each architecture has a score of its own, and none tells anything of another."""

    def surface(arch: Architecture) -> float:
        rng = np.random.default_rng(
            [draws.seed, crc32(str(arch.layers).encode()), draws.writer(arch)]
        )
        return float(rng.normal(0.5, 0.1))

    return surface


def _space(n_agents: int, depth: int, orders: tuple[str, ...] = ("name",)) -> SearchSpace:
    return SearchSpace(AGENTS[:n_agents], max_depth=depth, orders=orders)


FAMILIES: dict[str, tuple[SearchSpace, Callable[[Draws], Surface]]] = {
    "additive": (_space(12, 3), additive),
    "roles": (_space(8, 3), roles),
    "reversals": (_space(12, 3), reversals),
    "pairs": (_space(8, 2), pairs),
    "triples": (_space(6, 2), triples),
    "order": (_space(6, 2, ("name", "best_first", "best_last")), order),
    "nothing": (_space(6, 1), nothing),
}
"""Spaces are smaller where few trials can find out little."""
