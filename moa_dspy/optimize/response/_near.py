"""How much two architectures have in common: that of which no list of traits speaks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moa_dspy.architecture import COMBINES, Architecture
from moa_dspy.optimize.response._traits import MOST_LAYERS, Matrix

LENGTH = 3.0
"""Differences after which two architectures have 1/e in common: a swapped seat is two."""


class Seats:
    """Counts who sits where, for the number of differences between two architectures."""

    def __init__(self, agents: Sequence[str], prompts: Sequence[str] = ()) -> None:
        self._agents, self._prompts = tuple(agents), tuple(prompts)
        self._known: dict[Architecture, tuple[float, ...]] = {}

    @property
    def n_earlier(self) -> int:
        """Number of places of layers that are not read last; they come first."""
        return (MOST_LAYERS - 1) * len(self._agents)

    def counts(self, architectures: Sequence[Architecture]) -> Matrix:
        """Return (architectures, places); the sum of absolute differences counts them."""
        for one in architectures:
            if one not in self._known:
                self._known[one] = self._of(one)
        return np.array([self._known[one] for one in architectures], np.float64)

    def _of(self, one: Architecture) -> tuple[float, ...]:
        earlier = one.layers[:-1][: MOST_LAYERS - 1]
        layers = [*earlier, *[()] * (MOST_LAYERS - 1 - len(earlier))]
        last = [float(one.layers[-1].count(name)) if one.layers else 0.0 for name in self._agents]
        seats = [float(layer.count(name)) for layer in layers for name in self._agents]
        asks = one.aggregator_calls_a_model
        writer = [float(asks and one.aggregator == name) for name in self._agents]
        combine = [float(bool(one.layers) and one.combine == name) for name in COMBINES]
        prompt = [float(one.prompt == name) for name in self._prompts]
        first = [float(asks and one.order[:1] == (name,)) for name in self._agents]
        return (*seats, *last, *writer, *combine, *prompt, *first)


def nearness(rows: Matrix, columns: Matrix) -> Matrix:
    """Return exp(-differences / LENGTH), (rows, columns): a kernel, as a product of such."""
    gaps = np.zeros((len(rows), len(columns)))
    gap = np.empty_like(gaps)
    for place in range(rows.shape[1]):
        np.subtract(rows[:, place, None], columns[None, :, place], out=gap)
        gaps += np.abs(gap, out=gap)
    return np.exp(-gaps / LENGTH)
