"""Responses by node of a mixture, computed once per example and shared by all architectures."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Final

import dspy
from dspy.utils.exceptions import AdapterParseError, LMError
from pydantic import BaseModel

from moa_dspy.aggregators import NORMALISERS, Ballot, Vote, named_number, node_name
from moa_dspy.architecture import Architecture
from moa_dspy.calls.scope import CallFacts, CallScope, CallTable, call_scope, current_scope, entered
from moa_dspy.errors import LayerFailedError, StudyError, moa_error_of
from moa_dspy.optimize.judge_facts import Choices, check_readable
from moa_dspy.optimize.kept_answers import KeptAnswers
from moa_dspy.plan import Plan, follow, seconds_of
from moa_dspy.prediction import Answer, MixturePrediction, Question, Response
from moa_dspy.seats import Seats
from moa_dspy.telemetry import mixture_span
from moa_dspy.waves import MemberQuestions, replayed

CUT: Final = ("length", "content_filter")
"""Finish reasons of a truncated answer."""
_FEWEST_CHOICES: Final = 5  # replies of a ranker, all unreadable, after which the study stops


@dataclass(slots=True)
class NodeCache:
    """Responses by node and place; a place is an example with the inputs of the mixture for it.

    Attributes:
        failures: Responses without an answer, by agent and by the beginning of the reason.
        cut: Answers that the token limit or a filter ended, by (agent, reason).
        table: Requests by stage and agent.
        is_stored: Whether the last questions were all answered from the store.
        choices: Replies of rankers and judges of knockouts, by ``COMBINE(AGENT)``.
        kept: Answers of earlier searches.
    """

    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    cut: Counter[tuple[str, str]] = field(default_factory=Counter)
    _known: MutableMapping[tuple[str, object], Response] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    table: CallTable = field(default_factory=CallTable)
    choices: dict[str, Choices] = field(default_factory=dict)
    is_stored: bool = False
    kept: KeptAnswers = field(default_factory=KeptAnswers)

    def child(self) -> NodeCache:
        """Return a cache that reads from this one but does not add its own nodes to it.

        Seats with another prompt have the same node names. Calls are counted in both caches.
        """
        responses = ChainMap({}, self._known)
        shared: Any = (self._lock, self.table, self.choices, False, self.kept)
        return NodeCache(Counter(), self.cut, responses, *shared)

    @property
    def calls(self) -> Counter[str]:
        """Requests by ``made`` and ``reused``: sent, or answered by a store or recording."""
        counts = self.table.by_agent().values()
        return +Counter(made=sum(c.made for c in counts), reused=sum(c.reused for c in counts))

    def items(self) -> list[tuple[tuple[str, object], Response]]:
        """Return every response with its node and place."""
        return [*self._known.items()]

    def known(self, node: str, place: object) -> Response | None:
        """Return what was answered at a node, or None if it was not asked."""
        return self._known.get((node, place))

    def put(
        self, place: object, questions: Sequence[Question], responses: Sequence[Response]
    ) -> None:
        """Remember the responses to the questions."""
        with self._lock:
            for question, response in zip(questions, responses, strict=True):
                self._put(question.node, place, response)

    def _put(self, node: str, place: object, response: Response) -> None:
        if (known := self._known.get((node, place))) and known.has_answer >= response.has_answer:
            return  # another thread asked it at the same time: a question fails once
        self._known[node, place] = response
        if not response.has_answer:
            reason = " ".join(str(response.failure).split())
            self.failures[response.agent, reason[:100]] += 1
        if response.finish_reason in CUT:
            self.cut[response.agent, response.finish_reason] += 1

    def read(
        self, rounds: Sequence[tuple[object, Sequence[Question]]], seats: Seats
    ) -> list[list[Response | None]]:
        """Return the known or stored responses to rounds of questions, each round at its place."""
        cached = self._known
        new = {
            (q.node, place): q
            for place, questions in rounds
            for q in questions
            if (q.node, place) not in cached
        }
        with call_scope(table=self.table):
            responses = self.kept.read([*new.values()], (seats.pool, seats.adapter))
        with self._lock:
            for (node, place), response in zip(new, responses, strict=True):
                if response is not None:
                    self._put(node, place, response)
        return [[cached.get((q.node, place)) for q in questions] for place, questions in rounds]

    def note_choices(self, architecture: Architecture, answer: Answer) -> None:
        """Count the replies of a ranker or of a knockout's judge.

        Raises:
            StudyError: If there were several replies, and none of them could be read.
        """
        if architecture.combine not in ("select", "knockout") or not answer.replies:
            return
        name = f"{architecture.combine}({architecture.aggregator})"
        with self._lock:
            choices = self.choices.setdefault(name, Choices())
            for reply in answer.replies:
                is_read = named_number(reply) is not None
                choices.note(None if is_read else reply.text or str(reply.failure))
        if choices.n_asked >= _FEWEST_CHOICES:
            check_readable(
                name, n_asked=choices.n_asked, n_unread=choices.n_unread, replies=choices.unread
            )


@dataclass(slots=True)
class NodeRunner:
    """Runs one architecture on one example.

    Attributes:
        node_cache: Cache shared by all architectures.
        example: Id of the example.
        answers: Answers of the mixture, one for each time it was called.
        is_reused: Whether no request was sent.
    """

    node_cache: NodeCache
    example: str
    answers: list[Answer] = field(default_factory=list)
    is_reused: bool = True
    _rounds: list[list[Response]] = field(default_factory=list)
    _seconds: float = 0.0
    _place: object = None

    def answer(self, mixture: Any, inputs: Mapping[str, Any], *, place: object = None) -> Answer:
        """Follow the mixture's plan; ``place`` distinguishes several inputs of one example."""
        seats = mixture.seats
        with mixture_span(mixture, example=self.example):
            answer = follow(mixture.plan(inputs), lambda batch: self.ask(batch, seats, place=place))
        return self.answered(mixture, answer, place=place)

    def answered(self, mixture: Any, answer: Answer, *, place: object = None) -> Answer:
        """Record the answer of the mixture's plan."""
        self.answers.append(answer)
        self.node_cache.note_choices(mixture.architecture, answer)
        self._place = place
        return answer

    def note_responses(self, questions: Sequence[Question], responses: list[Response]) -> None:
        """Record the responses to a round of questions."""
        self._rounds.append(responses)
        self._seconds += seconds_of(questions, responses)

    def ask(
        self, questions: Sequence[Question], seats: Seats, *, place: object = None
    ) -> list[Response]:
        """Return the responses to a round of questions; known nodes are not asked again.

        Members of a vote are asked, and cost, as if nothing were known.
        """
        if isinstance(questions, MemberQuestions):

            def fetch(places: list[int]) -> list[Response]:
                return self._responses([questions[p] for p in places], seats, place=place)

            responses = replayed(questions, fetch)
        else:
            responses = self._responses(questions, seats, place=place)
        self.note_responses(questions, responses)
        return responses

    def _responses(
        self, questions: Sequence[Question], seats: Seats, *, place: object
    ) -> list[Response]:
        where = (self.example, place)
        by_node = {q.node: self.node_cache.known(q.node, where) for q in questions}
        if new := [q for q in questions if by_node[q.node] is None]:
            # A scope of its own: calls of seats are counted by their responses.
            with call_scope(example=self.example, table=self.node_cache.table) as scope:
                ask, kept = partial(self._ask_all, seats=seats, log=scope.log), self.node_cache.kept
                asked_of = (seats.pool, seats.adapter)
                responses = kept.answered(new, asked_of, ask, scope.log, is_alone=place is None)
            self.is_reused &= _is_reused(scope.log)
            self.node_cache.put(where, new, responses)
            by_node |= {q.node: r for q, r in zip(new, responses, strict=True)}
        return [response for q in questions if (response := by_node[q.node])]

    def _ask_all(
        self, questions: Sequence[Question], seats: Seats, log: Sequence[CallFacts]
    ) -> list[Response]:
        """Ask all at the same time; one by one while each was stored, as that is faster."""
        responses: list[Response] = []
        while self.node_cache.is_stored and len(responses) < len(questions) - 1:
            responses += seats.ask_all([questions[len(responses)]])
            self.node_cache.is_stored = _is_reused(log)
        responses += seats.ask_all(questions[len(responses) :])
        self.node_cache.is_stored = _is_reused(log)
        return responses

    @property
    def read(self) -> tuple[str, ...]:
        """Texts that the last step read, when the mixture was last called.

        Known answers of proposers that a vote did not need to ask are included, so that the
        diversity does not depend on when a vote stops.
        """
        if not self.answers:
            return ()
        answer = self.answers[-1]
        read = answer.layers[-1] if answer.layers else (answer.final,)
        unasked = self._stored_unasked(answer) if len(answer.layers) == 1 else []
        return tuple(response.text for response in (*read, *unasked) if response.has_answer)

    def _stored_unasked(self, answer: Answer) -> list[Response]:
        taken = {(response.agent, response.sample) for response in answer.layers[0]}
        responses: list[Response] = []
        for agent in answer.not_asked:
            sample = next(n for n in count() if (agent, n) not in taken)
            taken.add((agent, sample))
            node = node_name("propose", agent, sample)
            stored = self.node_cache.known(node, (self.example, self._place))
            responses += [] if stored is None else [stored]
        return responses

    @property
    def text(self) -> str:
        """Text of the answer, when the mixture was last called."""
        return self.answers[-1].final.text if self.answers else ""

    def ballot(self, mixture: Any) -> Ballot | None:
        """Return the ballot of a single agent's answer: what a vote would count.

        Return None if there is no single ballot: for layers, or if the program did not call the
        mixture exactly once.
        """
        if mixture.architecture.layers or len(self.answers) != 1:
            return None
        vote = Vote(tuple(mixture.signature.output_fields), NORMALISERS[mixture.normalise])
        return vote.ballot(self.answers[0].final)

    def costs(self, others: Sequence[CallFacts]) -> dict[str, Any]:
        """Return calls, usd, seconds and tokens of the seats and of the ``others``' calls.

        Agents of one round answer at the same time; rounds follow one after the other.
        """
        responses = [response for round_ in self._rounds for response in round_]
        calls: list[Any] = [*others, *responses]
        replied = sum([call.completion_tokens for call in calls])
        return {
            "calls": len(others) + sum([response.calls for response in responses]),
            "usd": sum([call.usd or 0.0 for call in calls]),
            "seconds": self._seconds + sum([call.seconds for call in others]),
            "tokens": replied + sum([call.prompt_tokens for call in calls]),
            "reply_tokens": replied,
        }


