"""Shrinks what was measured towards what the response model makes of all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moa_dspy.optimize.response import Kernels, ResponseModel, Traits
from moa_dspy.optimize.selection import Evidence, Measured


@dataclass(frozen=True, slots=True)
class ResponseShrink:
    """A ``Shrink`` of a selection.

    Attributes:
        pair: Diversity of the answers of two agents.
        prompts: Names of the prompts that were tried.
    """

    pair: Callable[[str, str], float]
    prompts: tuple[str, ...] = ()

    def __call__(
        self, evidence: Evidence, incumbent: Measured, measured: Sequence[Measured], /
    ) -> tuple[Sequence[float], Sequence[float]]:
        """See the protocol."""
        gains, errors = self.model(evidence, measured).gains(incumbent.architecture)
        return gains[: len(measured)].tolist(), errors[: len(measured)].tolist()

    def model(self, evidence: Evidence, measured: Sequence[Measured]) -> ResponseModel:
        """Return the model of all that was measured, what was stopped early included."""
        means = {name: float(scores.mean()) for name, scores in evidence.singles.items()}
        stopped = [one for one in evidence.measured if not one.is_whole]
        known = [*measured, *stopped]
        return ResponseModel(
            Kernels.of(Traits(means, self.pair, self.prompts)),
            [one.architecture for one in known],
            np.array([one.scores for one in known]),
        )
