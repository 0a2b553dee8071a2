from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar, Literal

from moa_dspy.optimize.objectives._base import Measured


@dataclass(frozen=True, slots=True)
class CallsObjective:
    """Requests to models per question."""

    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"

    def __call__(self, measured: Measured, /) -> float:
        """See the protocol."""
        return fmean(measured.calls)


@dataclass(frozen=True, slots=True)
class UsdObjective:
    """Price per question, at the pool's prices; a stored call costs what it cost."""

    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"

    def __call__(self, measured: Measured, /) -> float:
        """See the protocol."""
        return fmean(measured.usd)


@dataclass(frozen=True, slots=True)
class SecondsObjective:
    """Time to the answer per question: the slowest proposer of each layer, then the aggregator."""

    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"

    def __call__(self, measured: Measured, /) -> float:
        """See the protocol."""
        return fmean(measured.seconds)
