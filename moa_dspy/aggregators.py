"""What the last step of a mixture is: a plan that may ask an agent, and ends with one response."""

# DOCS: aggregators/__init__: Ways to turn the last layer's responses into one answer.

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from moa_dspy.data import normalise_answer, normalise_text
from moa_dspy.prediction import Response
from moa_dspy.references import Cut

Normalise: TypeAlias = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Question:
    """A seat that is to be asked; equal nodes are one computation per example.

    Attributes:
        node: Name of the computation: who is asked, as what, having read which nodes.
        agent: Name in the pool.
        sample: Index of the independent sample.
        module: The DSPy module that asks.
        inputs: Its keyword arguments.
        cuts: What had to be cut from the references in ``inputs``.
        deadline_seconds: After how long an answer is too late; None is never.
        is_final: Whether the reply is the mixture's own answer, which may be streamed.
    """

    node: str
    agent: str
    sample: int
    module: Any
    inputs: Mapping[str, Any]
    cuts: tuple[Cut, ...] = ()
    deadline_seconds: float | None = None
    is_final: bool = False


class Read(Protocol):
    """Makes responses readable for an agent: guarded, and cut to what it can take."""

    def __call__(
        self,
        agent: str,
        module: Any,
        inputs: Mapping[str, Any],
        responses: Sequence[Response],
        /,
    ) -> tuple[Mapping[str, Any], tuple[Cut, ...]]:
        """Return the inputs with the references added, and what was cut from these."""
        ...


Steps: TypeAlias = Generator[list[Question], list[Response], Response]
"""Yields questions that may be asked at once, is sent their responses, returns the final one."""


def node_name(role: str, agent: str, sample: int = 0, *, parents: Sequence[str] = ()) -> str:
    """Return the name of a computation, which holds all that it depends on."""
    return f"{role}:{agent}#{sample}({','.join(parents)})"


class Combine(Protocol):
    """Turns the last layer's responses into one.

    ``responses`` holds at least one; every one has an answer; they stand in the
    architecture's order. The result is one of them verbatim, or a new one of the
    aggregator. Whoever is asked may fail, and then the result says so.
    """

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Plan the last step."""
        ...


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


NORMALISERS: dict[str, Normalise] = {"answer": normalise_answer, "text": normalise_text}
"""When two answers are equal: as whole texts, or by the final word or number. One line each."""
