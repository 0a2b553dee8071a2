"""Self-MoA-Seq: many samples of one agent, aggregated a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dspy

from moa_dspy.aggregators import Question, node_name
from moa_dspy.errors import ArchitectureError, LayerFailedError
from moa_dspy.plan import Plan, Rules, afollow, follow
from moa_dspy.pool import Pool
from moa_dspy.prediction import MixturePrediction
from moa_dspy.reader import Reader
from moa_dspy.response import Answer, Response
from moa_dspy.seats import Seats
from moa_dspy.signatures import with_references


class SelfMoASeq(dspy.Module):
    """Self-MoA with a sliding window (Li et al., 2025, arXiv:2502.00674, section 5).

    One agent answers ``samples`` times. The aggregator reads the first ``window`` answers
    and writes one; then it reads that one, carried along, with the next ones, until all
    have been read. So the prompt stays as long as ``window`` answers, however many samples
    there are.

    Args:
        signature: What is answered: a DSPy signature, or its text.
        agent: Who is asked for samples; a name of the pool.
        pool: Where names become LMs.
        aggregator: Who aggregates; default: the agent itself.
        samples: How often the agent is asked.
        window: How many answers the aggregator reads at once, the carried one included.
        module: Makes the module of both roles from a signature.
        adapter: A DSPy adapter for both; None takes the one of the settings.

    Raises:
        ArchitectureError: If there is no sample, or a window of fewer than two.
        PoolError: If the pool lacks an agent.
        LayerFailedError: When called: no sample, or an aggregation, was answered.
    """

    def __init__(
        self,
        signature: str | type[dspy.Signature],
        agent: str,
        *,
        pool: Pool,
        aggregator: str | None = None,
        samples: int = 6,
        window: int = 3,
        module: Callable[[Any], Any] = dspy.Predict,
        adapter: Any = None,
    ) -> None:
        super().__init__()
        if samples < 1:
            raise ArchitectureError(f"`samples` must be at least 1, but got {samples}.")
        if window < 2:
            raise ArchitectureError(f"`window` must be at least 2, but got {window}.")
        self.signature: Any = dspy.ensure_signature(signature)
        self.agents = (pool[agent].name, pool[aggregator or agent].name)
        self.pool, self.samples, self.window = pool, samples, window
        self.rules = Rules(adapter)
        self.proposer = module(self.signature)
        self.aggregator = module(with_references(self.signature))

    def forward(self, **inputs: Any) -> MixturePrediction:
        """Answer, all samples at the same time in threads."""
        return MixturePrediction.of(follow(self.plan(inputs), self.seats.ask_all))

    async def aforward(self, **inputs: Any) -> MixturePrediction:
        """Answer, all samples at the same time as tasks."""
        return MixturePrediction.of(await afollow(self.plan(inputs), self.seats.aask_all))

    def plan(self, inputs: Mapping[str, Any]) -> Plan:
        """Say what to ask next until there is an answer; asks nothing itself."""
        name = self.agents[0]
        questions = [
            Question(node_name("propose", name, n), name, n, self.proposer, inputs)
            for n in range(self.samples)
        ]
        drawn = tuple((yield questions))
        rest = [response for response in drawn if response.has_answer]
        if not rest:
            raise LayerFailedError(f"No sample was answered. {name}: {drawn[0].failure}")
        node = ",".join(question.node for question in questions)
        layers, best = [drawn], rest.pop(0)
        while rest:
            read, rest = rest[: self.window - 1], rest[self.window - 1 :]
            question = self._question(inputs, [best, *read], parent=node, is_final=not rest)
            (best,) = yield [question]
            if not best.has_answer:
                raise LayerFailedError(
                    f"The aggregator did not answer. {best.agent}: {best.failure}"
                )
            node = question.node
            layers.append((best,))
        return Answer(best, tuple(layers[:-1]) or (drawn,), best if len(layers) > 1 else None)

    def _question(
        self, inputs: Mapping[str, Any], read: list[Response], *, parent: str, is_final: bool
    ) -> Question:
        name = self.agents[1]
        reader = Reader(self.pool, self.rules.adapter, self.rules.limits)
        values, cuts = reader(name, self.aggregator, inputs, read)
        node = node_name("synthesize", name, parents=(parent,))
        return Question(node, name, 0, self.aggregator, values, cuts, is_final=is_final)

    @property
    def seats(self) -> Seats:
        """Asks the questions of this module's plan."""
        return Seats(self.pool, self.rules.adapter)
