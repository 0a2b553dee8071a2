"""The DSPy program: layers of proposers, then an aggregator."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import chain, count
from typing import Any, Final, TypeAlias

import dspy

from moa_dspy.adapters import guarded
from moa_dspy.aggregators import (
    NORMALISERS,
    Combine,
    Consensus,
    Question,
    Rank,
    Steps,
    Synthesize,
    Vote,
    node_name,
)
from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError, LayerFailedError
from moa_dspy.pool import Pool
from moa_dspy.response import Answer, Response
from moa_dspy.seat import Seats
from moa_dspy.signatures import REFERENCES, ranker, with_references

Plan: TypeAlias = Generator[list[Question], list[Response], Answer]
"""Yields questions that may be asked at once, is sent their responses, returns the answer."""


AGENT_MODULES: dict[str, Callable[[Any], Any]] = {
    "chain_of_thought": dspy.ChainOfThought,
    "predict": dspy.Predict,
}
"""Names that a study file or a saved program may use for the module of a seat."""


FACTS: Final = "mixture"
"""Name under which a prediction carries its ``Answer``."""


class Layer(dspy.Module):
    """Proposers that see the same input and do not see each other."""

    def __init__(self, proposers: Sequence[Any]) -> None:
        super().__init__()
        self.proposers = list(proposers)


class MixtureOfAgents(dspy.Module):
    """Layered mixture of agents (Wang et al., 2024, arXiv:2406.04692, eq. 1).

    Every proposer of the first layer answers the signature's inputs; those of later
    layers also read the responses before them; the last step makes one answer. The
    prediction has the signature's own output fields, and ``mixture``, an ``Answer``
    with each agent's response, price, seconds and failure.

    Args:
        signature: What the mixture answers: a DSPy signature, or its text.
        architecture: Who sits where, or its text notation; instead of it,
            ``layers`` and ``aggregator`` may give LMs or agent names.
        pool: Where names become LMs; not needed when LMs are given.
        agent: Makes the module of a seat from a signature: ``dspy.Predict``,
            ``dspy.ChainOfThought``, ...
        adapter: A DSPy adapter for every seat; None takes the one of the settings.
        normalise: When a vote takes two answers for equal: ``text`` or ``answer``.
        quorum: Fewest responses that a layer may go on with.

    Raises:
        ArchitectureError: If the architecture cannot be built, or not with this signature.
        PoolError: If the pool lacks an agent.
        LayerFailedError: When called: fewer than the quorum answered, or not the aggregator.
    """

    def __init__(
        self,
        signature: str | type[dspy.Signature],
        architecture: Architecture | str | None = None,
        *,
        layers: Sequence[Sequence[Any]] | None = None,
        aggregator: Any = None,
        pool: Pool | None = None,
        agent: Callable[[Any], Any] = dspy.Predict,
        adapter: Any = None,
        normalise: str = "text",
        quorum: int = 1,
    ) -> None:
        super().__init__()
        if architecture is None:
            architecture, pool = _from_parts(layers or (), aggregator, pool)
        elif layers is not None or aggregator is not None:
            raise ArchitectureError("`layers` and `aggregator` stand instead of `architecture`.")
        if isinstance(architecture, str):
            architecture = Architecture.parse(architecture)
        if pool is None:
            raise ArchitectureError("`pool` must be given with an architecture of names.")
        if normalise not in NORMALISERS:
            known = ", ".join(sorted(NORMALISERS))
            raise ArchitectureError(f"Unknown `normalise` {normalise!r}; known ones are {known}.")
        if quorum < 1:
            raise ArchitectureError(f"`quorum` must be at least 1, but got {quorum}.")
        for name in architecture.agents:
            pool[name]
        self.signature: Any = dspy.ensure_signature(signature)
        for taken in (REFERENCES, FACTS):
            if taken in self.signature.fields:
                raise ArchitectureError(f"The signature's own field {taken!r} must be renamed.")
        self.architecture, self.pool, self.adapter = architecture, pool, adapter
        self.normalise, self.quorum, self._agent = normalise, quorum, agent
        self.layers = [
            Layer([agent(self._proposal(depth)) for _ in names])
            for depth, names in enumerate(architecture.layers)
        ]
        self.aggregator = self._make_aggregator(agent)

    def with_architecture(self, architecture: Architecture) -> MixtureOfAgents:
        """Return a mixture like this one in everything but who sits where; prompts are new."""
        return MixtureOfAgents(
            self.signature,
            architecture,
            pool=self.pool,
            agent=self._agent,
            adapter=self.adapter,
            normalise=self.normalise,
            quorum=self.quorum,
        )

    def _proposal(self, depth: int) -> Any:
        return with_references(self.signature) if depth else self.signature

    def _make_aggregator(self, agent: Callable[[Any], Any]) -> Any:
        if not self.architecture.aggregator_calls_a_model:
            return None
        if self.architecture.combine == "select":
            return dspy.Predict(ranker(self.signature))
        return agent(self._proposal(self.architecture.depth))

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Answer, the proposers of a layer at the same time in threads."""
        return _prediction(follow(self.plan(inputs), self.seats.ask_all))

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Answer, the proposers of a layer at the same time as tasks."""
        plan = self.plan(inputs)
        try:
            questions = next(plan)
            while True:
                questions = plan.send(await self.seats.aask_all(questions))
        except StopIteration as stop:
            return _prediction(stop.value)

    def plan(self, inputs: Mapping[str, Any]) -> Plan:
        """Say what to ask next until there is an answer; asks nothing itself."""
        layers: list[tuple[Response, ...]] = []
        nodes: tuple[str, ...] = ()
        for depth, names in enumerate(self.architecture.layers):
            questions = self._questions(depth, inputs, nodes, layers)
            layers.append(tuple((yield questions)))
            nodes = tuple(question.node for question in questions)
            answered = sum(response.has_answer for response in layers[-1])
            if answered < self.quorum:
                raise _too_few(f"Layer {depth + 1}: {answered} of {len(names)}", layers[-1])
        return (yield from self._last_step(inputs, nodes, layers))

    def _questions(
        self,
        depth: int,
        inputs: Mapping[str, Any],
        parents: Sequence[str],
        before: Sequence[Sequence[Response]],
    ) -> list[Question]:
        names = self.architecture.layers[depth]
        if depth:
            read = [response.text for response in before[-1] if response.has_answer]
            inputs = {**inputs, REFERENCES: self._guarded(read)}
        samples = [names[:seat].count(name) for seat, name in enumerate(names)]
        proposers = self.layers[depth].proposers
        return [
            Question(node_name("propose", name, sample, parents=parents), name, sample, who, inputs)
            for name, sample, who in zip(names, samples, proposers, strict=True)
        ]

    def _last_step(
        self,
        inputs: Mapping[str, Any],
        nodes: tuple[str, ...],
        layers: Sequence[tuple[Response, ...]],
    ) -> Plan:
        if not layers:
            name = str(self.architecture.aggregator)
            only = Question(node_name("propose", name), name, 0, self.aggregator, inputs)
            (final,) = yield [only]
            asked = final
        else:
            readable = [response for response in layers[-1] if response.has_answer]
            steps = self._combine(nodes)(inputs, readable)
            final, asked = yield from _watched(steps)
        if not final.has_answer:
            raise _too_few("The aggregator did not answer: 0 of 1", [final])
        return Answer(final, tuple(layers), asked)

    def _combine(self, parents: tuple[str, ...]) -> Combine:
        name, combine = self.architecture.aggregator, self.architecture.combine
        if combine == "vote":
            return Vote(tuple(self.signature.output_fields), NORMALISERS[self.normalise], name)
        if name is None:
            return Consensus()
        kind = Synthesize if combine == "synthesize" else Rank
        return kind(name, self.aggregator, parents, self._guarded)

    def _guarded(self, texts: Sequence[str]) -> list[str]:
        return guarded(texts, adapter=self.adapter or dspy.settings.adapter)

    @property
    def seats(self) -> Seats:
        """Asks the questions of this mixture's plan."""
        return Seats(self.pool, self.adapter)


