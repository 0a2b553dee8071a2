"""Offline replacements for models: agents that reply by script, or from recorded responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import dspy

from moa_dspy.agent import Agent
from moa_dspy.calls.calls import Calls
from moa_dspy.calls.lm.lm import stored_lm
from moa_dspy.calls.lm.response import with_thought
from moa_dspy.calls.reply import why_no_answer
from moa_dspy.calls.request import AgentCalls
from moa_dspy.calls.scope import CallFacts, current_scope
from moa_dspy.data import RecordedResponses
from moa_dspy.data.recorded import RecordedCost
from moa_dspy.dspy_internals import lm15
from moa_dspy.errors import UnknownCallError
from moa_dspy.pool import Pool
from moa_dspy.vendors import Price

Script: TypeAlias = str | Exception | Callable[[str], str]
"""An agent's reply: always the same text, a function of the last user message, or an error."""


def n_words(text: str) -> int:
    """Return the number of words of a text."""
    return len(text.split())


def scripted_pool(
    answers: Mapping[str, Script],
    *,
    calls: Calls | None = None,
    temperature: float = 0.0,
    usd_per_million_tokens: Mapping[str, float] | None = None,
    reads_all: bool = False,
    count: Callable[[str], int] = n_words,
) -> Pool:
    """Return a pool whose agents reply by script, through the call store like real agents.

    So calls are counted (``pool.calls.ledger.spending``), stored, reused and limited. A script
    replies like a model, in the adapter's format: plain text for ``PlainChat``,
    ``[[ ## answer ## ]]`` fields for the chat adapter, whose failure to read a reply costs a second
    call. At temperature 0 a script is called once per message, for all samples.

    Args:
        answers: Script by agent name; an exception, given or raised, makes a failed call.
        calls: Source and store of answers; default: memory.
        temperature: Temperature of every agent.
        usd_per_million_tokens: Price of prompt and completion tokens alike; default 0.
        reads_all: Whether a script gets the texts of all messages, system message first, separated
            by blank lines, instead of the last user message.
        count: Returns the tokens of a text; default: its words.
    """
    prices = usd_per_million_tokens or {}
    shared = calls or Calls()
    agents = [
        Agent(
            name=name,
            model=f"scripted/{name}",
            temperature=temperature,
            usd_per_million_prompt_tokens=prices.get(name, 0.0),
            usd_per_million_completion_tokens=prices.get(name, 0.0),
        )
        for name in answers
    ]
    lms = {
        agent.name: _lm(agent, answers[agent.name], shared, reads_all, count) for agent in agents
    }
    return Pool(agents, calls=shared, lms=lms)


@dataclass(frozen=True, slots=True)
class ScriptedEngine:
    """Engine that replies to a ``dspy.lm15.Request`` by a script, without an endpoint."""

    script: Script
    reads_all: bool = False
    count: Callable[[str], int] = n_words

    def complete(self, request: Any) -> Any:
        """Return the scripted response, or raise the script's error."""
        prompt = whole_text(request) if self.reads_all else last_user_text(request)
        if isinstance(self.script, Exception):
            raise self.script
        text = self.script if isinstance(self.script, str) else self.script(prompt)
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(text),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=self.count(prompt), output_tokens=self.count(text)),
        )


class AsyncScriptedEngine(ScriptedEngine):
    """``ScriptedEngine`` for coroutines."""

    async def complete(self, request: Any) -> Any:
        """Return the scripted response, or raise the script's error."""
        return ScriptedEngine.complete(self, request)


def last_user_text(request: Any) -> str:
    """Return the text of the request's last user message."""
    parts = next(m.parts for m in reversed(request.messages) if m.role == "user")
    return _text(parts)


def whole_text(request: Any) -> str:
    """Return the texts of the request's messages, system message first."""
    system = request.system if isinstance(request.system, str) else _text(request.system or ())
    return "\n\n".join([system, *(_text(message.parts) for message in request.messages)])


def _text(parts: Iterable[Any]) -> str:
    return "\n".join(part.text for part in parts if isinstance(part, lm15.TextPart))


def _lm(
    agent: Agent, script: Script, calls: Calls, reads_all: bool, count: Callable[[str], int]
) -> dspy.LM:
    price = agent.price or Price(0.0, 0.0, "unknown")
    caller = AgentCalls(agent=agent.name, identity=agent.identity, **price.per_token)
    return stored_lm(
        f"agent/{agent.name}",
        calls,
        caller,
        lambda asynchronous: (AsyncScriptedEngine if asynchronous else ScriptedEngine)(
            script, reads_all, count
        ),
        temperature=agent.temperature,
        max_tokens=agent.max_tokens,
    )


