"""Combiners, which turn the responses of the last layer into one answer (vote, select, write).

Each is a generator that may ask an agent, and ends with one response.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Protocol, TypeAlias

from moa_dspy.data.answers import normalise_answer, normalise_text, normalise_version
from moa_dspy.data.tables import comparable
from moa_dspy.prediction import Question, Response, fields_of_answer
from moa_dspy.references import Cut
from moa_dspy.signatures import ANALYSIS_HEADING

Normalise: TypeAlias = Callable[[str], str]
"""Maps texts that are equal answers to equal texts."""

Ballot: TypeAlias = tuple[Hashable, ...]
"""The answer of a response as a vote compares it: equal answers are equal values."""


Read: TypeAlias = Callable[
    [str, Any, Mapping[str, Any], Sequence[Response]], tuple[Mapping[str, Any], tuple[Cut, ...]]
]
"""Adds responses to the inputs of an agent's module, as data; also returns the cuts."""

Steps: TypeAlias = Generator[list[Question], list[Response], Response]
"""Yields questions that may be asked at once, is sent their responses, returns the final one."""


Rounds: TypeAlias = Sequence[Sequence[Response]]
"""The replies to the questions of a last step, round by round."""


def node_name(role: str, agent: str, sample: int = 0, *, parents: Sequence[str] = ()) -> str:
    """Return the name of a computation, which contains everything that its result depends on."""
    return _named(role, agent, sample, tuple(parents))


@lru_cache(maxsize=10_000)
def _named(role: str, agent: str, sample: int, parents: tuple[str, ...]) -> str:
    # Every row of an architecture has the same nodes, so names are made once.
    return f"{role}:{agent}#{sample}({','.join(parents)})"


class Combine(Protocol):
    """Turns the last layer's responses into one.

    ``responses`` has at least one element; all have an answer, and are in the architecture's order.
    The result is one of them verbatim, or a new response of the aggregator. If the aggregator
    fails, the result is a response with that failure.
    """

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Yield the questions of the last step and return its response."""
        ...


@dataclass(frozen=True)
class Consensus:
    """Returns the response that is most similar to all others, verbatim; calls no model.

    Similarity is the Jaccard index of lower-case words; the first in the layer's order wins a tie.
    """

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Return the response most similar to the others; yields no question."""
        return _most_alike(responses)
        yield  # makes this a generator


@dataclass(frozen=True)
class Rank:
    """Lets an agent rank the responses and returns the best verbatim (the paper's LLM ranker).

    A reply chooses by ``[[2]]``, or by the only number in it. After any other reply consensus
    decides, and ``Answer.is_undecided`` is true.
    """

    agent: str
    module: Any
    parents: tuple[str, ...]
    read: Read

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Yield the question to the ranker and return the response that it chose."""
        node = node_name("select", self.agent, parents=self.parents)
        read, cuts = self.read(self.agent, self.module, inputs, responses)
        question = Question(node, self.agent, 0, self.module, read, cuts)
        (reply,) = yield [question]
        return ranked_first(reply, responses, cuts) or _most_alike(responses)

    def is_undecided(self, responses: Sequence[Response], rounds: Rounds) -> bool:
        """Return whether the replies of a run left the choice to consensus."""
        ((reply,),) = rounds
        return ranked_first(reply, responses, reply.cuts) is None


@dataclass(frozen=True)
class Knockout:
    """Lets a judge compare two responses at a time and returns the last winner verbatim.

    The first two are compared, then the winner and the next one, so ``n`` responses take n - 1
    comparisons. Each is made in both orders at once, as judges favour a position. Unless both
    replies name the same response, the earlier of the two stays. Equal texts are not compared.
    """

    agent: str
    module: Any
    parents: tuple[str, ...]
    read: Read

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Yield two questions to the judge per comparison and return the last winner."""
        best, *others = responses
        for other in others:
            if other.text == best.text:
                continue
            orders = ((best, other), (other, best))
            questions = [self._question(inputs, order, responses) for order in orders]
            replies = yield questions
            best = _winner(replies, best, other) or best
        return best

    def _question(
        self, inputs: Mapping[str, Any], pair: Sequence[Response], responses: Sequence[Response]
    ) -> Question:
        read, cuts = self.read(self.agent, self.module, inputs, pair)
        # The parents' names alone would not identify a pair, as some of them may have failed.
        places = [
            str(place) for response in pair for place, r in enumerate(responses) if r is response
        ]
        node = node_name("knockout", self.agent, parents=(*self.parents, *places))
        return Question(node, self.agent, 0, self.module, read, cuts)

    def is_undecided(self, responses: Sequence[Response], rounds: Rounds) -> bool:
        """Return whether the replies of a run left a comparison undecided."""
        best, *others = responses
        replies = iter(rounds)
        for other in others:
            if other.text == best.text:
                continue
            winner = _winner(next(replies), best, other)
            if winner is None:
                return True
            best = winner
        return False


def _winner(replies: Sequence[Response], first: Response, second: Response) -> Response | None:
    """Return the response that both replies name; the second read them in the other order."""
    reply, other = replies
    named = ranked_first(reply, (first, second), reply.cuts)
    return named if named is ranked_first(other, (second, first), other.cuts) else None


