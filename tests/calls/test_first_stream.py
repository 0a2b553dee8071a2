"""Streams of plain text from a model whose name does not tell that its template opens thoughts."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import httpx
import pytest
from dspy import lm15

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.calls import Calls, CallStore
from moa_dspy.calls.lm.response import ThoughtOpening
from moa_dspy.calls.reply import thinks_aloud
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.streaming import AnswerListener
from tests.serve.running import KEY, app_of, running
from tests.servers.chat import ChatServer, Reply, serving

ALOUD = "Okay, so the user asks for 6 times 7.\n\nI know that.\n</think>\n\n"
QUIET = "Six times seven, that makes 42.</think>"
"""A thought that begins as an answer might."""
SPLITS: dict[str, Callable[[str], Sequence[str]]] = {
    "letters": list,
    "whole": lambda text: [text],
    "thirds": lambda text: [text[n : n + 3] for n in range(0, len(text), 3)],
}


def pool_of(server: ChatServer, calls: Calls | None = None, **more: Any) -> Pool:
    return Pool([Agent(name="a", model="openai/x", api_base=server.url, **more)], calls=calls)


def streamed(pool: Pool, question: str, *, is_async: bool = False, agent: str = "a") -> Any:
    """Return what a stream brings: thought, then text."""
    request = lm15.Request(model=f"agent/{agent}", messages=(lm15.Message.user(question),))
    lm: Any = pool.lm(agent)

    async def collect() -> list[Any]:
        return [event async for event in lm._async_engine_spec.stream(request)]

    events = asyncio.run(collect()) if is_async else list(lm._engine_spec.stream(request))
    deltas = [event.delta for event in events if event.type == "delta"]
    return tuple("".join(d.text for d in deltas if d.type == k) for k in ("thinking", "text"))


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_nothing_of_a_thought_aloud_is_passed_on_as_the_answer(split: str, is_async: bool) -> None:
    with serving(Reply(f"{ALOUD}42", split=SPLITS[split])) as server:
        pool = pool_of(server)
        for _ in range(2):  # from the endpoint, and from the store
            thought, text = streamed(pool, "q", is_async=is_async)
            assert text == "42"
            assert thought == "Okay, so the user asks for 6 times 7.\n\nI know that."
        assert len(server.bodies) == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_a_thought_that_begins_as_an_answer_is_passed_on_with_its_end_and_only_once(
    is_async: bool,
) -> None:
    with serving(Reply(f"{QUIET}42")) as server:
        pool = pool_of(server)
        assert streamed(pool, "q", is_async=is_async) == ("", f"{QUIET}42")
        # The reply is good: it is stored, and read again without the thought.
        assert streamed(pool, "q", is_async=is_async)[1] == "42"
        for also_async in (False, True):
            assert streamed(pool, f"other {also_async}", is_async=also_async)[1] == "42"
        assert len(server.bodies) == pool.calls.ledger.spending.made == 3


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("thought", [ALOUD, QUIET])
def test_the_prediction_of_a_first_stream_is_the_answer(thought: str, is_async: bool) -> None:
    predict = dspy.Predict("question -> answer")
    program = dspy.streamify(predict, is_async_program=is_async)

    async def answer(pool: Pool) -> Any:
        with dspy.context(lm=pool.lm("a"), adapter=PlainChat()):
            return [value async for value in program(question="q")][-1]

    with serving(Reply(f"{thought}42")) as server:
        assert asyncio.run(answer(pool_of(server))).answer == "42"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("thought", [ALOUD, QUIET])
@pytest.mark.parametrize("text", ["c", "a + b > synthesize(c)", "a + b > a + b > synthesize(c)"])
def test_a_mixture_answers_in_its_first_stream(text: str, thought: str, is_async: bool) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return Reply(f"{thought}42" if body["model"] == "c" else "Forty-two")

    with serving(reply) as server:
        pool = Pool(Agent(name=n, model=f"openai/{n}", api_base=server.url) for n in "abc")
        mixture = MixtureOfAgents("question -> answer", text, pool=pool, adapter=PlainChat())
        found = asyncio.run(seen(mixture, is_async=is_async))
    chunks = [part.chunk for part in found if isinstance(part, dspy.streaming.StreamResponse)]
    assert found[-1].answer == "42"
    assert "".join(chunks) == ("42" if thought is ALOUD else f"{QUIET}42")


async def seen(mixture: Any, *, is_async: bool) -> list[Any]:
    listeners = [AnswerListener(mixture)]
    stream = dspy.streamify(mixture, stream_listeners=listeners, is_async_program=is_async)
    return [value async for value in stream(question="q")]


def test_an_answer_that_begins_like_a_thought_comes_whole_once_and_then_as_it_is_written() -> None:
    gate = threading.Event()
    text = "So it is 42."
    with serving([Reply(text), Reply(text, wait=gate)]) as server:
        pool = pool_of(server)
        assert streamed(pool, "q") == ("", text)
        lm: Any = pool.lm("a")
        request = lm15.Request(model="agent/a", messages=(lm15.Message.user("other"),))
        source = iter(lm._engine_spec.stream(request))
        first = [next(source) for _ in range(len(text))]  # start, and all but the last letter
        gate.set()
        assert "".join(event.delta.text for event in first[1:]) == text[:-1]
        list(source)


def test_what_a_whole_reply_tells_holds_for_the_next_stream() -> None:
    with serving(Reply(f"{QUIET}42")) as server:
        pool = pool_of(server)
        assert pool.lm("a")("q")[0]["text"] == "42"
        assert streamed(pool, "other") == (QUIET.removesuffix("</think>"), "42")


@pytest.mark.parametrize("is_async", [False, True])
def test_another_process_finds_in_the_store_what_is_known(tmp_path: Path, is_async: bool) -> None:
    with serving(Reply(f"{QUIET}42")) as server:
        for n in range(2):
            store = CallStore(tmp_path / "calls.sqlite")
            found = streamed(pool_of(server, Calls(store)), f"q{n}", is_async=is_async)
            store.close()
        assert found == (QUIET.removesuffix("</think>"), "42")


def test_agents_of_one_model_know_of_each_other_unless_they_ask_it_for_something_else() -> None:
    switch = {"chat_template_kwargs": {"thinking": True}}
    with serving(Reply(f"{QUIET}42")) as server:
        first = Agent(name="a", model="openai/x", api_base=server.url)
        warm = replace(first, name="warm", temperature=1.5)
        pool = Pool([first, warm, replace(first, name="other", extra_body=switch)])
        pool.lm("a")("q")
        assert streamed(pool, "q", agent="warm")[1] == "42"
        assert streamed(pool, "q", agent="other")[1] == f"{QUIET}42"


def test_a_stream_that_is_left_while_it_waits_is_a_failed_call() -> None:
    gate = threading.Event()
    with serving(Reply(f"{ALOUD}42", wait=gate)) as server:
        pool = pool_of(server)

        async def leave() -> None:
            lm: Any = pool.lm("a")
            request = lm15.Request(model="agent/a", messages=(lm15.Message.user("q"),))
            source = lm._async_engine_spec.stream(request)
            await anext(source)  # the thought has ended
            await source.aclose()

        asyncio.run(leave())
        gate.set()
        (call,) = pool.calls.store._calls.values()  # type: ignore[attr-defined]  # the memory
        assert (call.response, str(call.failure).partition(" after")[0]) == (None, "Abandoned")
        assert streamed(pool, "q")[1] == "42"


@pytest.mark.parametrize(
    ("identity", "is_opened"),
    [
        ("openai/x@http://h/v1", None),
        ("hosted_vllm/Qwen/QwQ-32B@http://h/v1", True),
        ("openai/DeepSeek-R1-0528@http://h/v1", True),
        ("openai/qwen3-30b-a3b-thinking-2507@http://h/v1", True),
        ("openai/gpt-4o@vendor", False),
        ("anthropic/claude-sonnet-4-5@vendor", False),
        ("openai/gpt-4o@http://h/v1", None),
        ("ollama/x@vendor", None),
        ("openai/command-r1x@http://h/v1", None),
    ],
)
def test_names_and_vendors_own_servers_tell(identity: str, is_opened: bool | None) -> None:
    assert ThoughtOpening(identity).is_opened is is_opened


def test_the_sure_sign_wins_whatever_comes_after() -> None:
    opening = ThoughtOpening("openai/x@http://h/v1")
    for sign, known in ((None, None), (False, False), (True, True), (False, True), (None, True)):
        opening.learn(sign)
        assert opening.is_opened is known


THOUGHTS = (
    *("Okay, let's see.", "Ok so", "Alright, the user", "Hmm, 6 times 7", "hm", "Let me think"),
    *("We need to add", "I think that", "I\u2019m asked", "First, I", "The user wants", "嗯，用户"),
    *("To solve this", "So, the question", "\n\nLet's compute", "用户问的是", "Хорошо, нужно"),
    *("Also, der Nutzer", "D\u2019accord, ", "まず、", "The references disagree"),
)
ANSWERS = (
    *(
        "Paris",
        "42",
        "**42**",
        "# Title",
        "1. First",
        "The capital of France",
        "Sure!",
        "Yes",
    ),
    *("Sofia", "Italy", "Into", "Sort the list", "Wellington", "Tokyo", "Letters", "Ohm's law"),
    *(
        "```python",
        "$x = 2$",
        "- one",
        "Here is",
        "Weather",
        "{",
        "None",
        "I'm sorry",
        "To make tea",
        "Firstborn",
        "东京",
        "Hmmmm",
    ),
)


@pytest.mark.parametrize("text", THOUGHTS)
def test_a_text_that_begins_like_a_thought_waits(text: str) -> None:
    assert all(thinks_aloud(text[:n]) for n in range(len(text) + 1))


@pytest.mark.parametrize("text", ANSWERS)
def test_any_other_text_does_not(text: str) -> None:
    assert not thinks_aloud(text)


@pytest.mark.parametrize("thought", [ALOUD, QUIET])
def test_a_server_sends_the_answer_in_its_first_stream(thought: str) -> None:
    def streamed_text(url: str, question: str) -> str:
        body = {
            "model": "a",
            "stream": True,
            "messages": [{"role": "user", "content": question}],
        }
        key = {"authorization": f"Bearer {KEY}"}
        reply = httpx.post(f"{url}/chat/completions", json=body, headers=key, timeout=30)
        lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
        events = [json.loads(line) for line in lines if line.startswith("{")]
        assert not any("error" in event for event in events)
        assert lines[-1] == "[DONE]"
        return "".join(
            choice["delta"].get("content") or "" for e in events for choice in e["choices"]
        )

    with serving(Reply(f"{thought}42")) as server, running(app_of(pool_of(server))) as url:
        assert streamed_text(url, "q") == ("42" if thought is ALOUD else f"{QUIET}42")
        assert streamed_text(url, "other") == "42"
