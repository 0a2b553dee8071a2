"""What a question costs the user, in points of score: where a proposal looks on a trade-off."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from moa_dspy.architecture import Architecture

COSTS: Final = ("usd", "seconds", "calls")
"""Objectives that have a price."""
MOST_PER_COST: Final = 0.2
"""Points of score that the dearest single agent's cost is worth at most: beyond that only single
agents would be proposed, and these are all measured at first."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What architectures will cost per question, from what the single agents cost.

    A seat is taken to cost what its agent costs alone: what it reads besides is not known yet.

    Attributes:
        usd: Mean of each agent alone.
        seconds: Mean of each agent alone.
    """

    usd: Mapping[str, float]
    seconds: Mapping[str, float]

    def costs(self, one: Architecture) -> dict[str, float]:
        """Return usd, seconds and calls; of seconds the critical path.

        The slowest proposer of each layer, then who does the last step.
        """
        last = [str(one.aggregator)] if one.aggregator_calls_a_model else []
        layers = [*one.layers, last] if last else list(one.layers)
        return {
            "usd": sum(self.usd[name] for layer in layers for name in layer),
            "seconds": sum(max(self.seconds[name] for name in layer) for layer in layers),
            "calls": float(sum(map(len, layers))),
        }


@dataclass(frozen=True, slots=True)
class Prices:
    """Weighs costs against the score, otherwise for each proposal: a random scalarisation.

    Every weight is a point of the trade-off, so proposals spread along it (Knowles 2006, ParEGO;
    Paria et al. 2020). A third of proposals look at the score alone: its best is what is picked.

    Args:
        forecast: Of costs.
        objectives: Names of the study's objectives; those without a cost are passed over.
        seed: Of the weights.
    """

    forecast: Forecast
    objectives: Sequence[str]
    seed: int

    def at(self, n_measured: int) -> Callable[[Architecture], float]:
        """Return the price of an architecture for the proposal after so many were measured."""
        counted = [name for name in COSTS if name in self.objectives]
        if not counted or n_measured % 3 == 0:
            return _free
        rng = random.Random(f"prices-{self.seed}-{n_measured}")
        # Of the square of a uniform number half lies below a quarter: cheap ones are few.
        weights = {name: MOST_PER_COST * rng.random() ** 2 / len(counted) for name in counted}
        dearest = self._dearest_singles()

        def price(one: Architecture) -> float:
            costs = self.forecast.costs(one)
            return sum(weight * costs[name] / dearest[name] for name, weight in weights.items())

        return price

    def _dearest_singles(self) -> dict[str, float]:
        return {
            "usd": max(self.forecast.usd.values(), default=0.0) or 1.0,
            "seconds": max(self.forecast.seconds.values(), default=0.0) or 1.0,
            "calls": 1.0,
        }


def _free(_: Architecture) -> float:
    return 0.0