_CHOICE: Final = re.compile(r"\[\[\s*([0-9]{1,6})\s*\]\]")
_NUMBER: Final = re.compile(r"[-\u2212]?[0-9]+(?:[.,][0-9]+)*")


def ranked_first(
    reply: Response, responses: Sequence[Response], cuts: Sequence[Cut]
) -> Response | None:
    """Return the response that a ranker's reply names, None if it does not name exactly one.

    Args:
        reply: The ranker's own response.
        responses: The responses that it was to rank.
        cuts: The references that were cut; a reference that was left out had no number.
    """
    left_out = {cut.reference for cut in cuts if not cut.kept_tokens}
    numbered = [r for n, r in enumerate(responses, start=1) if n not in left_out]
    number = named_number(reply)
    return numbered[number - 1] if number is not None and number <= len(numbered) else None


def named_number(reply: Response) -> int | None:
    """Return the number that a ranker's or judge's reply names, None if it is not exactly one."""
    text = str(reply.values.get("best", ""))
    named = set(_CHOICE.findall(text) or _NUMBER.findall(text))
    number = named.pop() if len(named) == 1 else ""
    is_number = number.isdecimal() and len(number) <= 6 and int(number) >= 1
    return int(number) if is_number else None


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
        """Yield the question to the aggregator and return its response."""
        node = node_name("synthesize", self.agent, parents=self.parents)
        read, cuts = self.read(self.agent, self.module, inputs, responses)
        question = Question(node, self.agent, 0, self.module, read, cuts, is_final=True)
        (answer,) = yield [question]
        return answer


@dataclass(frozen=True)
class Fuse:
    """Lets an analyst compare the responses, and an agent write the answer after reading both.

    The analysis is read as the last of the references, marked as data and limited like them. If the
    analyst fails, the answer is written without it.
    """

    agent: str
    module: Any
    parents: tuple[str, ...]
    read: Read
    analyst: str
    analyst_module: Any

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Yield the question to the analyst, then that to the agent, and return its response."""
        node = node_name("analyse", self.analyst, parents=self.parents)
        read, cuts = self.read(self.analyst, self.analyst_module, inputs, responses)
        (analysis,) = yield [Question(node, self.analyst, 0, self.analyst_module, read, cuts)]
        last = [replace(analysis, text=f"{ANALYSIS_HEADING}\n{analysis.text}")]
        node = node_name("fuse", self.agent, parents=(*self.parents, node))
        references = [*responses, *(last if analysis.has_answer else [])]
        read, cuts = self.read(self.agent, self.module, inputs, references)
        (answer,) = yield [Question(node, self.agent, 0, self.module, read, cuts, is_final=True)]
        return answer


@dataclass(frozen=True)
class Vote:
    """Returns a response with the answer of the greatest weight; calls no model.

    Answers are equal if all ``fields`` are equal by value (see ``ballot_of``); fields that a module
    adds to the signature are ignored, and so are failed agents. The weight of an answer is the sum
    of the weights of the agents that gave it. Among the responses with the heaviest answer the
    first is returned in this order: those of ``tie_breaker``, then those of heavier agents, then in
    the order of reading.

    Attributes:
        fields: The output fields that make up an answer.
        normalise: Maps texts that are equal answers to equal texts.
        tie_breaker: Name of an agent.
        weights: Whole numbers by agent, ``Architecture.integer_weights``; an agent
            that is not named counts 1.
    """

    fields: tuple[str, ...]
    normalise: Normalise
    tie_breaker: str | None = None
    weights: Mapping[str, int] = field(default_factory=dict[str, int])

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Return a response with the heaviest answer; yields no question."""
        totals: Counter[Ballot] = Counter()
        ballots = [self.ballot(response) for response in responses]
        for response, ballot in zip(responses, ballots, strict=True):
            totals[ballot] += self.weights.get(response.agent, 1)
        most = max(totals.values())
        return next(
            responses[i]
            for i in priority([r.agent for r in responses], self.tie_breaker, self.weights)
            if totals[ballots[i]] == most
        )
        yield  # makes this a generator

    def ballot(self, response: Response) -> Ballot:
        """Return the answer of a response in the form in which a vote compares it."""
        return ballot_of(response.values, self.fields, self.normalise)


def priority(
    agents: Sequence[str], tie_breaker: str | None, weights: Mapping[str, int]
) -> list[int]:
    """Return the indices of a vote's members, given in order of reading, in order of priority."""

    def rank(place: int) -> tuple[bool, int]:
        return agents[place] != tie_breaker, -weights.get(agents[place], 1)

    return sorted(range(len(agents)), key=rank)


def ballot_of(values: Mapping[str, Any], fields: Sequence[str], normalise: Normalise) -> Ballot:
    """Return the values of ``fields`` in a form in which equal answers are equal.

    Typed answers are equal by value: 3 and 3.0, mappings and sets in any order. Texts are equal
    after ``normalise``, in a list or a model too.
    """
    return tuple(comparable(values.get(name), normalise) for name in fields_of_answer(fields))


NORMALISERS: dict[str, Normalise] = {
    "answer": normalise_answer,
    "text": normalise_text,
    "version": normalise_version,
}
"""Ways to compare two texts as answers: as whole texts, or by the final word or number.

``version`` reads the final word like ``answer``, but "3.10" and "3.1" differ.
"""
