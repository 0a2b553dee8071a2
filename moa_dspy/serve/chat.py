"""Answers to chat requests: every agent gets the conversation, readers get the references too.

A request is a ``dspy.lm15.Request``, from any protocol. Quorum, deadlines and costs are those of
a ``MixtureOfAgents``; only the messages are the caller's instead of a signature's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

import dspy
from dspy.streaming.messages import StatusMessage

from moa_dspy.adapters import PlainChat
from moa_dspy.adapters.guard import quoted, user_content
from moa_dspy.adapters.plain_chat import earlier_turns, only_output
from moa_dspy.architecture import Architecture
from moa_dspy.calls.lm.stream import arguments_of, deltas_of_reply
from moa_dspy.dspy_internals import CLIENT_KEYS, lm15
from moa_dspy.errors import ArchitectureError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.plan import Plan, Planner, afollow, follow
from moa_dspy.pool import Pool
from moa_dspy.prediction import Answer, Question, Response
from moa_dspy.seats import Seats
from moa_dspy.signatures import REFERENCES_HEADING, separated

_NOT_SENT: Final = CLIENT_KEYS | {"n", "num_generations", "prompt_cache", "rollout_id"}


class ChatText(str):
    """The text of a reply, and the reply itself, with tool calls and finish reason.

    Attributes:
        reply: The ``dspy.lm15.Response``.
    """

    __slots__ = ("reply",)
    reply: Any


def chat_text(reply: Any) -> ChatText:
    """Return the text of a reply that another agent reads, or else the tools that it calls."""
    texts = [part.text for part in reply.message.parts_of(lm15.TextPart)]
    calls = [f"call of {call.name}: {arguments_of(call)}" for call in reply.tool_calls]
    text = ChatText("".join(texts) if "".join(texts).strip() else "\n".join(calls))
    text.reply = reply
    return text


@dataclass(frozen=True, slots=True)
class ChatInput:
    """A chat request as the input of a seat; ``str`` is all text that an agent would read."""

    request: Any

    def __str__(self) -> str:
        parts = [part for message in self.request.messages for part in message.parts]
        system = self.request.system
        tools = [f"{tool.name} {tool.description}" for tool in self.request.tools]
        shown = [str(getattr(part, "text", None) or getattr(part, "content", "")) for part in parts]
        return "\n\n".join([str(system or ""), *tools, *shown])


class ChatSeat(dspy.Module):
    """Asks the seat's LM to continue a conversation.

    Args:
        taught: The predictor of a program whose instructions and demos are used.
        is_answer: Whether the reply can be the mixture's answer: then the caller's settings
            (temperature, stop, response format ...) apply to it. All seats get the tools.
        is_about: Whether the reply is about the references, such as the number of the best one.
    """

    def __init__(self, taught: Any, *, is_answer: bool, is_about: bool = False) -> None:
        super().__init__()
        self.output = next(iter(taught.signature.output_fields)) if is_about else "answer"
        self.signature = dspy.ensure_signature(f"chat -> {self.output}")
        self.is_answer, self.is_about = is_answer, is_about
        whole = taught.signature.instructions
        own, prompt = ("", whole) if is_about else separated(taught.signature)
        self.instructions = "\n\n".join(filter(None, [prompt, own]))
        self.demos = () if is_about else _demos(taught)

    def forward(self, chat: ChatInput, references: Sequence[str] = ()) -> Any:
        """Return a prediction with ``answer``, or with the reply about the references."""
        lm = dspy.settings.lm
        return self._prediction(lm(self._request(lm, chat, references), **_rollout_of(lm)))

    async def aforward(self, chat: ChatInput, references: Sequence[str] = ()) -> Any:
        """``forward`` for coroutines."""
        lm = dspy.settings.lm
        reply = await lm.acall(self._request(lm, chat, references), **_rollout_of(lm))
        return self._prediction(reply)

    def _prediction(self, reply: Any) -> Any:
        return dspy.Prediction(**{self.output: chat_text(reply)})

    def _request(self, lm: Any, chat: ChatInput, references: Sequence[str]) -> Any:
        request, own = chat.request, _own_config(lm)
        messages = [*self.demos, *request.messages]
        return replace(
            request,
            model=lm.model,
            system=_joined_system(self.instructions, request.system),
            messages=tuple(_with_references(messages, references) if references else messages),
            tools=() if self.is_about else request.tools,
            config=_overlaid(own, request.config) if self.is_answer else own,
        )


def _rollout_of(lm: Any) -> dict[str, int]:
    return {k: v for k, v in lm.kwargs.items() if k == "rollout_id" and v is not None}


def _own_config(lm: Any) -> Any:
    """Return the agent's settings in its pool."""
    settings = {k: v for k, v in lm.kwargs.items() if v is not None and k not in _NOT_SENT}
    body = {"model": lm.model, "messages": [{"role": "user", "content": "-"}], **settings}
    return lm15.request_from_openai_chat(body).config


