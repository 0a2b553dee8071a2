from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar, Literal

from moa_dspy.optimize.objectives._base import Measured


@dataclass(frozen=True, slots=True)
class WinRateObjective:
    """Share of examples won against the best single agent, ties counting one half."""

    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def __call__(self, measured: Measured, /) -> float:
        """See the protocol; in [0, 1], and 0.5 for the best single agent itself."""
        pairs = zip(measured.scores, measured.reference, strict=True)
        return fmean(
            1.0 if ours > theirs else 0.5 if ours == theirs else 0.0 for ours, theirs in pairs
        )


@dataclass(frozen=True, slots=True)
class ScoreObjective:
    """Mean of the metric."""

    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def __call__(self, measured: Measured, /) -> float:
        """See the protocol; in [0, 1]."""
        return fmean(measured.scores)
