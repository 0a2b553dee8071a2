"""A pool, a space, and what every architecture truly scores and is seen to score on rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from math import sqrt
from statistics import NormalDist
from zlib import crc32

import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.selection import canonical_evidence
from moa_dspy.optimize.space import SearchSpace
from tests.bench.economy._families import Draws, Matrix, Surface
from tests.bench.economy._optimum import best_of

GAIN = 0.2
"""By how much the optimum is truly better than the best single agent."""
IN_COMMON = 0.7
"""Share of the variance of an answer's quality that is the row's difficulty."""
DIVERSITY_ERROR = 0.02
_NORMAL = NormalDist()


class World:
    """One draw of a family; the same seed is the same world.

    A surface is scaled so that the optimum gains ``GAIN`` over the best single agent: families
    differ in shape, not in how much there is to be found. Answers are right or wrong, drawn per
    architecture; rows have a difficulty in common.
    """

    def __init__(
        self, space: SearchSpace, family: Callable[[Draws], Surface], *, seed: int, n_rows: int
    ) -> None:
        self.space, self.seed, self.n_rows = space, seed, n_rows
        self._draws = Draws(space, seed)
        self._surface = family(self._draws)
        self._difficulty = np.random.default_rng([78, seed]).standard_normal(n_rows)
        self.optimum, self._top = best_of(space, self._surface, seed)
        self._truths: dict[Architecture, float] = {}

    @cached_property
    def singles(self) -> tuple[Architecture, ...]:
        """Every agent alone, in the pool's order."""
        return tuple(Architecture.single(name) for name in self.space.agents)

    @cached_property
    def best_single(self) -> float:
        """What the best agent truly scores alone."""
        return float(self._draws.strength.max())

    def truth(self, arch: Architecture) -> float:
        """Return the score on all questions there are, in [0.02, 0.98]."""
        if arch not in self._truths:
            self._truths[arch] = float(np.clip(self._scaled(arch), 0.02, 0.98))
        return self._truths[arch]

    def _scaled(self, arch: Architecture) -> float:
        if not arch.layers:
            return float(self._draws.strength[self.space.agents.index(str(arch.aggregator))])
        # The mean of random mixtures is no better than the best single agent.
        share = (self._surface(arch) - self._usual) / (self._top - self._usual)
        return self.best_single + GAIN * share

    @cached_property
    def _usual(self) -> float:
        """The surface at what a random mixture reaches."""
        rng = random.Random(f"usual-{self.seed}")
        drawn = (self.space.draw(rng) for _ in range(300))
        return float(np.mean([self._surface(arch) for arch in drawn if arch.layers]))

    def closed(self, arch: Architecture) -> float:
        """Return the share of the distance from the best single to the optimum."""
        return (self.truth(arch) - self.best_single) / GAIN

    def answers(self, arch: Architecture) -> Matrix:
        """Return right (1) or wrong (0) per row."""
        # Who decides the ties of a vote does not matter here.
        known = arch if arch.combine != "vote" else replace(arch, aggregator=None, order=())
        rng = np.random.default_rng([79, self.seed, crc32(str(known).encode())])
        own = rng.standard_normal(self.n_rows)
        quality = sqrt(IN_COMMON) * self._difficulty + sqrt(1 - IN_COMMON) * own
        return (quality < _NORMAL.inv_cdf(self.truth(arch))).astype(np.float64)

    @cached_property
    def alone(self) -> dict[str, Matrix]:
        """What every agent is seen to answer alone."""
        return {str(single.aggregator): self.answers(single) for single in self.singles}

    @cached_property
    def ranking(self) -> tuple[str, ...]:
        """Agents, best on the rows first."""
        return tuple(sorted(self.alone, key=lambda name: -float(self.alone[name].mean())))

    def canonical(self, arch: Architecture) -> Architecture:
        """Give an architecture its final form, as a study does."""
        return canonical_evidence(arch, self.ranking)

    @cached_property
    def _seen_unlike(self) -> Matrix:
        n = len(self.space.agents)
        error = np.random.default_rng([80, self.seed]).normal(0, DIVERSITY_ERROR, (n, n))
        return (self._draws.unlike + (error + error.T) / 2) * (1 - np.eye(n))

    def pair(self, a: str, b: str) -> float:
        """Return the diversity of two agents as it is seen on few rows."""
        place = self.space.agents.index
        return float(self._seen_unlike[place(a), place(b)])
