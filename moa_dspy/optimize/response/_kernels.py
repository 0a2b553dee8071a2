"""What two architectures have in common, part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moa_dspy.architecture import Architecture
from moa_dspy.optimize.response._near import Seats, nearness
from moa_dspy.optimize.response._traits import BLOCKS, Matrix, Traits

PARTS = (*BLOCKS, "near", "end")
"""What a score is a sum of, besides its mean and what is an architecture's own."""
_SMALLEST_SPREAD = 0.02


@dataclass(frozen=True)
class Kernels:
    """Compares architectures in each part; a part's weight is its standard deviation.

    Attributes:
        traits: Linear parts.
        seats: Of the part that knows no trait.
    """

    traits: Traits
    seats: Seats

    @classmethod
    def of(cls, traits: Traits) -> Kernels:
        """Return the kernels over the agents of ``traits``."""
        return cls(traits, Seats(tuple(traits.scores), traits.prompts))

    def parts(
        self, rows: Sequence[Architecture], columns: Sequence[Architecture]
    ) -> dict[str, Matrix]:
        """Return one (rows, columns) matrix per part."""
        left, right = self._scaled(rows), self._scaled(columns)
        found = {block: left[block] @ right[block].T for block in BLOCKS}
        near, end = self._nearness(rows, columns)
        return {**found, "near": near, "end": end}

    def _nearness(
        self, rows: Sequence[Architecture], columns: Sequence[Architecture]
    ) -> tuple[Matrix, Matrix]:
        """Compare whole architectures, and their last steps with what they read alone."""
        left, right, cut = self.seats.counts(rows), self.seats.counts(columns), self.seats.n_earlier
        end = nearness(left[:, cut:], right[:, cut:])
        return nearness(left[:, :cut], right[:, :cut]) * end, end

    def own(self, architectures: Sequence[Architecture]) -> dict[str, Matrix]:
        """Return each architecture compared with itself, one vector per part."""
        scaled = self._scaled(architectures)
        found = {block: (scaled[block] ** 2).sum(1) for block in BLOCKS}
        alike = np.ones(len(architectures))
        return {**found, "near": alike, "end": alike}

    def _scaled(self, architectures: Sequence[Architecture]) -> Mapping[str, Matrix]:
        """Centre and scale the traits by the pool's own spread, which no trial changes."""
        blocks = self.traits.blocks(architectures)
        scores = np.array(list(self.traits.scores.values()))
        spread = max(float(scores.std()), _SMALLEST_SPREAD)
        blocks["performance"] = (blocks["performance"] - scores.mean()) / spread
        blocks["diversity"] = blocks["diversity"] / self._pair_spread
        return {name: block / np.sqrt(block.shape[1]) for name, block in blocks.items()}

    @cached_property
    def _pair_spread(self) -> float:
        names = list(self.traits.scores)
        pairs = [self.traits.pair(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        return max(float(np.mean(pairs)) if pairs else 0.0, _SMALLEST_SPREAD)
