"""Who is beaten in everything that a study counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moa_dspy.optimize.objectives import (
    DiversityObjective,
    Measured,
    Objective,
    ScoreObjective,
)
from moa_dspy.optimize.racing._race import Race, Vector


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """One arm, row by row: what is to be high, and what is to be low.

    Attributes:
        gains: Of each objective that is maximised, diversity left out.
        costs: Of each objective that is minimised.
    """

    gains: Mapping[str, Vector]
    costs: Mapping[str, Vector]

    @classmethod
    def of(cls, measured: Measured, objectives: Sequence[Objective]) -> Standing:
        """Return the rows of each objective; the score where nothing else is maximised.

        Diversity neither saves an arm nor stops it: it is no end in itself.
        """
        counted = [one for one in objectives if not isinstance(one, DiversityObjective)]
        high = [one for one in counted if one.direction == "maximize"] or [ScoreObjective()]
        low = [one for one in counted if one.direction == "minimize"]
        rows = _rows(measured)
        return cls(
            gains={type(one).__name__: np.array([one(row) for row in rows]) for one in high},
            costs={type(one).__name__: np.array([one(row) for row in rows]) for one in low},
        )


def is_dominated(arm: Standing, rival: Standing, race: Race) -> bool:
    """Whether ``rival`` is better beyond doubt in every gain, and no worse in any cost.

    Both are compared on the arm's rows, the first of the rival's. Costs are compared as they
    were measured. An arm that wins anything, or is cheaper in anything, goes on.
    """
    for name, costs in arm.costs.items():
        if rival.costs[name][: len(costs)].sum() > costs.sum():
            return False
    return all(
        race.is_lost(gains, rival.gains[name][: len(gains)]) for name, gains in arm.gains.items()
    )


def _rows(measured: Measured) -> list[Measured]:
    return [
        Measured(
            scores=measured.scores[i : i + 1],
            reference=measured.reference[i : i + 1],
            layers=measured.layers[i : i + 1],
            calls=measured.calls[i : i + 1],
            usd=measured.usd[i : i + 1],
            seconds=measured.seconds[i : i + 1],
        )
        for i in range(len(measured.scores))
    ]
