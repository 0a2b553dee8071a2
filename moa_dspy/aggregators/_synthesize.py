from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moa_dspy.aggregators._base import Question, Read, Steps, node_name
from moa_dspy.response import Response


@dataclass(frozen=True)
class Synthesize:
    """Lets an agent write the answer after reading all responses (the paper's aggregator)."""

    agent: str
    module: Any
    parents: tuple[str, ...]
    read: Read

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Ask the aggregator once."""
        node = node_name("synthesize", self.agent, parents=self.parents)
        read, cuts = self.read(self.agent, self.module, inputs, responses)
        question = Question(node, self.agent, 0, self.module, read, cuts, is_final=True)
        (answer,) = yield [question]
        return answer
