"""Waves in which members of a vote are asked, and status messages about their answers.

The answer of a vote is certain as soon as the members that were not asked cannot change it. So
members are asked in waves: each has as many as could make the answer certain if they agreed, and
no more. The members asked are then the same as if they were asked one by one.
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

from moa_dspy.aggregators import priority
from moa_dspy.architecture import Architecture
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
"""Share of a deadline in which members are asked in waves; after it all others are asked at once.

They then have the rest of the deadline, which is most of it.
"""

MemberVotes: TypeAlias = Mapping[int, Hashable | None]
"""The answer of each member that was asked, by its place in the layer; None is no answer."""


@dataclass(frozen=True)
class Waves:
    """Decides which members of a vote, by place, are asked next.

    Attributes:
        weights: Weight of each place, as whole numbers.
        priority: All places in the order of asking, which also breaks ties: among the answers
            with most weight, the one of the first place is returned.
        agreeing: Places that are asked first; no others are asked if they give the same answer.
        stops: Whether asking ends once the others cannot change the answer.
        quorum: Fewest answers with which a vote may end.
        lead: Share of the weight not yet asked by which an answer must lead to end the vote;
            None means all of it.
    """

    weights: tuple[int, ...]
    priority: tuple[int, ...]
    agreeing: tuple[int, ...] = ()
    stops: bool = True
    quorum: int = 1
    lead: Fraction | None = None

    @classmethod
    def of_vote(cls, vote: Architecture, *, stops: bool = True, quorum: int = 1) -> Waves:
        """Return the waves of a vote: its tie-breaker is asked first, then by weight."""
        members, reading, weights = vote.layers[-1], vote.reading, vote.integer_weights
        order = priority([members[place] for place in reading], vote.aggregator, weights)
        return cls(
            tuple(weights[name] for name in members),
            tuple(reading[at] for at in order),
            reading[: vote.agree] if vote.agree is not None else (),
            stops,
            quorum,
            None if vote.lead is None else Fraction(repr(vote.lead)),
        )

    def due(self, ballots: MemberVotes) -> list[int]:
        """Return the places to ask next; empty if the answer is certain."""
        if not ballots:
            return list(self._first)
        return [] if self.is_settled(ballots) else self._next(ballots)

    @cached_property
    def _first(self) -> tuple[int, ...]:
        return self.agreeing or tuple(self._next({}))

    def _next(self, ballots: MemberVotes) -> list[int]:
        rest = self.rest(ballots)
        if not self.stops:
            return rest
        leader = self._leader(self._totals(ballots))
        likeliest = "any" if leader is None else leader
        agreed = dict(ballots)
        for n, place in enumerate(rest, start=1):
            agreed[place] = likeliest
            if self.is_settled(agreed):
                return rest[:n]
        return rest

    def rest(self, ballots: MemberVotes) -> list[int]:
        """Return the places that have not been asked, in the order of asking."""
        return [place for place in self.priority if place not in ballots]

    def counted(self, ballots: MemberVotes) -> tuple[int, ...]:
        """Return the places whose answers count, even if others answered too.

        They are those of ``agreeing`` if they agree, or the first places after which one answer
        leads far enough, or else all.
        """
        first = [ballots.get(place) for place in self.agreeing]
        if first and None not in first and len(set(first)) == 1:
            return self.agreeing
        read: dict[int, Hashable | None] = {}
        for n, place in enumerate(self.priority if self.lead is not None else (), start=1):
            if place not in ballots:
                break
            read[place] = ballots[place]
            if self._leads(read):
                return self.priority[:n]
        return self.priority

    def _leads(self, ballots: MemberVotes) -> bool:
        totals = sorted((n for n, _ in self._totals(ballots).values()), reverse=True)
        ahead = sum(totals[:1]) - sum(totals[1:2])
        left = sum(self.weights[place] for place in self.rest(ballots))
        return self._is_quorum(ballots) and ahead >= (self.lead or 0) * left

    def _is_quorum(self, ballots: MemberVotes) -> bool:
        return sum(ballot is not None for ballot in ballots.values()) >= self.quorum

    def is_settled(self, ballots: MemberVotes) -> bool:
        """Return whether the answer no longer depends on the members that were not asked."""
        rest = self.rest(ballots)
        if not rest:
            return True
        if not self._is_quorum(ballots):
            return False
        if self.lead is not None:
            return self.stops and len(self.counted(ballots)) < len(self.priority)
        is_first = bool(self.agreeing) and ballots.keys() == set(self.agreeing)
        if is_first and self.counted(ballots) == self.agreeing:
            return True
        return self.stops and self._is_out_of_reach(ballots, rest)

    def _is_out_of_reach(self, ballots: MemberVotes, rest: Sequence[int]) -> bool:
        totals = self._totals(ballots)
        leader = self._leader(totals)
        if leader is None:
            return False
        most, first = totals[leader]
        if self._rank[rest[0]] < first:
            # If it gave the leading answer too, its response would be returned instead.
            return False
        left = sum(self.weights[place] for place in rest)
        if left > most:
            return False
        rivals = [total for ballot, total in totals.items() if ballot != leader]
        # On a tie the answer that was given first wins.
        return all(n + left < most or (n + left == most and first < at) for n, at in rivals)

    def _totals(self, ballots: MemberVotes) -> dict[Hashable, tuple[int, int]]:
        """Return the weight of each answer, and the rank of the first member that gave it."""
        totals: dict[Hashable, tuple[int, int]] = {}
        for place, ballot in ballots.items():
            if ballot is not None:
                weight, first = totals.get(ballot, (0, len(self.priority)))
                rank = self._rank[place]
                totals[ballot] = (weight + self.weights[place], min(first, rank))
        return totals

    def _leader(self, totals: Mapping[Hashable, tuple[int, int]]) -> Hashable | None:
        return max(totals, key=lambda b: (totals[b][0], -totals[b][1]), default=None)

    @cached_property
    def _rank(self) -> dict[int, int]:
        return {place: rank for rank, place in enumerate(self.priority)}


@dataclass(frozen=True)
class WaveRules:
    """The rules by which the members of a vote are asked over time.

    Attributes:
        waves: Decides which members are asked next.
        ballot: Makes a response comparable: equal answers become equal values.
        deadline_seconds: Time after which an answer no longer counts; None means no limit.
    """

    waves: Waves
    ballot: Callable[[Response], Hashable]
    deadline_seconds: float | None = None

    def votes(self, responses: Mapping[int, Response]) -> dict[int, Hashable | None]:
        """Return the answers of the responses, by place; None if there is none."""
        return {
            place: self.ballot(response) if response.has_answer else None
            for place, response in responses.items()
        }

    @property
    def hedge_seconds(self) -> float:
        """Seconds after which all others are asked at once, without waiting any longer."""
        late = self.deadline_seconds
        return math.inf if late is None else SHARE_FOR_WAVES * late

    def due(
        self, asked_places: Collection[int], ballots: MemberVotes, *, seconds: float
    ) -> list[int]:
        """Return the places to ask ``seconds`` after the start; empty while answers are awaited."""
        if seconds >= self.hedge_seconds:
            return [place for place in self.waves.priority if place not in asked_places]
        return self.waves.due(ballots) if len(ballots) == len(asked_places) else []

    def left(self, seconds: float) -> float | None:
        """Return the seconds that are left of the deadline; None without one."""
        return None if self.deadline_seconds is None else self.deadline_seconds - seconds


class MemberQuestions(list[Question]):
    """The questions to the members of a vote, which are asked in waves or all at once.

    Code that asks in waves sets ``seconds`` to the time that it took. A member that was not asked,
    or whose answer was not waited for, gets a response that is left out.
    """

    def __init__(self, questions: Iterable[Question], rules: WaveRules) -> None:
        super().__init__(questions)
        self.rules = rules
        self.seconds: float | None = None

    def in_waves(self) -> Asking:
        """Yield the questions wave by wave; with a deadline all at once, for the caller to time."""
        if self.rules.deadline_seconds is not None:
            return (yield self)
        by_place: dict[int, Response] = {}
        ballots: dict[int, Hashable | None] = {}
        took = 0.0
        while due := self.rules.waves.due(ballots):
            responses = yield [self[place] for place in due]
            new = dict(zip(due, responses, strict=True))
            by_place |= new
            ballots |= self.rules.votes(new)
            took += max(response.seconds for response in responses)
        return self.settled(by_place, seconds=took)

    def replay(self) -> Replay:
        """Return the responses of the waves if each response takes its recorded seconds.

        Yields the places whose responses are needed next, and is sent these responses.
        """
        rules, now = self.rules, 0.0
        responses: dict[int, Response] = {}
        ballots: dict[int, Hashable | None] = {}
        starts: dict[int, float] = {}
        while True:
            ends = {place: starts[place] + responses[place].seconds for place in responses}
            in_time = {place: ballots[place] for place in responses if ends[place] <= now}
            if rules.waves.is_settled(in_time):
                break
            if due := rules.due(responses, in_time, seconds=now):
                for place, response in zip(due, (yield due), strict=True):
                    responses[place] = counted_in_time(response, rules.left(now))
                    starts[place] = now
                ballots |= rules.votes({place: responses[place] for place in due})
                continue
            following = min(end for end in ends.values() if end > now)
            # The time to ask all others may come before the next answer.
            is_before = now < rules.hedge_seconds < following and len(responses) < len(self)
            now = rules.hedge_seconds if is_before else following
        counted = {
            p: r if p in in_time else not_awaited(r, now - starts[p]) for p, r in responses.items()
        }
        return self.settled(counted, seconds=now)

    def settled(self, responses: Mapping[int, Response], *, seconds: float) -> list[Response]:
        """Return a response per question and set ``seconds``."""
        self.seconds = seconds
        return [
            responses.get(place) or Response(question.agent, question.sample, failure=NOT_ASKED)
            for place, question in enumerate(self)
        ]


Asking: TypeAlias = Generator[list[Question], list[Response], list[Response]]
"""Yields questions that may be asked at once, is sent their responses, returns all of them."""


Replay: TypeAlias = Generator[list[int], Sequence[Response], list[Response]]
"""Yields places of members, is sent their responses, returns those of all members."""


def replayed(
    members: MemberQuestions, fetch: Callable[[list[int]], Sequence[Response]]
) -> list[Response]:
    """Run ``members.replay`` with responses from ``fetch``."""
    steps = members.replay()
    try:
        places = next(steps)
        while True:
            places = steps.send(fetch(places))
    except StopIteration as stop:
        responses: list[Response] = stop.value
        return responses


@dataclass
class MemberProgress:
    """Members that are being asked: the next ones, and how long to wait for them.

    Attributes:
        members: The questions.
        responses: Responses, by place, of the members that have answered or failed.
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
        """True if the answer is certain, or the deadline is over."""
        left = self.members.rules.left(self._seconds)
        return (left is not None and left <= 0) or self.is_settled

    @property
    def is_settled(self) -> bool:
        """True if the answer is certain."""
        rules = self.members.rules
        return rules.waves.is_settled(rules.votes(self.responses))

    def due(self) -> list[tuple[int, Question]]:
        """Return the places and questions to ask now, with the time that is left as deadline."""
        rules, now = self.members.rules, self._seconds
        places = rules.due(self._starts, rules.votes(self.responses), seconds=now)
        self._starts |= dict.fromkeys(places, now)
        late = rules.left(now)
        return [(p, replace(self.members[p], deadline_seconds=late)) for p in places]

    @property
    def wait_seconds(self) -> float | None:
        """Longest time to wait for an answer before more are asked, or the deadline ends."""
        rules, now = self.members.rules, self._seconds
        if rules.deadline_seconds is None:
            return None
        is_hedged = now >= rules.hedge_seconds or len(self._starts) == len(self.members)
        return max(0.0, (rules.deadline_seconds if is_hedged else rules.hedge_seconds) - now)

    def unanswered(self) -> dict[int, Response]:
        """Return responses in place of members that were asked and have not answered."""
        now, settled = self._seconds, self.is_settled
        responses: dict[int, Response] = {}
        for place, start in self._starts.items():
            if place not in self.responses:
                response = straggler(self.members[place], now - start)
                responses[place] = not_awaited(response, now - start) if settled else response
        return responses


def straggler(question: Question, seconds: float) -> Response:
    """Return the response in place of an answer that is no longer waited for after ``seconds``."""
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
            pass  # The caller counts those that are not done.
        return done

    def answered(self, response: Response) -> None:
        """Send a message for one response."""
        try:
            sync_send_to_stream(self.stream, StatusMessage(self._message(response)))
        except Exception:
            # The stream may be closed already; the answer does not depend on it.
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