def _overlaid(own: Any, config: Any) -> Any:
    """Return the agent's settings, overridden by those of the caller."""
    overrides = {f.name: getattr(config, f.name) for f in fields(config)}
    overrides = {name: value for name, value in overrides.items() if value not in (None, ())}
    if own.extensions and config.extensions:
        overrides["extensions"] = {**own.extensions, **config.extensions}
    return replace(own, **overrides)


def _joined_system(instructions: str, system: Any) -> Any:
    if not instructions or not system:
        return instructions or system
    if isinstance(system, str):
        return f"{instructions}\n\n{system}"
    return (lm15.TextPart(text=instructions), *system)


def _with_references(messages: Sequence[Any], references: Sequence[str]) -> list[Any]:
    """Return the messages with the references below the last one, each as one quoted line.

    So the text before them is the same in every turn, and vendors' prompt caches hit.
    """
    numbered = [f"{n}. {quoted(text)}" for n, text in enumerate(references, start=1)]
    shown = "\n".join([REFERENCES_HEADING, *numbered])
    last = messages[-1]
    if last.role != "user":
        return [*messages, lm15.Message.user(shown)]
    if isinstance(last.parts[-1], lm15.TextPart):
        text = replace(last.parts[-1], text=f"{last.parts[-1].text}\n\n{shown}")
        return [*messages[:-1], replace(last, parts=(*last.parts[:-1], text))]
    return [*messages[:-1], replace(last, parts=(*last.parts, lm15.TextPart(text=shown)))]


def _demos(taught: Any) -> tuple[Any, ...]:
    if not taught.demos:
        return ()

    def content(values: Any) -> Any:
        return user_content(taught.signature, values)

    turns = list(earlier_turns(taught.signature, taught.demos, {}, content=content))
    if not turns:
        return ()
    return tuple(lm15.request_from_openai_chat({"model": "-", "messages": turns}).messages)


@dataclass(frozen=True, slots=True)
class Proposals:
    """The proposers' responses, first layer first, once none is waited for any more."""

    layers: tuple[tuple[Response, ...], ...]

    @property
    def n_asked(self) -> int:
        """Number of agents in the last layer whose answer was needed; 0 for a single agent."""
        return sum(not response.is_left_out for response in self.layers[-1]) if self.layers else 0

    @property
    def n_answered(self) -> int:
        """Number of agents in the last layer that answered."""
        return sum(response.has_answer for response in self.layers[-1]) if self.layers else 0

    @property
    def fell_to_one(self) -> bool:
        """True if only one of several agents in the last layer answered."""
        return self.n_answered == 1 < self.n_asked


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """The answer to a chat request.

    Attributes:
        reply: The final ``dspy.lm15.Response``, as its agent gave it.
        answer: Every agent's response, price, seconds and failure.
        usd: Price of all calls; None if the price of an agent is unknown.
        architecture: Architecture of the mixture, as text.
    """

    reply: Any
    answer: Answer
    usd: float | None
    architecture: str

    @property
    def proposals(self) -> Proposals:
        """The proposers' responses."""
        return Proposals(self.answer.layers)

    @property
    def usage(self) -> Any:
        """Tokens of all calls, as a ``dspy.lm15.Usage``."""
        responses = self.answer.responses
        return lm15.Usage(
            input_tokens=sum(response.prompt_tokens for response in responses),
            output_tokens=sum(response.completion_tokens for response in responses),
        )

    @property
    def facts(self) -> dict[str, Any]:
        """Costs, and the agents that answered, as plain JSON data."""
        return {
            "architecture": self.architecture,
            "usd": self.usd,
            "seconds": round(self.answer.seconds, 6),
            "calls": self.answer.calls,
            "n_asked": self.proposals.n_asked,
            "n_answered": self.proposals.n_answered,
            "responses": [
                {"seat": seat, **_plain(response)} for seat, response in self.answer.seats
            ],
        }


