"""What is known of an architecture before it is run: the paper's two criteria, and its shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from statistics import fmean
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moa_dspy.architecture import COMBINES, Architecture

Matrix = NDArray[np.float64]
MOST_LAYERS: Final = 3

BLOCKS: Final = ("performance", "diversity", "structure", "members", "earlier")
"""What the response model gives each a weight of its own: the paper's criteria, and the rest."""


@dataclass(frozen=True)
class Traits:
    """Describes architectures by numbers, from the single agents' answers alone.

    Attributes:
        scores: Mean score of each agent alone, in [0, 1].
        pair: Diversity of the answers of two agents, in [0, 1]; 0 for samples of one.
        prompts: Names of the prompts that an aggregator may have.
    """

    scores: Mapping[str, float]
    pair: Callable[[str, str], float]
    prompts: Sequence[str] = ()
    _known: dict[Architecture, dict[str, tuple[float, ...]]] = field(default_factory=dict)

    def blocks(self, architectures: Sequence[Architecture]) -> dict[str, Matrix]:
        """Return one (architectures, traits) matrix per block."""
        found = [self._of(one) for one in architectures]
        return {block: np.array([one[block] for one in found], np.float64) for block in BLOCKS}

    def _of(self, one: Architecture) -> dict[str, tuple[float, ...]]:
        if one not in self._known:
            self._known[one] = {
                "performance": self._performance(one),
                "diversity": self._diversity(one),
                "structure": self._structure(one),
                "members": self._members(one),
                "earlier": self._earlier(one),
            }
        return self._known[one]

    def _performance(self, one: Architecture) -> tuple[float, ...]:
        """Of who is read last the mean, best and first; mean of who proposes first; who answers."""
        first, last = (one.layers[0], one.layers[-1]) if one.layers else ((one.aggregator,),) * 2
        read = [self.scores[str(name)] for name in last]
        # Who decides a vote, or a consensus without a model, writes nothing.
        writer = self.scores[str(one.aggregator)] if one.aggregator_calls_a_model else max(read)
        proposes = fmean(self.scores[str(name)] for name in first)
        # By name is no order that means anything.
        asks = one.order and one.aggregator_calls_a_model
        reads_first = self.scores[one.order[0]] if asks else fmean(read)
        return fmean(read), max(read), reads_first, proposes, writer

    def _diversity(self, one: Architecture) -> tuple[float, ...]:
        """Mean over pairs of who is read last, and of who proposes first."""
        return (
            (self._mean_pair(one.layers[-1]), self._mean_pair(one.layers[0]))
            if one.layers
            else (0.0, 0.0)
        )

    def _mean_pair(self, layer: Sequence[str]) -> float:
        pairs = [(a, b) for i, a in enumerate(layer) for b in layer[i + 1 :]]
        return fmean(self.pair(a, b) for a, b in pairs) if pairs else 0.0

    def _structure(self, one: Architecture) -> tuple[float, ...]:
        depth = [float(one.depth == d) for d in range(1, MOST_LAYERS + 1)]
        combine = [float(bool(one.layers) and one.combine == name) for name in COMBINES]
        width = log(len(one.layers[-1])) if one.layers else 0.0
        copies = sum(len(layer) - len(set(layer)) for layer in one.layers)
        prompts = [float(one.prompt == name) for name in self.prompts]
        asks = float(one.aggregator_calls_a_model and bool(one.layers))
        return (*depth, *combine, width, float(copies), asks, float(bool(one.order)), *prompts)

    def _members(self, one: Architecture) -> tuple[float, ...]:
        """Share of each agent in what is read last, and who writes the answer."""
        shares = self._shares(one.layers[-1] if one.layers else ())
        writes = [
            float(one.aggregator == name and one.aggregator_calls_a_model and bool(one.layers))
            for name in self.scores
        ]
        return (*shares, *writes)

    def _earlier(self, one: Architecture) -> tuple[float, ...]:
        """Share of each agent in the layers that are not read last."""
        before = one.layers[:-1][: MOST_LAYERS - 1]
        layers = [*before, *[()] * (MOST_LAYERS - 1 - len(before))]
        return tuple(share for layer in layers for share in self._shares(layer))

    def _shares(self, layer: Sequence[str]) -> list[float]:
        return [layer.count(name) / max(len(layer), 1) for name in self.scores]
