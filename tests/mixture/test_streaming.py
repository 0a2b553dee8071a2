from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import dspy
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.streaming import StatusMessage, StreamResponse

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.errors import ArchitectureError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.prediction import MixturePrediction
from moa_dspy.streaming import AnswerListener
from moa_dspy.testing import scripted_pool
from tests.servers.chat import ChatServer, Reply

ANSWER = "The answer,  [1] as\n\nthey say, is [[42]]:\n[[ # {c} ]] or\n  [[\n."
FORMATS: dict[str, tuple[Any, str]] = {
    "plain": (PlainChat(), f"\n{ANSWER} \n"),
    "chat": (None, f"[[ ## answer ## ]]\n{ANSWER}\n\n[[ ## completed ## ]]"),
    "xml": (dspy.XMLAdapter(), f"<answer>\n{ANSWER}\n</answer>"),
}
"""Adapter, and the answer in its format."""


class Around(dspy.Module):
    """A program with a mixture inside."""

    def __init__(self, inner: MixtureOfAgents) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> Any:
        return self.inner(**inputs)

    async def aforward(self, **inputs: Any) -> Any:
        return await self.inner.acall(**inputs)


def mixture(server: ChatServer, adapter: Any, text: str = "a + b > synthesize(c)") -> Any:
    pool = Pool(Agent(name=n, model=f"openai/{n}", api_base=server.url) for n in "abc")
    return MixtureOfAgents("question -> answer", text, pool=pool, adapter=adapter)


async def seen(program: Any, listener: AnswerListener, *, is_async: bool) -> list[Any]:
    stream = dspy.streamify(program, stream_listeners=[listener], is_async_program=is_async)
    return [value async for value in stream(question="q")]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("is_inside", [False, True])
def test_who_streams_sees_the_proposers_come_and_then_the_answer_alone(
    name: str, is_async: bool, is_inside: bool
) -> None:
    adapter, text = FORMATS[name]
    server = ChatServer(lambda _: Reply(text))  # a letter at a time
    with server:
        program = mixture(server, adapter)
        listener = AnswerListener(program)
        outer = Around(program) if is_inside else program
        found = asyncio.run(seen(outer, listener, is_async=is_async))
    kinds = [type(value) for value in found]
    assert kinds[:2] == [StatusMessage, StatusMessage]
    assert {value.message for value in found[:2]} <= {
        f"{agent} answered ({n} of 2)" for agent in "ab" for n in (1, 2)
    }
    assert [value.message[-8:] for value in found[:2]] == ["(1 of 2)", "(2 of 2)"]
    assert kinds[-1] is MixturePrediction
    assert set(kinds[2:-1]) == {StreamResponse}
    assert "".join(value.chunk for value in found[2:-1]) == found[-1].answer
    assert len(kinds) > 10
    assert [value.is_last_chunk for value in found[2:-1]].count(True) == 1
    assert found[-2].is_last_chunk


@pytest.mark.parametrize("is_async", [False, True])
def test_a_proposer_that_fails_is_told_of_and_a_lone_one_too(is_async: bool) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return Reply(status=400) if body["model"] == "b" else Reply("x")

    server = ChatServer(reply)
    with server:
        program = mixture(server, PlainChat(), "a + b > c > synthesize(a)")
        found = asyncio.run(seen(program, AnswerListener(program), is_async=is_async))
    messages = [value.message for value in found if isinstance(value, StatusMessage)]
    assert sorted(message.split()[:2] for message in messages) == [
        ["a", "answered"],
        ["b", "failed"],
        ["c", "answered"],
    ]
    assert messages[-1] == "c answered (1 of 1)"


def test_a_stored_answer_is_streamed_as_well() -> None:
    server = ChatServer(lambda _: Reply(FORMATS["plain"][1]))
    with server:
        program = mixture(server, PlainChat())
        program(question="q")
        n_asked = len(server.bodies)
        found = asyncio.run(seen(program, AnswerListener(program), is_async=False))
    assert len(server.bodies) == n_asked == 3
    chunks = [value.chunk for value in found if isinstance(value, StreamResponse)]
    assert "".join(chunks) == ANSWER


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_inside", [False, True])
@pytest.mark.parametrize("text", ["a + b > vote", "a + b > select", "a + b > select(b)"])
def test_an_answer_that_is_picked_comes_as_one_chunk(
    text: str, is_inside: bool, is_async: bool
) -> None:
    pool = scripted_pool({"a": "x y", "b": "1"})
    picks = MixtureOfAgents("question -> answer", text, pool=pool, adapter=PlainChat())
    listener = AnswerListener(picks)
    found = asyncio.run(seen(Around(picks) if is_inside else picks, listener, is_async=is_async))
    chunks = [value for value in found if isinstance(value, StreamResponse)]
    answers = [(chunk.chunk, chunk.signature_field_name, chunk.is_last_chunk) for chunk in chunks]
    assert answers == [("x y", "answer", True)]
    assert isinstance(found[-1], MixturePrediction)
    assert found[-1].answer == "x y"