def recorded_pool(recorded: RecordedResponses, *, calls: Calls | None = None) -> Pool:
    """Return a pool with one agent per recorded model, which answers by example.

    The example is that of the surrounding ``call_scope``, which a search opens; otherwise, or if
    its id was not recorded, that whose text is the last user message. The agents answer only the
    bare question, in plain chat (``PlainChat``), so they can vote and be selected by consensus; an
    agent that is given other responses raises ``UnknownCallError``. A response recorded as null or
    blank is a failure of the model. A thought in a response is not part of the answer, unless there
    is nothing else and the recording has a score for it. The costs are those of the recording, also
    for missing responses. If the recording lacks ``usd`` or ``seconds`` for any response, the price
    or the time of all agents is unknown.

    Args:
        recorded: The questions, and the response of every agent to each.
        calls: Its ledger counts the answers as reused; default: a new replay.
    """
    shared = calls or Calls(replay_only=True)
    counts = Counter(text.strip() for text in recorded.questions.values())
    ids = {
        text.strip(): name
        for name, text in recorded.questions.items()
        if counts[text.strip()] == 1  # a text of two questions would be ambiguous
    }
    # Not the price of an answer, which is recorded, but a mark that it is known.
    price = 0.0 if recorded.knows("usd") else None
    agents = [
        Agent(
            name=name,
            model=f"recorded/{name}",
            temperature=0.0,
            usd_per_million_prompt_tokens=price,
            usd_per_million_completion_tokens=price,
        )
        for name in recorded.models
    ]
    replays = {a.name: _Replay(a.name, recorded, shared, ids) for a in agents}
    lms = {name: _recorded_lm(it) for name, it in replays.items()}
    pool = Pool(agents, calls=shared, lms=lms)
    pool.is_timed = recorded.knows("seconds")
    return pool


_NO_RESPONSE: Final = "The model gave no response when it was recorded."


@dataclass(frozen=True, slots=True)
class _Replay:
    """The recorded responses of one agent, found by request."""

    agent: str
    recorded: RecordedResponses = field(repr=False)
    calls: Calls = field(repr=False)
    ids: Mapping[str, str] = field(repr=False)

    def answer(self, request: Any) -> Any:
        """Return the response to a ``dspy.lm15.Request``.

        Raises:
            UnknownCallError: This agent's answer to this request is not recorded.
            ProviderError: The recorded response is null or blank.
        """
        name = self._find(last_user_text(request).strip())
        text = self.recorded.responses[self.agent][name]
        cost = self.recorded.costs.get((name, self.agent), RecordedCost())
        self.calls.count_reuse()
        failure = None if text and text.strip() else _NO_RESPONSE
        no_answer = None if failure else why_no_answer([("text", text or "")])
        # A thought without an answer is returned whole if the recording has a score for it.
        is_whole = no_answer is not None and (name, self.agent) in self.recorded.scores
        facts = CallFacts(
            self.agent,
            cost.prompt_tokens or 0,
            cost.completion_tokens or 0,
            cost.usd or 0.0,
            cost.seconds or 0.0,
            is_reused=True,
            failure=failure,
            no_answer=None if is_whole else no_answer,
        )
        current_scope().note(facts)
        if failure is not None:
            raise lm15.ProviderError(failure)
        response = lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(text or ""),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=0, output_tokens=0),
        )
        return response if is_whole else with_thought(response)[0]

    def _find(self, question: str) -> str:
        example = current_scope().example
        is_example = example in self.recorded.questions
        name = example if is_example else self.ids.get(question)
        if name is None:
            where = "" if example is None else f"for example {example!r}, nor "
            raise UnknownCallError(
                f"No response of agent {self.agent!r} is recorded {where}for a question that "
                f"reads {question[:60]!r}."
            )
        if question != self.recorded.questions[name].strip():
            raise UnknownCallError(
                f"Agent {self.agent!r} is asked something other than the recorded question of "
                f"example {name!r}. A recorded agent answers only that question, in plain chat: "
                "it can vote, but it cannot read other responses; `with_questions` gives rows "
                "their own wording."
            )
        responses = self.recorded.responses[self.agent]
        if name not in responses:
            raise UnknownCallError(
                f"No response of agent {self.agent!r} is recorded for example {name!r}."
            )
        return name


class _Shared:
    """Base of both engines; copies of a program share the recording."""

    logs_calls = True

    def __init__(self, replay: _Replay) -> None:
        self.replay = replay

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.replay.agent!r})"


class RecordedEngine(_Shared):
    """A DSPy engine that answers from a recording."""

    def complete(self, request: Any) -> Any:
        """Return the recorded response."""
        return self.replay.answer(request)

    def stream(self, request: Any) -> Iterator[Any]:
        """Yield the events of the recorded response."""
        yield from lm15.response_to_events(self.complete(request))

    def close(self) -> None:
        """Do nothing, as no connection is open."""


class AsyncRecordedEngine(_Shared):
    """``RecordedEngine`` for coroutines."""

    async def complete(self, request: Any) -> Any:
        """Return the recorded response."""
        return self.replay.answer(request)

    async def stream(self, request: Any) -> Any:
        """Yield the events of the recorded response."""
        for event in lm15.response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Do nothing, as no connection is open."""


def _recorded_lm(replay: _Replay) -> dspy.LM:
    return dspy.LM(
        f"agent/{replay.agent}",
        temperature=0.0,
        cache=False,
        num_retries=0,
        engine=RecordedEngine(replay),
        async_engine=AsyncRecordedEngine(replay),
    )