def known_answers(
    cache: NodeCache, mixture: Any, rows: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[NodeRunner, Answer | LayerFailedError]]:
    """Yield the answers, or why there is none, of rows all of whose responses are known or stored.

    The plans of all rows are followed at the same time: each round is one query of the store.

    Args:
        cache: Has the known responses, or reads them.
        mixture: The mixture to run.
        rows: Inputs by the id of the example.
    """
    if cache.kept.opened(mixture.pool) is None:
        return
    seats, planner = mixture.seats, mixture.planner
    going: list[tuple[NodeRunner, Plan, Any]] = []
    for example, inputs in rows.items():
        plan = planner.plan(inputs)
        going.append((NodeRunner(cache, example), plan, _next(plan)))
    while going:
        rounds = [((runner.example, None), batch) for runner, _, batch in going]
        before, going = zip(going, cache.read(rounds, seats), strict=True), []
        for (runner, plan, questions), responses in before:
            stored = [response for response in responses if response is not None]
            if len(stored) < len(responses) or isinstance(questions, MemberQuestions):
                continue  # it takes a request
            runner.note_responses(questions, stored)
            following = _next(plan, stored)
            if isinstance(following, list):
                going.append((runner, plan, following))
                continue
            if isinstance(following, Answer):
                runner.answered(mixture, following)
            yield runner, following


