from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moa_dspy.aggregators._base import Question, Read, Steps, node_name
from moa_dspy.response import Response


@dataclass(frozen=True)
class Consensus:
    """Returns, verbatim, the response most like all the others; calls no model.

    Likeness is the Jaccard index of lower-case words; the first in the layer's
    order wins a tie.
    """

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Compare without asking."""
        return _most_alike(responses)
        yield  # makes this a plan that asks nothing


@dataclass(frozen=True)
class Rank:
    """Lets an agent rank the responses and returns the best verbatim (the paper's LLM ranker).

    A reply without a number of a response counts as no opinion: consensus decides.
    """

    agent: str
    module: Any
    parents: tuple[str, ...]
    read: Read

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Ask the ranker once."""
        node = node_name("select", self.agent, parents=self.parents)
        read, cuts = self.read(self.agent, self.module, inputs, responses)
        question = Question(node, self.agent, 0, self.module, read, cuts)
        (reply,) = yield [question]
        left_out = {cut.reference for cut in cuts if not cut.kept_tokens}
        numbered = [r for n, r in enumerate(responses, start=1) if n not in left_out]
        number = re.search(r"\d+", str(reply.values.get("best", "")))
        if number and 1 <= int(number[0]) <= len(numbered):
            return numbered[int(number[0]) - 1]
        return _most_alike(responses)


def _most_alike(responses: Sequence[Response]) -> Response:
    words = [frozenset(re.findall(r"\w+", response.text.casefold())) for response in responses]

    def likeness(i: int) -> float:
        others = (w for j, w in enumerate(words) if j != i)
        return sum(len(words[i] & w) / len(words[i] | w) if words[i] | w else 1.0 for w in others)

    return responses[max(range(len(responses)), key=likeness)]
