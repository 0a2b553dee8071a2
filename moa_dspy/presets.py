"""The mixtures of the papers by name, and a program that answers conversations turn by turn.

The papers' models and settings are defaults. All of these mixtures use the *paper* layout of plain
chat: the messages of the papers' own program, with the responses in the order of ``proposers`` and
not guarded (neither quoted nor escaped). Pass ``adapter=PlainChat()`` for the guarded layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import dspy

from moa_dspy.adapters import PlainChat
from moa_dspy.adapters.guard import is_history
from moa_dspy.agent import Agent
from moa_dspy.aggregators import node_name
from moa_dspy.architecture import Architecture
from moa_dspy.errors import ArchitectureError, DataError, LayerFailedError
from moa_dspy.mixture import MixtureOfAgents, PlannedModule
from moa_dspy.plan import Plan, Reader, Rules
from moa_dspy.pool import Pool
from moa_dspy.prediction import Answer, Question, Response
from moa_dspy.signatures import usable_signature, with_references


class SelfMoASeq(PlannedModule):
    """Self-MoA with a sliding window (Li et al., 2025, arXiv:2502.00674, section 5).

    One agent answers ``samples`` times. The aggregator reads the first ``window`` answers and
    writes one; then it reads this answer with the next ones, until it has read all. So a prompt
    never holds more than ``window`` answers, however many samples there are.

    Args:
        signature: The task: a DSPy signature, or its text.
        agent: The agent that is sampled; a name of the pool.
        pool: The agents by name.
        aggregator: The agent that aggregates; default: the sampled one.
        samples: Number of samples of the agent.
        window: Number of answers that the aggregator reads at once, its previous one included.
        module: Makes the module of both roles from a signature.
        adapter: A DSPy adapter for both; None takes that of the settings.

    Raises:
        ArchitectureError: If there is no sample, or a window of fewer than two.
        PoolError: If the pool lacks an agent.
        LayerFailedError: When called: no sample succeeded, or an aggregation failed.
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
        self.signature: Any = usable_signature(signature)
        self._sampled, self._last = pool[agent].name, pool[aggregator or agent].name
        self.pool, self.samples, self.window = pool, samples, window
        self.rules = Rules(adapter)
        self.proposer = module(self.signature)
        self.aggregator = module(with_references(self.signature))

    @property
    def agents(self) -> tuple[str, ...]:
        """Names of the sampled agent and of the aggregator, without repetition."""
        return tuple(dict.fromkeys((self._sampled, self._last)))

    @property
    def writer(self) -> Any:
        """The module that writes the answer: the aggregator or, with one sample, the proposer."""
        return self.aggregator if self.samples > 1 else self.proposer

    def plan(self, inputs: Mapping[str, Any]) -> Plan:
        """Yield the next questions until there is an answer, without asking them."""
        name = self._sampled
        questions = [
            Question(node_name("propose", name, n), name, n, self.proposer, inputs)
            for n in range(self.samples)
        ]
        drawn = tuple((yield questions))
        rest = [response for response in drawn if response.has_answer]
        if not rest:
            raise LayerFailedError(f"No sample got an answer. {name}: {drawn[0].failure}")
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
        took = tuple(max(response.seconds for response in layer) for layer in layers)
        last = (best,) if len(layers) > 1 else ()
        return Answer(best, tuple(layers[:-1]) or (drawn,), last, step_seconds=took)

    def _question(
        self, inputs: Mapping[str, Any], read: list[Response], *, parent: str, is_final: bool
    ) -> Question:
        name = self._last
        reader = Reader(self.pool, self.rules.adapter, self.rules.reference_limits)
        values, cuts = reader(name, self.aggregator, inputs, read)
        node = node_name("synthesize", name, parents=(parent,))
        return Question(node, name, 0, self.aggregator, values, cuts, is_final=is_final)


_MODELS: Final = {
    "wizardlm-2-8x22b": "microsoft/WizardLM-2-8x22B",
    "qwen1.5-110b": "Qwen/Qwen1.5-110B-Chat",
    "qwen1.5-72b": "Qwen/Qwen1.5-72B-Chat",
    "llama-3-70b": "meta-llama/Llama-3-70b-chat-hf",
    "mixtral-8x22b": "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "dbrx": "databricks/dbrx-instruct",
}

