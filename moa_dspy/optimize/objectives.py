"""Objectives of a study: one number of what an architecture measured, and its direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import ClassVar, Literal, Protocol

from moa_dspy.diversity import Disagreement, DiversityMetric


@dataclass(frozen=True, slots=True)
class MeasuredArchitecture:
    """The measurements of one architecture that objectives read, per example, in one order.

    Attributes:
        scores: The metric.
        reference: The metric of the best single agent; None where scores are preferences over a
            reference, which are win rates as they are.
        layers: Texts that the last step read.
        calls: Requests.
        usd: Price.
        seconds: Time to the answer.
    """

    scores: Sequence[float]
    reference: Sequence[float] | None
    layers: Sequence[Sequence[str]]
    calls: Sequence[float]
    usd: Sequence[float]
    seconds: Sequence[float]


class Objective(Protocol):
    """Reduces raw facts to one finite float; asks no model, so it can be computed again."""

    direction: ClassVar[Literal["maximize", "minimize"]]

    def __call__(self, measured: MeasuredArchitecture, /) -> float:
        """Return the value; ``measured`` holds at least one example."""
        ...


@dataclass(frozen=True, slots=True)
class CallsObjective:
    """Requests to models per question."""

    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"

    def __call__(self, measured: MeasuredArchitecture, /) -> float:
        """See the protocol."""
        return fmean(measured.calls)


@dataclass(frozen=True, slots=True)
class UsdObjective:
    """Price per question, at the pool's prices; a stored call costs what it cost."""

    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"

    def __call__(self, measured: MeasuredArchitecture, /) -> float:
        """See the protocol."""
        return fmean(measured.usd)


@dataclass(frozen=True, slots=True)
class SecondsObjective:
    """Time to the answer per question: the slowest proposer of each layer, then the aggregator."""

    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"

    def __call__(self, measured: MeasuredArchitecture, /) -> float:
        """See the protocol."""
        return fmean(measured.seconds)


@dataclass(frozen=True, slots=True)
class DiversityObjective:
    """Mean diversity of the texts that the last step reads; 0 for a single agent."""

    metric: DiversityMetric = field(default_factory=Disagreement)
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def __call__(self, measured: MeasuredArchitecture, /) -> float:
        """See the protocol; in [0, 1]."""
        return fmean(self.metric(texts) if texts else 0.0 for texts in measured.layers)


@dataclass(frozen=True, slots=True)
class WinRateObjective:
    """Share of examples won against the best single agent, ties counting one half.

    Where a judge picks, the mean preference over the study's reference.
    """

    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def __call__(self, measured: MeasuredArchitecture, /) -> float:
        """See the protocol; in [0, 1], and 0.5 for the best single agent itself."""
        if measured.reference is None:
            return fmean(measured.scores)
        pairs = zip(measured.scores, measured.reference, strict=True)
        return fmean(
            1.0 if ours > theirs else 0.5 if ours == theirs else 0.0 for ours, theirs in pairs
        )


@dataclass(frozen=True, slots=True)
class ScoreObjective:
    """Mean of the metric."""

    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"

    def __call__(self, measured: MeasuredArchitecture, /) -> float:
        """See the protocol; in [0, 1]."""
        return fmean(measured.scores)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "calls": CallsObjective,
    "diversity": DiversityObjective,
    "score": ScoreObjective,
    "seconds": SecondsObjective,
    "usd": UsdObjective,
    "win_rate": WinRateObjective,
}
"""Names that a study file may use. Adding a line here is the registration."""
