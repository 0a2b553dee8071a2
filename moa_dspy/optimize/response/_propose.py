"""Which architecture to measure next: the one that promises most for what it costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Final

import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.response._kernels import Kernels
from moa_dspy.optimize.response._model import Prediction, ResponseModel
from moa_dspy.optimize.response._neighbours import neighbours
from moa_dspy.optimize.response._nodes import nodes_of
from moa_dspy.optimize.response._traits import Matrix
from moa_dspy.optimize.space import SearchSpace

Price = Callable[[Architecture], float]
N_DRAWN: Final = 200
"""Architectures drawn at random per proposal, beside the neighbours of the best."""
DECIMALS: Final = 10
"""Of what is compared: the last digits depend on the machine's linear algebra and its threads."""
N_BEST: Final = 3
"""Architectures whose neighbours are looked at."""


@dataclass(slots=True)
class Proposer:
    """Proposes by expected improvement per call (Jones et al. 1998; Snoek et al. 2012, 3.2).

    Args:
        space: What may be proposed.
        kernels: Of the response model.
        settle: Gives an architecture its final form.
        seed: Of the draws.
        price_at: Returns, for a number of measured architectures, what a question costs the
            user beside its score, in points of score; nothing where the score is all that counts.
    """

    space: SearchSpace
    kernels: Kernels
    settle: Callable[[Architecture], Architecture]
    seed: int
    price_at: Callable[[int], Price] = lambda _: lambda _: 0.0
    _weights: dict[str, float] = field(default_factory=dict)
    _learned_from: int = 0
    _neighbours: dict[Architecture, list[Architecture]] = field(default_factory=dict)

    def propose(self, measured: Sequence[Architecture], scores: Matrix) -> Architecture | None:
        """Return an architecture that is not in ``measured``; None where none was found.

        Args:
            measured: In the order of measuring.
            scores: (architectures, rows), NaN where a trial was stopped.
        """
        rng = random.Random(f"propose-{self.seed}-{len(measured)}")
        if not measured:
            return next(iter(self._candidates((), rng)), None)
        model = self._model(measured, scores)
        price = self.price_at(len(measured))
        value = model.fitted() - np.array([price(one) for one in measured])
        first = np.argsort(-np.round(value, DECIMALS), kind="stable")[:N_BEST]
        best = [measured[place] for place in first]
        known_already = set(measured)
        candidates = [o for o in self._candidates(best, rng) if o not in known_already]
        if not candidates:
            return None
        prices = np.array([price(one) for one in candidates])
        gain = _improvement(model.predict(candidates), prices, value.max())
        calls = self._new_calls(measured, candidates)
        return candidates[int(np.argmax(np.round(gain / (1 + calls), DECIMALS)))]

    def _model(self, measured: Sequence[Architecture], scores: Matrix) -> ResponseModel:
        """Fit; learn how much each part explains anew after every tenth more trials."""
        is_stale = len(measured) >= 1.1 * self._learned_from
        model = ResponseModel(
            self.kernels, measured, scores, weights=None if is_stale else self._weights
        )
        if is_stale:
            self._weights, self._learned_from = model.weights, len(measured)
        return model

    def _candidates(self, best: Iterable[Architecture], rng: random.Random) -> list[Architecture]:
        near = [other for one in best for other in self._near(one)]
        drawn = (self.settle(self.space.draw(rng)) for _ in range(N_DRAWN))
        return list(dict.fromkeys((*near, *drawn)))

    def _near(self, one: Architecture) -> list[Architecture]:
        if one not in self._neighbours:
            self._neighbours[one] = [self.settle(other) for other in neighbours(one, self.space)]
        return self._neighbours[one]

    def _new_calls(self, measured: Iterable[Architecture], some: Sequence[Architecture]) -> Matrix:
        """Return how many calls per question nobody has made yet."""
        made = {node for one in measured for node in nodes_of(one)}
        return np.array([len(nodes_of(one) - made) for one in some], float)


def _improvement(predicted: Prediction, prices: Matrix, best: float) -> Matrix:
    """Return the expected improvement over ``best``."""
    gap = predicted.mean - prices - best
    z = gap / predicted.sd
    density = np.exp(-0.5 * z**2) / sqrt(2 * np.pi)
    return gap * _below(z) + predicted.sd * density


def _below(z: Matrix) -> Matrix:
    """Return the normal distribution function, to 1e-7 (Abramowitz & Stegun 26.2.17)."""
    t = 1 / (1 + 0.2316419 * np.abs(z))
    terms = (0.319381530, -0.356563782, 1.781477937, -1.821255978, 1.330274429)
    tail = (
        np.exp(-0.5 * z**2) / sqrt(2 * np.pi) * sum(c * t ** (k + 1) for k, c in enumerate(terms))
    )
    return np.where(z > 0, 1 - tail, tail)
