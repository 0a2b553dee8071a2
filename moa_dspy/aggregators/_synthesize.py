from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moa_dspy.aggregators._base import Question, Steps, node_name
from moa_dspy.response import Response
from moa_dspy.signatures import REFERENCES


@dataclass(frozen=True)
class Synthesize:
    """Lets an agent write the answer after reading all responses (the paper's aggregator)."""

    agent: str
    module: Any
    parents: tuple[str, ...]
    guard: Callable[[Sequence[str]], list[str]]

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Ask the aggregator once."""
        node = node_name("synthesize", self.agent, parents=self.parents)
        references = self.guard([response.text for response in responses])
        question = Question(node, self.agent, 0, self.module, {**inputs, REFERENCES: references})
        (answer,) = yield [question]
        return answer
