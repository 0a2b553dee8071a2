"""What an objective is: one number per architecture, and which way is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of an architecture when it is judged; all per example, in the same order.

    Attributes:
        scores: The metric.
        reference: The metric of the best single agent.
        layers: Texts that the last step read.
        calls: Requests.
        usd: Price.
        seconds: Time to the answer.
    """

    scores: Sequence[float]
    reference: Sequence[float]
    layers: Sequence[Sequence[str]]
    calls: Sequence[float]
    usd: Sequence[float]
    seconds: Sequence[float]


class Objective(Protocol):
    """Reduces raw facts to one finite float; asks no model, so it can be computed again."""

    direction: ClassVar[Literal["maximize", "minimize"]]

    def __call__(self, measured: Measured, /) -> float:
        """Return the value; ``measured`` holds at least one example."""
        ...