def test_the_prediction_is_left_out_of_a_stream_of_a_picked_answer_as_of_any_other() -> None:
    async def values() -> list[Any]:
        pool = scripted_pool(dict.fromkeys("ab", "x"))
        picks = MixtureOfAgents("question -> answer", "a + b > vote", pool=pool)
        stream = dspy.streamify(
            picks,
            stream_listeners=[AnswerListener(picks, "answer")],
            include_final_prediction_in_output_stream=False,
        )
        with dspy.context(adapter=PlainChat()):
            return [value async for value in stream(question="q")]

    assert [type(value) for value in asyncio.run(values())][-1] is StreamResponse


def test_a_listener_to_what_is_no_mixture_is_refused() -> None:
    pool = scripted_pool(dict.fromkeys("ab", "x"))
    wrong: Any = "answer"
    with pytest.raises(ArchitectureError, match=r"must be the MixtureOfAgents .* got a str"):
        AnswerListener(wrong)
    single = MixtureOfAgents("question -> answer", "a", pool=pool)
    with pytest.raises(ArchitectureError, match="Unknown `field` 'x'; known are answer"):
        AnswerListener(single, "x")


class OwnJSON(dspy.JSONAdapter):
    """An adapter that DSPy's listener does not know by its class."""


@pytest.mark.parametrize("adapter", [OwnJSON(), BAMLAdapter()], ids=["own", "BAML"])
def test_a_subclass_of_an_adapter_is_heard_as_that_adapter(adapter: Any) -> None:
    server = ChatServer(lambda _: Reply('{"answer": "Paris it is"}'))
    with server:
        program = mixture(server, adapter)
        found = asyncio.run(seen(program, AnswerListener(program), is_async=False))
    assert found[-1].answer == "Paris it is"
    chunks = [value.chunk for value in found if isinstance(value, StreamResponse)]
    assert "".join(chunks).strip() == '"Paris it is"'


@pytest.mark.parametrize("end", ["<|im_end|>", "<\uff5cend\u2581of\u2581sentence\uff5c>\n", "</s>"])
def test_tokens_that_end_a_plain_answer_are_shown_only_if_the_answer_has_them(end: str) -> None:
    server = ChatServer(lambda _: Reply(f"Is it <|a|> or [b]? It is a[0].{end}"))
    with server:
        program = mixture(server, PlainChat(), "c")
        found = asyncio.run(seen(program, AnswerListener(program), is_async=False))
    chunks = [value.chunk for value in found if isinstance(value, StreamResponse)]
    assert "".join(chunks) == found[-1].answer
    assert found[-1].answer.startswith("Is it <|a|> or [b]? It is a[0].")
    assert len(chunks) > 10


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("name", ["chat", "xml"])
def test_fields_that_a_thought_rehearses_are_not_shown(name: str, is_async: bool) -> None:
    adapter, text = FORMATS[name]
    thought = f"It may be this:\n{text.replace('answer,', 'Lyon,')}\n</think>\n\n"
    server = ChatServer(lambda _: Reply(f"{thought}{text}"))
    with server:
        program = mixture(server, adapter, "c")
        found = asyncio.run(seen(program, AnswerListener(program), is_async=is_async))
    chunks = [value.chunk for value in found if isinstance(value, StreamResponse)]
    assert "".join(chunks) == found[-1].answer == ANSWER


REPLIES: dict[str, tuple[Any, str]] = {
    "plain": (PlainChat(), "{}"),
    "chat": (dspy.ChatAdapter(), "[[ ## answer ## ]]\n{}\n\n[[ ## completed ## ]]"),
    "json": (dspy.JSONAdapter(), '{{"answer": "{}"}}'),
    "xml": (dspy.XMLAdapter(), "<answer>\n{}\n</answer>"),
}
"""Adapter, and the format of its answers."""


def echoing(form: str) -> ChatServer:
    """A server whose answer to a question with q1 is "The answer to q1.", a letter at a time."""

    def reply(body: dict[str, Any]) -> Reply:
        asked = next(name for name in ("q1", "q2", "q3") if name in str(body["messages"][-1]))
        return Reply(form.format(f"The answer to {asked}."))

    return ChatServer(reply)


async def shown(stream: Any, question: str) -> str:
    values = [value async for value in stream(question=question)]
    chunks = [value for value in values if isinstance(value, StreamResponse)]
    assert [chunk.is_last_chunk for chunk in chunks].count(True) == 1
    assert chunks[-1].is_last_chunk
    assert len(chunks) > 3  # a stored answer comes word by word
    return "".join(chunk.chunk for chunk in chunks).strip(' "')


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("name", REPLIES)
def test_one_streamed_program_answers_many_questions_in_turn_and_at_once(
    name: str, is_async: bool
) -> None:
    adapter, form = REPLIES[name]

    async def answers(program: Any) -> list[str]:
        listeners: Any = [AnswerListener(program)]
        stream = dspy.streamify(program, stream_listeners=listeners, is_async_program=is_async)
        in_turn = [await shown(stream, "q1"), await shown(stream, "q2")]
        return [*in_turn, *await asyncio.gather(*(shown(stream, q) for q in ("q2", "q3")))]

    with echoing(form) as server:
        found = asyncio.run(answers(mixture(server, adapter, "a > synthesize(c)")))
    assert found == [f"The answer to {q}." for q in ("q1", "q2", "q2", "q3")]