PAPER_AGENTS: Final = tuple(
    Agent(
        name=name,
        model=f"openai/{model}",
        api_base="https://api.together.xyz/v1",
        api_key_env="TOGETHER_API_KEY",
        temperature=0.7,
        max_tokens=2048,
    )
    for name, model in _MODELS.items()
)
"""The six open models of the paper (arXiv:2406.04692, section 3.1), in its order, with the settings
of its AlpacaEval entry. Vendors retire models: pass a pool of your own if one is gone."""


def moa(
    signature: str | type[dspy.Signature] = "question -> answer",
    *,
    pool: Pool | None = None,
    proposers: Sequence[str] | None = None,
    aggregator: str | None = None,
    **options: Any,
) -> MixtureOfAgents:
    """Return the paper's MoA: two layers of the same proposers, then an aggregator.

    Args:
        signature: The task; ``history: dspy.History`` makes it multi-turn.
        pool: The agents; default: ``PAPER_AGENTS``, with the key in ``TOGETHER_API_KEY``.
        proposers: Names of agents in the pool; default: all of them.
        aggregator: Name of an agent in the pool; default with the paper's pool: Qwen1.5-110B-Chat.
        options: More arguments of ``MixtureOfAgents``.

    Raises:
        ArchitectureError: If there is a pool and no ``aggregator``.
        PoolError: If the pool lacks an agent.
    """
    return _layered(
        signature, 2, pool, proposers, aggregator or _preset_agent("qwen1.5-110b", pool), options
    )


def moa_lite(
    signature: str | type[dspy.Signature] = "question -> answer",
    *,
    pool: Pool | None = None,
    proposers: Sequence[str] | None = None,
    aggregator: str | None = None,
    **options: Any,
) -> MixtureOfAgents:
    """Return the paper's MoA-Lite: one layer of proposers, then an aggregator.

    Arguments and errors are those of ``moa``; the paper's aggregator is Qwen1.5-72B-Chat.
    """
    return _layered(
        signature, 1, pool, proposers, aggregator or _preset_agent("qwen1.5-72b", pool), options
    )


def self_moa(
    signature: str | type[dspy.Signature] = "question -> answer",
    *,
    pool: Pool | None = None,
    agent: str | None = None,
    aggregator: str | None = None,
    samples: int = 6,
    **options: Any,
) -> MixtureOfAgents:
    """Return Self-MoA: samples of one agent, then an aggregator (arXiv:2502.00674).

    Args:
        signature: As for ``moa``.
        pool: As for ``moa``.
        agent: The agent that is sampled; default with the paper's pool: WizardLM-2-8x22B.
        aggregator: Default: the agent itself; for the paper's agent, Qwen1.5-110B-Chat.
        samples: Number of samples of the agent.
        options: More arguments of ``MixtureOfAgents``.

    Raises:
        ArchitectureError: If there is a pool and no ``agent``, or ``samples`` is below 1.
        PoolError: If the pool lacks an agent.
    """
    sampled, last = _sampled(pool, agent, aggregator)
    if samples < 1:
        raise ArchitectureError(f"`samples` must be at least 1, but got {samples}.")
    architecture = Architecture(((sampled,) * samples,), last)
    return _mixture(signature, architecture, pool, options)


def self_moa_seq(
    signature: str | type[dspy.Signature] = "question -> answer",
    *,
    pool: Pool | None = None,
    agent: str | None = None,
    aggregator: str | None = None,
    **options: Any,
) -> SelfMoASeq:
    """Return Self-MoA-Seq: like ``self_moa``, aggregated window by window (arXiv:2502.00674).

    ``options`` are more arguments of ``SelfMoASeq``: ``samples``, ``window``.
    """
    sampled, last = _sampled(pool, agent, aggregator)
    options = {"adapter": PlainChat(layout="paper"), **options}
    return SelfMoASeq(signature, sampled, pool=_pool_or_paper(pool), aggregator=last, **options)


def _layered(
    signature: Any,
    depth: int,
    pool: Pool | None,
    proposers: Sequence[str] | None,
    aggregator: str | None,
    options: dict[str, Any],
) -> MixtureOfAgents:
    if aggregator is None:
        raise ArchitectureError("`aggregator` must be given with a pool of your own.")
    layer = tuple(proposers or _pool_or_paper(pool))
    return _mixture(signature, Architecture((layer,) * depth, aggregator), pool, options)