def _next(plan: Plan, responses: list[Response] | None = None) -> Any:
    """Return the next questions of a plan, its answer, or why there is none."""
    try:
        return next(plan) if responses is None else plan.send(responses)
    except StopIteration as stop:
        return stop.value
    except LayerFailedError as error:
        return error


def _is_reused(log: Sequence[CallFacts]) -> bool:
    # If there is no call at all, a module of the user's has done something unknown.
    return bool(log) and all(facts.is_reused for facts in log)


def place_of(inputs: Mapping[str, Any]) -> object:
    """Return a key that is equal for equal inputs only; unique if inputs cannot be serialised."""
    try:
        text = json.dumps(dict(inputs), sort_keys=True, default=_plain)
    except (TypeError, ValueError):
        return object()
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return [type(value).__name__, value.model_dump(mode="json")]
    raise TypeError(f"{type(value).__name__} has no plain form.")


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """The row on which a copy of a program is run."""

    runner: NodeRunner
    scope: CallScope

    def __deepcopy__(self, memo: dict[int, Any]) -> MeasuredRow:
        # A program may copy the module (``dspy.BestOfN`` does); the row is the same one.
        return self


class MixtureStandIn(dspy.Module):
    """Replaces the mixture of a larger program, for one row at a time."""

    def __init__(self, mixture: Any) -> None:
        super().__init__()
        self.mixture = mixture
        self.row: MeasuredRow | None = None

    def forward(self, **inputs: Any) -> Any:
        """Answer the row's question, with these inputs as the place."""
        return self.answered(self.row, inputs, place_of(inputs))

    def answered(self, row: MeasuredRow | None, inputs: Mapping[str, Any], place: object) -> Any:
        """Return the mixture's prediction for one row, made by the row's runner."""
        if row is None:
            raise StudyError("A measured program was run outside of its measurement.")
        runner, scope = row.runner, row.scope
        # In a thread that the program started, calls must count as in the thread of the row.
        is_inside = current_scope().example == scope.example
        with nullcontext() if is_inside else entered(scope):
            answer = runner.answer(self.mixture, inputs, place=place)
        return MixturePrediction.of(answer)

    async def aforward(self, **inputs: Any) -> Any:
        """Run ``forward`` in a thread."""
        return await asyncio.to_thread(self, **inputs)


