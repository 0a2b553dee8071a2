"""Plans of answers: the questions of a mixture in their order, for threads, tasks and searches.

``Planner`` yields the questions round by round, ``Reader`` adds responses to the inputs of the next
agent, ``follow`` and ``afollow`` run a plan to its answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import TIMEOUT_MAX
from typing import Any, Final, TypeAlias

import dspy

from moa_dspy.adapters import guarded_references, speaking_adapter
from moa_dspy.agent import AgentPool
from moa_dspy.aggregators import (
    NORMALISERS,
    Combine,
    Consensus,
    Fuse,
    Knockout,
    Rank,
    Steps,
    Synthesize,
    Vote,
    node_name,
)
from moa_dspy.architecture import Architecture
from moa_dspy.dspy_internals import main_thread_config
from moa_dspy.errors import ArchitectureError, LayerFailedError
from moa_dspy.files import NUMBER_OR_NONE, WHOLE, Kinds, check_kinds
from moa_dspy.prediction import NOT_ASKED, Answer, Question, Response
from moa_dspy.references import NO_LIMITS, Cut, ReferenceLimits, built_tokens, fit
from moa_dspy.signatures import REFERENCES
from moa_dspy.waves import MemberQuestions, WaveRules, Waves


@dataclass(frozen=True, slots=True)
class Reader:
    """Adds responses to the inputs of an agent that reads them.

    Attributes:
        pool: Source of each agent's context window.
        adapter: A DSPy adapter for all agents; None takes that of the settings.
        limits: Most tokens of the references.
    """

    pool: AgentPool
    adapter: Any = None
    limits: ReferenceLimits = field(default_factory=ReferenceLimits)

    def __call__(
        self, agent: str, module: Any, inputs: Mapping[str, Any], responses: Sequence[Response], /
    ) -> tuple[Mapping[str, Any], tuple[Cut, ...]]:
        """Return the inputs with the references added, and the cuts made to the references."""
        adapter, reader = speaking_adapter(self.adapter), self.pool[agent]

        def with_references(texts: Sequence[str]) -> dict[str, Any]:
            return {**inputs, REFERENCES: guarded_references(texts, adapter=adapter)}

        texts = [response.text for response in responses]
        window = reader.context_window
        if window is None and self.limits == NO_LIMITS:
            return with_references(texts), ()
        # Cut before guarding, so that no escape sequence is cut in two.
        texts, cuts = fit(
            texts,
            agents=[response.agent for response in responses],
            limits=self.limits,
            room=None if window is None else window - (reader.max_tokens or 0),
            measure=lambda read: built_tokens(module, adapter, with_references(read)),
        )
        return with_references(texts), cuts


Plan: TypeAlias = Generator[list[Question], list[Response], Answer]
"""Yields questions that may be asked at once, is sent their responses, returns the answer."""


_KINDS: Final[Kinds] = {
    "adapter": (dspy.Adapter | None, "an adapter such as dspy.JSONAdapter()"),
    "quorum": WHOLE,
    "stop_early": (bool, "true or false"),
    "deadline_seconds": NUMBER_OR_NONE,
    "reference_limits": (ReferenceLimits, "ReferenceLimits, such as ReferenceLimits(total=4_000)"),
}


@dataclass(frozen=True, slots=True)
class Rules:
    """Options of a mixture besides its architecture: adapter, ties, quorum, deadline, limits.

    Attributes:
        adapter: A DSPy adapter for all agents; None takes that of the settings.
        normalise: Name of the comparison of answers in a vote.
        quorum: Fewest responses with which a layer is complete.
        deadline_seconds: Time after which a layer goes on without the agents that are late.
        reference_limits: Most tokens of the references.
        stop_early: Whether a vote stops asking once the others cannot change its answer; never
            in a traced run, as optimizers learn from the answers of all agents.

    Raises:
        ArchitectureError: If an option is out of range.
    """

    adapter: Any = None
    normalise: str = "text"
    quorum: int = 1
    deadline_seconds: float | None = None
    reference_limits: ReferenceLimits = field(default_factory=ReferenceLimits)
    stop_early: bool = True

    def __post_init__(self) -> None:
        check_kinds(self, _KINDS, error=ArchitectureError)
        if self.normalise not in NORMALISERS:
            choices = ", ".join(sorted(NORMALISERS))
            raise ArchitectureError(
                f"Unknown `normalise` {self.normalise!r}; known ones are {choices}."
            )
        if self.quorum < 1:
            raise ArchitectureError(f"`quorum` must be at least 1, but got {self.quorum}.")
        late = self.deadline_seconds
        if late is not None and not 0 < late <= TIMEOUT_MAX:
            raise ArchitectureError(
                f"`deadline_seconds` must be positive, or None for no deadline, but got {late}."
            )


@dataclass(frozen=True, slots=True)
class Planner:
    """Planner of the answer to one question; it calls no model.

    Attributes:
        architecture: The agents of every seat.
        proposers: The module of each proposer, layer by layer.
        aggregator: The module of the last step, if that step asks a model.
        analyst: The module that compares the references before the last step is written.
        outputs: Names of the signature's output fields.
        pool: Source of each agent's context window.
        rules: Options besides the architecture.
    """

    architecture: Architecture
    proposers: Sequence[Sequence[Any]]
    aggregator: Any
    outputs: tuple[str, ...]
    pool: AgentPool
    rules: Rules
    analyst: Any = None

    def plan(self, inputs: Mapping[str, Any]) -> Plan:
        """Yield the questions of each layer and of the last step, and return the answer."""
        layers: list[tuple[Response, ...]] = []
        seconds: list[float] = []
        nodes: tuple[str, ...] = ()
        for depth, names in enumerate(self.architecture.layers):
            questions = self._questions(depth, inputs, nodes, layers)
            nodes = tuple(question.node for question in questions)
            waves = self._waves if depth == self.architecture.depth - 1 else None
            # An optimizer needs the trace of every member.
            if waves is not None and (waves.stops or waves.agreeing) and not is_traced():
                late = self.rules.deadline_seconds
                questions = MemberQuestions(questions, WaveRules(waves, self._vote.ballot, late))
                responses = yield from questions.in_waves()
            else:
                responses = yield questions
            layers.append(self._complete(*responses))
            seconds.append(seconds_of(questions, layers[-1]))
            answered = sum(response.has_answer for response in layers[-1])
            if answered < min(self.rules.quorum, len(names)):
                raise _too_few(f"Layer {depth + 1}: {answered} of {len(names)}", layers)
        return (yield from self._last_step(inputs, nodes, layers, seconds))

    @property
    def _waves(self) -> Waves | None:
        """Return the waves in which members of a vote are asked; None asks all at once."""
        architecture, stops = self.architecture, self.rules.stop_early
        quorum = min(self.rules.quorum, len(architecture.layers[-1]))
        if architecture.combine == "vote":
            return Waves.of_vote(architecture, stops=stops, quorum=quorum)
        # Consensus depends on all members.
        reading = architecture.reading
        first = reading[: architecture.agree] if architecture.agree is not None else ()
        evenly = (1,) * len(reading)
        return Waves(evenly, reading, first, stops=False, quorum=quorum) if first else None

    @property
    def _vote(self) -> Vote:
        architecture, normalise = self.architecture, NORMALISERS[self.rules.normalise]
        return Vote(self.outputs, normalise, architecture.aggregator, architecture.integer_weights)

    def _responses_read(self, responses: Sequence[Response]) -> list[Response]:
        """Return the answers that the last step reads, in the order of reading."""
        architecture, waves = self.architecture, self._waves
        places: Collection[int] = architecture.reading
        if waves is not None and (architecture.agree, architecture.lead) != (None, None):
            rules = WaveRules(waves, self._vote.ballot)
            places = waves.counted(rules.votes(dict(enumerate(responses))))
        return [
            responses[s] for s in architecture.reading if s in places and responses[s].has_answer
        ]

    def _questions(
        self,
        depth: int,
        inputs: Mapping[str, Any],
        parents: Sequence[str],
        before: Sequence[Sequence[Response]],
    ) -> list[Question]:
        names = self.architecture.layers[depth]
        readable = [response for response in before[-1] if response.has_answer] if depth else []
        questions, reader = [], self._reader
        for seat, (name, module) in enumerate(zip(names, self.proposers[depth], strict=True)):
            sample = names[:seat].count(name)
            node = node_name("propose", name, sample, parents=parents)
            read, cuts = reader(name, module, inputs, readable) if depth else (inputs, ())
            late = self.rules.deadline_seconds
            questions.append(Question(node, name, sample, module, read, cuts, late))
        return questions

    def _last_step(
        self,
        inputs: Mapping[str, Any],
        nodes: tuple[str, ...],
        layers: Sequence[tuple[Response, ...]],
        seconds: Sequence[float],
    ) -> Plan:
        combine, is_undecided = None, False
        if not layers:
            name = str(self.architecture.aggregator)
            node = node_name("propose", name)
            (final,) = yield [Question(node, name, 0, self.aggregator, inputs, is_final=True)]
            rounds = [[final]]
        else:
            responses = self._responses_read(layers[-1])
            combine = self._combine(tuple(nodes[seat] for seat in self.architecture.reading))
            final, rounds = yield from _watched(combine(inputs, responses))
            if isinstance(combine, (Rank, Knockout)):
                is_undecided = combine.is_undecided(responses, rounds)
        if not final.has_answer:
            who = "aggregator" if layers else "agent"
            raise _too_few(f"The {who} did not answer: 0 of 1", [*layers, *rounds, [final]])
        self._complete(final)
        took = (*seconds, *(max(reply.seconds for reply in replies) for replies in rounds))
        replies = tuple(reply for replies in rounds for reply in replies)
        return self._answer(final, layers, replies, is_undecided, took)

    def _answer(
        self,
        final: Response,
        layers: Sequence[tuple[Response, ...]],
        replies: tuple[Response, ...],
        is_undecided: bool,
        seconds: tuple[float, ...],
    ) -> Answer:
        return Answer(
            final,
            tuple(
                tuple(response for response in layer if response.failure != NOT_ASKED)
                for layer in layers
            ),
            replies,
            is_undecided,
            seconds,
            tuple(
                response.agent
                for layer in layers
                for response in layer
                if response.failure == NOT_ASKED
            ),
            dict(self.architecture.weights),
        )

    def _complete(self, *responses: Response) -> tuple[Response, ...]:
        """Return the responses; raise if a module of the caller left out an output field."""
        for response in responses:
            if response.failure is None and not response.values.keys() >= {*self.outputs}:
                raise ArchitectureError(
                    f"The module of agent {response.agent!r} must return "
                    f"{', '.join(self.outputs)}, but it returned {', '.join(response.values)}."
                )
        return responses

    def _combine(self, parents: tuple[str, ...]) -> Combine:
        name, combine = self.architecture.aggregator, self.architecture.combine
        if combine == "vote":
            return self._vote
        if name is None:
            return Consensus()
        if (prompt := self.architecture.prompt) is not None:
            parents = (*parents, f"prompt={prompt}")  # another prompt makes another computation
        if combine == "fuse":
            analyst = self.architecture.analyst or name
            return Fuse(name, self.aggregator, parents, self._reader, analyst, self.analyst)
        if combine == "select":
            return Rank(name, self.aggregator, parents, self._reader)
        kind = Knockout if combine == "knockout" else Synthesize
        return kind(name, self.aggregator, parents, self._reader)

    @property
    def _reader(self) -> Reader:
        return Reader(self.pool, self.rules.adapter, self.rules.reference_limits)


def follow(plan: Plan, ask_all: Callable[[list[Question]], list[Response]]) -> Answer:
    """Run a plan and return its answer; ``ask_all`` answers each round of questions."""
    try:
        questions = next(plan)
        while True:
            questions = plan.send(ask_all(questions))
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer


async def afollow(
    plan: Plan, ask_all: Callable[[list[Question]], Awaitable[list[Response]]]
) -> Answer:
    """Run a plan and return its answer as ``follow``, in a coroutine."""
    try:
        questions = next(plan)
        while True:
            questions = plan.send(await ask_all(questions))
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer


def _watched(
    steps: Steps,
) -> Generator[list[Question], list[Response], tuple[Response, list[list[Response]]]]:
    """Run the last step; return its response, and the models' replies round by round."""
    rounds: list[list[Response]] = []
    try:
        questions = next(steps)
        while True:
            rounds.append((yield questions))
            questions = steps.send(rounds[-1])
    except StopIteration as stop:
        final: Response = stop.value
        return final, rounds


def _too_few(subject: str, rounds: Sequence[Sequence[Response]]) -> LayerFailedError:
    """Return the error of the last of these rounds of responses."""
    failed = [
        response for response in rounds[-1] if not (response.has_answer or response.is_left_out)
    ]
    causes = "; ".join(f"{response.agent}: {response.failure}" for response in failed)
    error = LayerFailedError(f"{subject} agents answered. {causes}")
    # The reply of an aggregator ends its own rounds, and is the final response as well.
    every = {id(response): response for responses in rounds for response in responses}
    error.responses = tuple(
        response for response in every.values() if response.failure != NOT_ASKED
    )
    return error


def is_traced() -> bool:
    """Return whether a caller records a trace of this run, as DSPy's optimizers do.

    The trace that DSPy always keeps for the process does not count, as nothing reads it.
    """
    trace = dspy.settings.trace
    return trace is not None and trace is not main_thread_config["trace"]


def seconds_of(questions: Sequence[Question], responses: Sequence[Response]) -> float:
    """Return the seconds that a layer took; for members of a vote those of their waves."""
    noted = questions.seconds if isinstance(questions, MemberQuestions) else None
    return max(response.seconds for response in responses) if noted is None else noted