def _plain(response: Response) -> dict[str, Any]:
    kept = {k: v for k, v in asdict(replace(response, values={})).items() if k != "values"}
    return {**kept, "cuts": list(kept["cuts"])}


ChatEvent: TypeAlias = Any
"""A ``StatusMessage`` per proposer and one ``Proposals``, then a ``StreamDeltaEvent`` per piece of
the answer, and one ``ChatAnswer`` at the end."""


class ChatMixture:
    """Answers chat requests with the agents of a mixture.

    Instructions, aggregation prompts and demos of the program come before the caller's
    conversation.

    Args:
        program: The mixture with its architecture, instructions and demos.

    Raises:
        ArchitectureError: If the program answers anything but one text.
    """

    def __init__(self, program: MixtureOfAgents) -> None:
        try:
            only_output(program.signature)
        except ArchitectureError as error:
            raise ArchitectureError(
                "A mixture for conversations must have one text output, but this program has "
                f"{', '.join(program.signature.output_fields)}; use its architecture instead of "
                f"the program: {str(program.architecture)!r}."
            ) from error
        rules = program.rules
        self.architecture, self.pool = program.architecture, program.pool
        self.rules = replace(rules, adapter=PlainChat())
        self._writes = writes = program.writer is not None
        last = len(program.layers) - 1
        self._proposers = [
            [ChatSeat(_first(s), is_answer=not writes and depth == last) for s in layer.proposers]
            for depth, layer in enumerate(program.layers)
        ]
        seat, analyst = program.aggregator, getattr(program, "analyst", None)
        self._last = (
            None if seat is None else ChatSeat(_first(seat), is_answer=writes, is_about=not writes)
        )
        about = {} if analyst is None else {"analyst": _first(analyst)}
        self._about = {k: ChatSeat(v, is_answer=False, is_about=True) for k, v in about.items()}

    @classmethod
    def of(cls, program: MixtureOfAgents | Architecture | str, pool: Pool | None) -> ChatMixture:
        """Return the mixture of a program, or of an architecture or its text and a pool.

        Raises:
            ArchitectureError: If it cannot be built.
            PoolError: If the pool lacks an agent.
        """
        if not isinstance(program, MixtureOfAgents):
            program = MixtureOfAgents("question -> answer", program, pool=pool)
        return cls(program)

    @property
    def answering_agents(self) -> tuple[str, ...]:
        """Names of the agents whose reply can be the answer."""
        architecture = self.architecture
        return (str(architecture.aggregator),) if self._writes else architecture.layers[-1]

    def _plan(self, request: Any) -> Plan:
        seats = (self._proposers, self._last, ("answer",))
        planner = Planner(self.architecture, *seats, self.pool, self.rules, **self._about)
        return planner.plan({"chat": ChatInput(request)})

    @property
    def _seats(self) -> Seats:
        return Seats(self.pool, self.rules.adapter)

    def answer(self, request: Any, *, rollout: int | None = None) -> ChatAnswer:
        """Return the answer to a request, agents of a layer at the same time in threads.

        Args:
            request: A ``dspy.lm15.Request``; the name of its model is ignored.
            rollout: Another number draws other samples, except of greedy agents.

        Raises:
            LayerFailedError: If fewer agents than the quorum answered, or the aggregator failed.
        """
        with _settings(None, rollout):
            return self._chat_answer(follow(self._plan(request), self._seats.ask_all))

    async def aanswer(self, request: Any, *, rollout: int | None = None) -> ChatAnswer:
        """``answer`` for coroutines."""
        with _settings(None, rollout):
            return self._chat_answer(await afollow(self._plan(request), self._seats.aask_all))

    async def astream(
        self, request: Any, *, rollout: int | None = None
    ) -> AsyncGenerator[ChatEvent, None]:
        """Yield the events of an answer as they happen; see ``ChatEvent``.

        Closing it early cancels every call that is under way.
        """
        events: asyncio.Queue[ChatEvent] = asyncio.Queue()
        answering = asyncio.create_task(self._answer_into(events, request, rollout))
        answering.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            yield answering.result()
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    async def _answer_into(
        self, events: asyncio.Queue[ChatEvent], request: Any, rollout: int | None
    ) -> ChatAnswer:
        sink, seats, layers = _Sink(events), self._seats, list[tuple[Response, ...]]()

        async def ask_all(questions: list[Question]) -> list[Response]:
            if any(question.is_final for question in questions):
                await events.put(Proposals(tuple(layers[: self.architecture.depth])))
            responses = await seats.aask_all(questions)
            layers.append(tuple(responses))
            return responses

        with _settings(sink, rollout):
            answer = self._chat_answer(await afollow(self._plan(request), ask_all))
        if not sink.has_text:
            if not self._writes:
                await events.put(answer.proposals)
            for delta in deltas_of_reply(answer.reply):
                await events.put(lm15.StreamDeltaEvent(delta=delta))
        return answer

    def _chat_answer(self, answer: Answer) -> ChatAnswer:
        unpriced = [n for n in self.architecture.agents if self.pool.price(n) is None]
        usd = None if unpriced else answer.usd
        reply = answer.final.values["answer"].reply
        return ChatAnswer(reply, answer, usd, str(self.architecture))


