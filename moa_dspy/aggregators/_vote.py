from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moa_dspy.aggregators._base import Normalise, Steps
from moa_dspy.response import Response


@dataclass(frozen=True)
class Vote:
    """Returns a response with the most frequent answer; calls no model.

    Answers are equal when all ``fields`` are equal after ``normalise``; what a module
    adds to the signature, such as a reasoning, has no say. A tie goes to the answer of
    ``tie_breaker`` if it is among the tied ones, else to the tied answer that comes first
    in the layer's order.
    """

    fields: tuple[str, ...]
    normalise: Normalise
    tie_breaker: str | None = None

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Count without asking."""
        ballots = [self.ballot(response) for response in responses]
        counts = Counter(ballots)
        most = max(counts.values())
        tied = [i for i, ballot in enumerate(ballots) if counts[ballot] == most]
        preferred = [i for i in tied if responses[i].agent == self.tie_breaker]
        return responses[(preferred or tied)[0]]
        yield  # makes this a plan that asks nothing

    def ballot(self, response: Response) -> tuple[str, ...]:
        """Return what is counted: equal where answers are."""
        return tuple(self.normalise(str(response.values.get(name))) for name in self.fields)