def run_program(program: Any, inputs: Mapping[str, Any]) -> Any:
    """Return the prediction of a program, also if it is only asynchronous."""
    kind = type(program)
    if hasattr(kind, "forward") or not hasattr(kind, "aforward"):
        return program(**inputs)
    # In a new thread: the caller's may run an event loop, as in a notebook.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, program.acall(**inputs)).result()


class MeasuredProgram:
    """A student with one architecture. Safe for threads.

    A larger program has one copy for each row that is run at the same time. In each copy, the
    mixture is replaced by a module that holds the row. A context variable would not do, as
    threads that the program starts need not inherit it.

    Args:
        student: The program, a ``Student``.
        mixture: The mixture with the architecture; or several, ``ProgramMixtures``.
    """

    def __init__(self, student: Any, mixture: Any) -> None:
        self._student, self.mixture = student, mixture
        self._idle: list[tuple[MixtureStandIn, Any]] = []

    @property
    def is_mixture(self) -> bool:
        """True if the program is the mixture itself."""
        return self._student.program is self._student.mixture

    def answer(self, inputs: Mapping[str, Any], runner: NodeRunner) -> Any:
        """Return the prediction for one row; its seats are asked by ``runner``.

        Raises:
            LayerFailedError: If a model fails and the program therefore makes no prediction.
            MoaError: If the reason is not the model: budget, replay, store, pool.
            StudyError: If the program itself fails.
        """
        if self.is_mixture:
            return MixturePrediction.of(runner.answer(self.mixture, inputs))
        try:
            stand_in, program = self._idle.pop()
        except IndexError:
            stand_in = MixtureStandIn(self.mixture)
            program = self._student.with_module(stand_in)
        stand_in.row = MeasuredRow(runner, current_scope())
        try:
            return run_program(program, inputs)
        except Exception as error:
            if cause := moa_error_of(error):
                raise cause from None
            if isinstance(error, LayerFailedError):
                raise
            if isinstance(error, (AdapterParseError, LMError)):
                raise LayerFailedError(f"{type(error).__name__}: {error}") from error
            raise StudyError(
                f"The program raised {type(error).__name__} on example {runner.example!r}: {error}"
            ) from error
        finally:
            self._idle.append((stand_in, program))