def _first(seat: Any) -> Any:
    return seat if isinstance(seat, dspy.Predict) else seat.predictors()[0]


@contextmanager
def _settings(sink: _Sink | None, rollout: int | None) -> Iterator[None]:
    """Replace settings of the caller for the agents' calls, which are not part of its program.

    The caller's usage tracker counts the mixture's sum, and its listeners and trace are for its own
    predictors.
    """
    outside = SimpleNamespace(kwargs={} if rollout is None else {"rollout_id": rollout})
    with dspy.context(
        lm=outside,
        send_stream=sink,
        stream_listeners=[],
        caller_predict=None,
        usage_tracker=None,
        track_usage=False,
        trace=None,
    ):
        yield


class _Sink:
    """Receives DSPy's stream, and passes on the answering agent's chunks and status messages."""

    def __init__(self, events: asyncio.Queue[ChatEvent]) -> None:
        self._events = events
        self.has_text = False

    async def send(self, item: Any) -> None:
        """Pass on the events in ``item``."""
        if isinstance(item, StatusMessage):
            await self._events.put(item)
            return
        for delta in _deltas(item.choices[0].delta):
            self.has_text = True
            await self._events.put(lm15.StreamDeltaEvent(delta=delta))


def _deltas(delta: Any) -> Iterator[Any]:
    thought = getattr(delta, "reasoning_content", None)
    if thought:
        yield lm15.ThinkingDelta(text=thought, part_index=0)
    if delta.content:
        yield lm15.TextDelta(text=delta.content, part_index=1)
    for call in getattr(delta, "tool_calls", None) or ():
        function = call.function
        yield lm15.ToolCallDelta(
            input=function.arguments or "",
            part_index=2 + call.index,
            id=getattr(call, "id", None),
            name=getattr(function, "name", None),
        )
