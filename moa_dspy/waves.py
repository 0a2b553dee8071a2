"""The waves in which members of a vote are asked, and messages on which have answered.

A vote is known as soon as those who were not asked cannot change it. So members are asked in
waves: as many at once as could settle it if they agreed, and no more. So no member is asked that
would be spared if they were asked one by one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Final, TypeAlias

from dspy.streaming.messages import StatusMessage, sync_send_to_stream

from moa_dspy.prediction import (
    NOT_ASKED,
    Question,
    Response,
    counted_in_time,
    late_after,
    not_awaited,
)

_logger = logging.getLogger(__name__)
_UNSENT: Final = "A status message could not be sent."

SHARE_FOR_WAVES: Final = 0.25
"""Of a deadline: until then members are asked in waves, and after it all the others at once.

Members that are asked later have less of the deadline left, so most of it is kept for them.
"""

Said = Mapping[int, Hashable | None]
"""What the members said that were asked, by place; None gave no answer."""


@dataclass(frozen=True)
class Waves:
    """Says which members of a vote, by place, are asked next.

    Attributes:
        weights: Of each place, whole numbers.
        priority: All places in the order of their say: among the answers with most weight,
            the one that the first of them gave is returned. They are asked in this order.
        agreeing: Places that are asked first, and alone if all of them give one answer.
        stops: Whether asking ends once the others cannot change the answer.
        quorum: Fewest answers that settle anything.
        lead: Share of the weight to come by which an answer must lead to settle it; None is all.
    """

    weights: tuple[int, ...]
    priority: tuple[int, ...]
    agreeing: tuple[int, ...] = ()
    stops: bool = True
    quorum: int = 1
    lead: Fraction | None = None

    def due(self, said: Said) -> list[int]:
        """Return the places to ask next, after those of ``said``; empty if it is settled."""
        if not said:
            return list(self._first)
        return [] if self.is_settled(said) else self._next(said)

    @cached_property
    def _first(self) -> tuple[int, ...]:
        return self.agreeing or tuple(self._next({}))

    def _next(self, said: Said) -> list[int]:
        rest = self.rest(said)
        if not self.stops:
            return rest
        leader = self._leader(self._totals(said))
        likeliest = "any" if leader is None else leader
        agreed = dict(said)
        for n, place in enumerate(rest, start=1):
            agreed[place] = likeliest
            if self.is_settled(agreed):
                return rest[:n]
        return rest

    def rest(self, said: Said) -> list[int]:
        """Return the places that have not been asked, in the order of asking."""
        return [place for place in self.priority if place not in said]

    def heard(self, said: Said) -> tuple[int, ...]:
        """Return the places whose answers count; asking others besides them changes nothing.

        They are those of ``agreeing`` if they agree, or the first places by which one answer
        leads far enough, or else all.
        """
        first = [said.get(place) for place in self.agreeing]
        if first and None not in first and len(set(first)) == 1:
            return self.agreeing
        known: dict[int, Hashable | None] = {}
        for n, place in enumerate(self.priority if self.lead is not None else (), start=1):
            if place not in said:
                break
            known[place] = said[place]
            if self._leads(known):
                return self.priority[:n]
        return self.priority

    def _leads(self, said: Said) -> bool:
        totals = sorted((n for n, _ in self._totals(said).values()), reverse=True)
        ahead = sum(totals[:1]) - sum(totals[1:2])
        left = sum(self.weights[place] for place in self.rest(said))
        return self._is_quorum(said) and ahead >= (self.lead or 0) * left

    def _is_quorum(self, said: Said) -> bool:
        return sum(ballot is not None for ballot in said.values()) >= self.quorum

    def is_settled(self, said: Said) -> bool:
        """True if the answer is the same whatever the others would say, or not say."""
        rest = self.rest(said)
        if not rest:
            return True
        if not self._is_quorum(said):
            return False
        if self.lead is not None:
            return self.stops and len(self.heard(said)) < len(self.priority)
        is_first = bool(self.agreeing) and said.keys() == set(self.agreeing)
        if is_first and self.heard(said) == self.agreeing:
            return True
        return self.stops and self._is_out_of_reach(said, rest)

    def _is_out_of_reach(self, said: Said, rest: Sequence[int]) -> bool:
        totals = self._totals(said)
        leader = self._leader(totals)
        if leader is None:
            return False
        most, first = totals[leader]
        if self._rank[rest[0]] < first:
            # If it gave the leader's answer too, its response would be the one returned.
            return False
        left = sum(self.weights[place] for place in rest)
        if left > most:
            return False
        rivals = [total for ballot, total in totals.items() if ballot != leader]
        # A rival that draws level wins if it was given earlier.
        return all(n + left < most or (n + left == most and first < at) for n, at in rivals)

    def _totals(self, said: Said) -> dict[Hashable, tuple[int, int]]:
        """Return, of each answer, its weight and the rank of the first that gave it."""
        found: dict[Hashable, tuple[int, int]] = {}
        for place, ballot in said.items():
            if ballot is not None:
                weight, first = found.get(ballot, (0, len(self.priority)))
                rank = self._rank[place]
                found[ballot] = (weight + self.weights[place], min(first, rank))
        return found

    def _leader(self, totals: Mapping[Hashable, tuple[int, int]]) -> Hashable | None:
        return max(totals, key=lambda b: (totals[b][0], -totals[b][1]), default=None)

    @cached_property
    def _rank(self) -> dict[int, int]:
        return {place: rank for rank, place in enumerate(self.priority)}


@dataclass(frozen=True)
class WaveRules:
    """The rules by which a vote's members are asked in time.

    Attributes:
        waves: Says which members are asked next.
        ballot: What a response says, equal where answers are.
        deadline_seconds: Until when an answer counts; None means no limit.
    """

    waves: Waves
    ballot: Callable[[Response], Hashable]
    deadline_seconds: float | None = None

    def said(self, responses: Mapping[int, Response]) -> dict[int, Hashable | None]:
        """Return what the responses say, by place; None where there is no answer."""
        return {
            place: self.ballot(response) if response.has_answer else None
            for place, response in responses.items()
        }

    @property
    def hedge_seconds(self) -> float:
        """Seconds after which all others are asked at once, whatever is still awaited."""
        late = self.deadline_seconds
        return math.inf if late is None else SHARE_FOR_WAVES * late

    def due(self, asked: Collection[int], said: Said, *, seconds: float) -> list[int]:
        """Return the places to ask ``seconds`` after the start; empty to wait for an answer."""
        if seconds >= self.hedge_seconds:
            return [place for place in self.waves.priority if place not in asked]
        return self.waves.due(said) if len(said) == len(asked) else []

    def left(self, seconds: float) -> float | None:
        """Return how much of the deadline is left."""
        return None if self.deadline_seconds is None else self.deadline_seconds - seconds


class MemberQuestions(list[Question]):
    """The questions to a vote's members, which are asked in waves, or all at once.

    Code that asks them in waves sets ``seconds`` to how long that took. A member that was not
    asked, or is no longer waited for, gets a response that is left out.
    """

    def __init__(self, questions: Iterable[Question], rules: WaveRules) -> None:
        super().__init__(questions)
        self.rules = rules
        self.seconds: float | None = None

    def in_waves(self) -> Asking:
        """Ask wave by wave; with a deadline, leave the waves to the code that asks."""
        if self.rules.deadline_seconds is not None:
            return (yield self)
        known: dict[int, Response] = {}
        said: dict[int, Hashable | None] = {}
        took = 0.0
        while due := self.rules.waves.due(said):
            responses = yield [self[place] for place in due]
            new = dict(zip(due, responses, strict=True))
            known |= new
            said |= self.rules.said(new)
            took += max(response.seconds for response in responses)
        return self.settled(known, seconds=took)

    def replay(self) -> Replay:
        """Return the responses, by the seconds that each took when it was made.

        Yields the places whose responses are needed next, and is sent these.
        """
        rules, now = self.rules, 0.0
        given: dict[int, Response] = {}
        ballots: dict[int, Hashable | None] = {}
        starts: dict[int, float] = {}
        while True:
            ends = {place: starts[place] + given[place].seconds for place in given}
            said = {place: ballots[place] for place in given if ends[place] <= now}
            if rules.waves.is_settled(said):
                break
            if due := rules.due(given, said, seconds=now):
                for place, response in zip(due, (yield due), strict=True):
                    given[place], starts[place] = counted_in_time(response, rules.left(now)), now
                ballots |= rules.said({place: given[place] for place in due})
                continue
            following = min(end for end in ends.values() if end > now)
            # Not all have been asked, so the time to ask them all may come first.
            is_before = now < rules.hedge_seconds < following and len(given) < len(self)
            now = rules.hedge_seconds if is_before else following
        heard = {p: r if p in said else not_awaited(r, now - starts[p]) for p, r in given.items()}
        return self.settled(heard, seconds=now)

    def settled(self, asked: Mapping[int, Response], *, seconds: float) -> list[Response]:
        """Return a response per question, and note the seconds."""
        self.seconds = seconds
        return [
            asked.get(place) or Response(one.agent, one.sample, failure=NOT_ASKED)
            for place, one in enumerate(self)
        ]


Asking: TypeAlias = Generator[list[Question], list[Response], list[Response]]
"""Yields questions that may be asked at once, is sent their responses, returns all of them."""


Replay: TypeAlias = Generator[list[int], Sequence[Response], list[Response]]
"""Yields places of members, is sent their responses, returns those of all members."""


def replayed(
    members: MemberQuestions, fetch: Callable[[list[int]], Sequence[Response]]
) -> list[Response]:
    """Run ``members.replay`` with responses that ``fetch`` returns."""
    steps = members.replay()
    try:
        places = next(steps)
        while True:
            places = steps.send(fetch(places))
    except StopIteration as stop:
        found: list[Response] = stop.value
        return found


@dataclass
class MemberProgress:
    """Members that are being asked: the next ones, and how long to wait for them.

    Attributes:
        members: The questions.
        responses: Of those that have answered, or failed, by place.
    """

    members: MemberQuestions
    responses: dict[int, Response] = field(default_factory=dict[int, Response])
    _starts: dict[int, float] = field(default_factory=dict[int, float])
    _began: float = field(default_factory=time.monotonic)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def is_over(self) -> bool:
        """True if the answer is known, or it is too late for any more."""
        left = self.members.rules.left(self._seconds)
        return (left is not None and left <= 0) or self.is_settled

    @property
    def is_settled(self) -> bool:
        """True if the answer is known."""
        rules = self.members.rules
        return rules.waves.is_settled(rules.said(self.responses))

    def due(self) -> list[tuple[int, Question]]:
        """Return the questions to ask now, with places, each with the time that is left."""
        rules, now = self.members.rules, self._seconds
        places = rules.due(self._starts, rules.said(self.responses), seconds=now)
        self._starts |= dict.fromkeys(places, now)
        late = rules.left(now)
        return [(p, replace(self.members[p], deadline_seconds=late)) for p in places]

    @property
    def patience_seconds(self) -> float | None:
        """Seconds to wait for an answer before there is something else to do."""
        rules, now = self.members.rules, self._seconds
        if rules.deadline_seconds is None:
            return None
        is_hedged = now >= rules.hedge_seconds or len(self._starts) == len(self.members)
        return max(0.0, (rules.deadline_seconds if is_hedged else rules.hedge_seconds) - now)

    def unanswered(self) -> dict[int, Response]:
        """Return the responses that stand for members that were asked and have not answered."""
        now, settled = self._seconds, self.is_settled
        found: dict[int, Response] = {}
        for place, start in self._starts.items():
            if place not in self.responses:
                one = straggler(self.members[place], now - start)
                found[place] = not_awaited(one, now - start) if settled else one
        return found


def straggler(question: Question, seconds: float) -> Response:
    """Return what stands for a question that is no longer waited for, after so many seconds."""
    failure = late_after(seconds)
    return Response(
        question.agent,
        question.sample,
        calls=1,
        seconds=seconds,
        failure=failure,
        cuts=question.cuts,
    )


@dataclass(slots=True)
class StatusMessages:
    """Sends a status message for each of a layer's agents to the reader of a stream."""

    questions: Sequence[Question]
    stream: Any
    _n_answered: int = 0

    def watched(self, running: Sequence[Future[Any]], seconds: float | None) -> set[Future[Any]]:
        """Wait at most ``seconds``, send a message for each that is done, and return these."""
        done: set[Future[Any]] = set()
        try:
            for future in as_completed(running, seconds):
                done.add(future)
                if future.exception() is None:
                    self.answered(future.result()[0])
        except TimeoutError:
            pass  # What is left are stragglers, which the caller counts.
        return done

    def answered(self, response: Response) -> None:
        """Send a message for one response."""
        try:
            sync_send_to_stream(self.stream, StatusMessage(self._message(response)))
        except Exception:
            # The stream may be closed already; the answer is made all the same.
            _logger.warning(_UNSENT, exc_info=True)

    async def aanswered(self, response: Response) -> None:
        """Send a message for one response."""
        try:
            await self.stream.send(StatusMessage(self._message(response)))
        except Exception:
            _logger.warning(_UNSENT, exc_info=True)

    def _message(self, response: Response) -> str:
        self._n_answered += 1
        verb = "answered" if response.has_answer else "failed"
        return f"{response.agent} {verb} ({self._n_answered} of {len(self.questions)})"