def _mixture(
    signature: Any, architecture: Architecture, pool: Pool | None, options: dict[str, Any]
) -> MixtureOfAgents:
    options = {"adapter": PlainChat(layout="paper"), **options}
    return MixtureOfAgents(signature, architecture, pool=_pool_or_paper(pool), **options)


def _sampled(pool: Pool | None, agent: str | None, aggregator: str | None) -> tuple[str, str]:
    if agent is None and pool is not None:
        raise ArchitectureError("`agent` must be given with a pool of your own.")
    if agent is None:
        return "wizardlm-2-8x22b", aggregator or "qwen1.5-110b"
    return agent, aggregator or agent


def _preset_agent(name: str, pool: Pool | None) -> str | None:
    return name if pool is None else None


def _pool_or_paper(pool: Pool | None) -> Pool:
    return Pool(PAPER_AGENTS) if pool is None else pool


HISTORY: Final = "history"
"""Input for the earlier turns, if the signature has none of its own."""


def with_history(signature: Any) -> Any:
    """Return a signature of one input and one output text, with an input for earlier turns.

    Raises:
        ArchitectureError: If it has more inputs or outputs than these.
    """
    fields = signature.input_fields
    names = [name for name, field in fields.items() if not is_history(field)]
    if len(names) != 1 or len(signature.output_fields) != 1:
        raise ArchitectureError(
            "A conversation needs a signature with one input and one output, such as 'question "
            f"-> answer', but this one has the inputs {', '.join(fields) or 'none'} and the "
            f"outputs {', '.join(signature.output_fields) or 'none'}."
        )
    if len(fields) > 1:
        return signature
    return signature.prepend(HISTORY, dspy.InputField(), dspy.History)


class TurnByTurn(dspy.Module):
    """Answers a conversation: the whole mixture answers each turn, given all earlier turns.

    The earlier turns are the user's texts and the mixture's own answers to them, so each
    architecture continues from its own first answer. The output field of the prediction is a list
    with one answer per turn.

    Args:
        mixture: A mixture with one input text, one output text, and an input of type
            ``dspy.History``; see ``with_history``.
        turns: Name of the input with the user's turns, a list of texts.

    Raises:
        ArchitectureError: If the mixture's signature does not fit.
    """

    def __init__(self, mixture: MixtureOfAgents, *, turns: str = "turns") -> None:
        super().__init__()
        fields = with_history(mixture.signature).input_fields
        if len(mixture.signature.input_fields) < len(fields):
            raise ArchitectureError(
                "The mixture's signature needs an input of type dspy.History for the earlier "
                f"turns, but has only {', '.join(mixture.signature.input_fields)}."
            )
        self.mixture: Any = mixture
        self.turns = turns
        # The name ``history`` is taken: DSPy stores a module's calls in it.
        (self.history_input,) = (name for name, field in fields.items() if is_history(field))
        (self.question_input,) = (name for name in fields if name != self.history_input)
        (self.output_field,) = mixture.signature.output_fields

    def inputs_of(self, turns: Sequence[str]) -> list[dict[str, Any]]:
        """Return the mixture's inputs for each turn, without any answer."""
        messages = [{self.question_input: turn} for turn in turns]
        return [
            {self.history_input: dspy.History(messages=messages[:n]), **message}
            for n, message in enumerate(messages)
        ]

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Return the answers to all turns; a turn without an answer raises an error.

        Raises:
            DataError: If the input of the turns is missing or not a list of texts.
            LayerFailedError: If too few models answered a turn.
        """
        earlier: list[dict[str, Any]] = []
        for turn in self._turns_of(inputs):
            history = dspy.History(messages=list(earlier))
            turn_inputs = {self.history_input: history, self.question_input: turn}
            answer = self.mixture(**turn_inputs)[self.output_field]
            earlier.append({self.question_input: turn, self.output_field: answer})
        return dspy.Prediction(**{self.output_field: [turn[self.output_field] for turn in earlier]})

    def _turns_of(self, inputs: dict[str, Any]) -> Sequence[str]:
        turns = inputs.get(self.turns)
        is_list = isinstance(turns, list | tuple) and len(turns) > 0
        if not is_list or not all(isinstance(turn, str) for turn in turns or ()):
            raise DataError(f"`{self.turns}` must be a list of texts, but got {turns!r:.100}.")
        return tuple(turns or ())
