from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import ClassVar, Literal

from moa_dspy.diversity import Disagreement, DiversityMetric
from moa_dspy.optimize.objectives._base import Measured


@dataclass(frozen=True, slots=True)
class DiversityObjective:
    """Mean diversity of the texts that the last step reads; 0 for a single agent."""

    metric: DiversityMetric = field(default_factory=Disagreement)
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def __call__(self, measured: Measured, /) -> float:
        """See the protocol; in [0, 1]."""
        return fmean(self.metric(texts) if texts else 0.0 for texts in measured.layers)
