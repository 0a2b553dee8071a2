"""Ways to turn the last layer's responses into one answer: vote, select, knockout, and writing.

Each is a plan that may ask an agent, and ends with one response.
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
from moa_dspy.prediction import Question, Response
from moa_dspy.references import Cut
from moa_dspy.signatures import ANALYSIS_HEADING

Normalise: TypeAlias = Callable[[str], str]
"""Texts that are equal answers become equal texts."""

Ballot: TypeAlias = tuple[Hashable, ...]
"""What a vote counts of one response; equal where answers are."""


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


Rounds: TypeAlias = Sequence[Sequence[Response]]
"""What was replied to the questions of a last step, round by round."""


def node_name(role: str, agent: str, sample: int = 0, *, parents: Sequence[str] = ()) -> str:
    """Return the name of a computation, which holds all that it depends on."""
    return _named(role, agent, sample, tuple(parents))


@lru_cache(maxsize=10_000)
def _named(role: str, agent: str, sample: int, parents: tuple[str, ...]) -> str:
    # Every row of an architecture has the same nodes; a text that is known is hashed once.
    return f"{role}:{agent}#{sample}({','.join(parents)})"


class Combine(Protocol):
    """Turns the last layer's responses into one.

    ``responses`` holds at least one; every one has an answer; they stand in the
    architecture's order. The result is one of them verbatim, or a new one of the
    aggregator. The agent that is asked may fail, and then the result says so.
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

    A choice is ``[[2]]``, or a reply with one number in it. A reply without a number of a
    response, or with several numbers, is no opinion: then consensus decides, and the
    prediction's facts say so (``Answer.is_undecided``).
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
        return ranked_first(reply, responses, cuts) or _most_alike(responses)

    def is_undecided(self, responses: Sequence[Response], rounds: Rounds) -> bool:
        """Say from the replies of a run if it was left to consensus."""
        ((reply,),) = rounds
        return ranked_first(reply, responses, reply.cuts) is None


@dataclass(frozen=True)
class Knockout:
    """Lets a judge compare two responses at a time and returns the last winner verbatim.

    The first two meet, then the winner and the next one, so ``n`` responses take n - 1
    pairings. Each is judged in both orders at once, as judges favour a place. Unless both
    replies name the same response, the one that is read earlier stays. Texts that are the
    same are not compared.
    """

    agent: str
    module: Any
    parents: tuple[str, ...]
    read: Read

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Ask the judge twice per pairing."""
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
        # The parents' names do not tell which of them failed, so the places alone name a pairing.
        places = [str(place) for one in pair for place, r in enumerate(responses) if r is one]
        node = node_name("knockout", self.agent, parents=(*self.parents, *places))
        return Question(node, self.agent, 0, self.module, read, cuts)

    def is_undecided(self, responses: Sequence[Response], rounds: Rounds) -> bool:
        """Say from the replies of a run if a pairing was not decided by the judge."""
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
    one, other = replies
    named = ranked_first(one, (first, second), one.cuts)
    return named if named is ranked_first(other, (second, first), other.cuts) else None


_CHOICE: Final = re.compile(r"\[\[\s*([0-9]{1,6})\s*\]\]")
_NUMBER: Final = re.compile(r"[-\u2212]?[0-9]+(?:[.,][0-9]+)*")


def ranked_first(
    reply: Response, responses: Sequence[Response], cuts: Sequence[Cut]
) -> Response | None:
    """Return the response that a ranker's reply names, None if it does not name exactly one.

    Args:
        reply: The ranker's own response.
        responses: Those that it was to rank.
        cuts: What it did not read: a response that was left out had no number.
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
        """Ask the aggregator once."""
        node = node_name("synthesize", self.agent, parents=self.parents)
        read, cuts = self.read(self.agent, self.module, inputs, responses)
        question = Question(node, self.agent, 0, self.module, read, cuts, is_final=True)
        (answer,) = yield [question]
        return answer


@dataclass(frozen=True)
class Fuse:
    """Lets an analyst compare the responses, and an agent write the answer after reading both.

    The analysis is read as the last of the references: as guarded and as limited as they
    are. Without it, where the analyst failed, the answer is written all the same.
    """

    agent: str
    module: Any
    parents: tuple[str, ...]
    read: Read
    analyst: str
    analyst_module: Any

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Ask the analyst, then the agent."""
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
    """Returns a response with the answer of the most weight; calls no model.

    Answers are equal when all ``fields`` are, by value (see ``ballot_of``); what a module
    adds to the signature, such as a reasoning, does not count. A failed agent counts nothing.
    The answer's weight is the sum of the weights of the agents that gave it. Of the responses
    whose answer has the most weight the first is returned in this order: those of
    ``tie_breaker``, then the heavier ones, then as they are read.

    Attributes:
        fields: That make up an answer.
        normalise: Makes texts equal that are equal answers.
        tie_breaker: An agent.
        weights: Whole numbers by agent, ``Architecture.whole_weights``; an agent
            that is not named counts 1.
    """

    fields: tuple[str, ...]
    normalise: Normalise
    tie_breaker: str | None = None
    weights: Mapping[str, int] = field(default_factory=dict[str, int])

    def __call__(self, inputs: Mapping[str, Any], responses: Sequence[Response], /) -> Steps:
        """Count without asking."""
        totals: Counter[Ballot] = Counter()
        ballots = [self.ballot(response) for response in responses]
        for response, ballot in zip(responses, ballots, strict=True):
            totals[ballot] += self.weights.get(response.agent, 1)
        most = max(totals.values())
        return next(
            responses[i]
            for i in self.priority([response.agent for response in responses])
            if totals[ballots[i]] == most
        )
        yield  # makes this a plan that asks nothing

    def priority(self, agents: Sequence[str]) -> list[int]:
        """Return the places of members, given in the reading order, in the order of their say."""

        def rank(place: int) -> tuple[bool, int]:
            agent = agents[place]
            return agent != self.tie_breaker, -self.weights.get(agent, 1)

        return sorted(range(len(agents)), key=rank)

    def ballot(self, response: Response) -> Ballot:
        """Return what is counted: equal where answers are."""
        return ballot_of(response.values, self.fields, self.normalise)


def ballot_of(values: Mapping[str, Any], fields: Sequence[str], normalise: Normalise) -> Ballot:
    """Return the values of ``fields`` in a form that is equal where answers are.

    Typed answers are equal by value: 3 and 3.0, mappings and sets in any order. Texts are
    equal after ``normalise``, in a list or a model too.
    """
    return tuple(comparable(values.get(name), normalise) for name in fields)


NORMALISERS: dict[str, Normalise] = {
    "answer": normalise_answer,
    "text": normalise_text,
    "version": normalise_version,
}
"""When two texts are equal answers: as whole texts, or by the final word or number.

``version`` reads the final word like ``answer``, but "3.10" and "3.1" differ. One line each.
"""