def follow(plan: Plan, ask_all: Callable[[list[Question]], list[Response]]) -> Answer:
    """Run a plan to its answer; ``ask_all`` gives the responses to each round of questions."""
    try:
        questions = next(plan)
        while True:
            questions = plan.send(ask_all(questions))
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer


def _watched(steps: Steps) -> Generator[list[Question], list[Response], tuple[Response, Any]]:
    """Run the last step and also return what a model itself replied in it, if one was asked."""
    replies: list[Response] = []
    try:
        questions = next(steps)
        while True:
            replies = yield questions
            questions = steps.send(replies)
    except StopIteration as stop:
        final: Response = stop.value
        return final, replies[-1] if replies else None


def _prediction(answer: Answer) -> dspy.Prediction:
    return dspy.Prediction(**answer.final.values, **{FACTS: answer})


def _too_few(what: str, responses: Sequence[Response]) -> LayerFailedError:
    causes = "; ".join(f"{r.agent}: {r.failure}" for r in responses if not r.has_answer)
    return LayerFailedError(f"{what} agents answered. {causes}")


def _from_parts(
    layers: Sequence[Sequence[Any]], aggregator: Any, pool: Pool | None
) -> tuple[Architecture, Pool]:
    """Name LMs that were given as objects, equal objects alike, and build a pool of them."""
    if aggregator is None:
        raise ArchitectureError("`architecture`, or `layers` and `aggregator`, must be given.")
    given = [*(lm for layer in layers for lm in layer), aggregator]
    if all(isinstance(name, str) for name in given):
        if pool is None:
            raise ArchitectureError("`pool` must be given with agent names.")
        return Architecture(tuple(map(tuple, layers)), aggregator), pool
    names: dict[int, str] = {}
    lms: dict[str, Any] = {}
    for lm in given:
        if not isinstance(lm, dspy.BaseLM):
            raise ArchitectureError(f"Seats must be all names or all LMs, but one is {lm!r}.")
        if id(lm) not in names:
            stem = re.sub(r"[\s>+*()]", "-", str(lm.model))
            numbered = (f"{stem}-{n}" for n in count(2))
            names[id(lm)] = next(name for name in chain([stem], numbered) if name not in lms)
            lms[names[id(lm)]] = lm
    named = tuple(tuple(names[id(lm)] for lm in layer) for layer in layers)
    return Architecture(named, names[id(aggregator)]), Pool.from_lms(lms)