@pytest.mark.parametrize("name", REPLIES)
def test_a_question_whose_program_failed_does_not_disturb_the_next(name: str) -> None:
    adapter, form = REPLIES[name]

    class Failing(Around):
        def forward(self, **inputs: Any) -> Any:
            answer = super().forward(**inputs)
            if inputs["question"] == "q1":
                raise RuntimeError("after the answer")
            return answer

    async def answers(program: Any) -> list[str]:
        stream = dspy.streamify(Failing(program), stream_listeners=[AnswerListener(program)])
        with pytest.raises(RuntimeError, match="after the answer"):
            await shown(stream, "q1")
        return [await shown(stream, "q2")]

    with echoing(form) as server:
        found = asyncio.run(answers(mixture(server, adapter, "c")))
    assert found == ["The answer to q2."]


class Twice(Around):
    """A program that asks its mixture two questions, one after the other."""

    def forward(self, **inputs: Any) -> Any:
        self.inner(question="q1")
        return self.inner(question="q2")

    async def aforward(self, **inputs: Any) -> Any:
        await self.inner.acall(question="q1")
        return await self.inner.acall(question="q2")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("allow_reuse", [False, True])
@pytest.mark.parametrize("architecture", ["a + b > synthesize(c)", "a + b > vote"])
@pytest.mark.parametrize("name", REPLIES)
def test_every_call_of_a_mixture_in_a_program_is_streamed_if_reuse_is_allowed_else_the_first(
    name: str, architecture: str, allow_reuse: bool, is_async: bool
) -> None:
    adapter, form = REPLIES[name]
    with echoing(form) as server:
        program = mixture(server, adapter, architecture)
        listener = AnswerListener(program, allow_reuse=allow_reuse)
        found = asyncio.run(seen(Twice(program), listener, is_async=is_async))
    answers = [""]
    for value in found:
        if isinstance(value, StreamResponse):
            answers[-1] += value.chunk
            answers += [""] * value.is_last_chunk
    expected = ["The answer to q1.", "The answer to q2."][: 1 + allow_reuse]
    assert [answer.strip(' "') for answer in answers] == [*expected, ""]


def test_a_question_that_skips_the_mixture_yields_its_prediction() -> None:
    class Sometimes(Around):
        def forward(self, **inputs: Any) -> Any:
            is_asked = inputs["question"] == "q1"
            return super().forward(**inputs) if is_asked else dspy.Prediction(answer="known")

    async def kinds(program: Any) -> list[list[type]]:
        stream: Any = dspy.streamify(
            Sometimes(program),
            stream_listeners=[AnswerListener(program)],
            include_final_prediction_in_output_stream=False,
        )
        return [[type(value) async for value in stream(question=q)] for q in ("q1", "q2")]

    pool = scripted_pool(dict.fromkeys("ab", "x"))
    picks = MixtureOfAgents("question -> answer", "a + b > vote", pool=pool, adapter=PlainChat())
    first, second = asyncio.run(kinds(picks))
    assert first[-1] is StreamResponse
    assert second == [dspy.Prediction]


def test_two_fields_and_two_mixtures_are_told_apart() -> None:
    class Both(dspy.Module):
        def __init__(self, *mixtures: Any) -> None:
            super().__init__()
            self.first, self.second = mixtures

        def forward(self, **inputs: Any) -> Any:
            self.first(**inputs)
            return self.second(**inputs)

    pool = scripted_pool(dict.fromkeys("ab", "[[ ## why ## ]]\nW\n\n[[ ## answer ## ]]\nA\n"))
    make: Any = partial(MixtureOfAgents, "question -> why, answer", pool=pool)
    picks, writes = make("a + b > vote"), make("a > synthesize(b)")
    listeners: Any = [
        AnswerListener(picks, "why", name="picked"),
        AnswerListener(picks, "answer", name="picked"),
        AnswerListener(writes, "why", name="written"),
        AnswerListener(writes, "answer"),
    ]

    async def values() -> list[Any]:
        stream: Any = dspy.streamify(Both(picks, writes), stream_listeners=listeners)
        return [value async for value in stream(question="q")]

    texts: dict[tuple[str, str], str] = {}
    for value in asyncio.run(values()):
        if isinstance(value, StreamResponse):
            place = value.predict_name, value.signature_field_name
            texts[place] = texts.get(place, "") + value.chunk
    assert texts == {
        ("picked", "why"): "W",
        ("picked", "answer"): "A",
        ("written", "why"): "W",
        ("aggregator", "answer"): "A",
    }
