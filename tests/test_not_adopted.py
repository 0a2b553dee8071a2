from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy.utils import DummyLM

from moa_dspy.adapters import ADAPTERS
from moa_dspy.calls import call_scope
from moa_dspy.errors import LayerFailedError, PoolError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.streaming import AnswerListener
from moa_dspy.testing import AsyncScriptedEngine, ScriptedEngine, scripted_pool
from tests.servers.chat import ChatServer, Reply, serving

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read when LiteLLM is imported: no download


class OwnForward(dspy.LM):
    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError


class Plain(dspy.BaseLM):
    pass


class Launched(dspy.clients.provider.Provider):
    @staticmethod
    def launch(lm: Any, launch_kwargs: Any = None) -> None:
        raise NotImplementedError


def with_forward() -> dspy.LM:
    lm = dspy.LM("openai/x")
    lm.forward = lambda *args, **kwargs: None
    return lm


LAUNCHED = "the LM can be launched or fine-tuned"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dummy": (
        lambda: DummyLM([{"answer": "x"}]),
        "the LM is of the class DummyLM, so what it sends",
    ),
    "base": (lambda: Plain("own/x"), "the LM is of the class Plain, so what it sends"),
    "subclass": (
        lambda: OwnForward("openai/x"),
        "the LM is of the class OwnForward, so what it sends",
    ),
    "forward": (with_forward, "the LM has its own `forward`"),
    "engine": (
        lambda: dspy.LM("own/x", engine=ScriptedEngine("x")),
        "the LM's engine is of the class ScriptedEngine, so which model answers is not known",
    ),
    "text": (lambda: dspy.LM("openai/x", model_type="text"), "the LM uses text completions"),
    "launched": (
        lambda: dspy.LM("openai/x", provider=Launched()),
        LAUNCHED,
    ),
    "tuned": (
        lambda: dspy.LM("openai/x", finetuning_model="m"),
        LAUNCHED,
    ),
    "body": (
        lambda: dspy.LM("openai/x", extra_body={"min_p": 0.1}),
        "the LM's settings cannot be written into a request: .*extra_body",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_adopted_is_used_as_it_is_and_the_pool_says_why(kind: str) -> None:
    make, reason = REFUSED[kind]
    lm = make()
    pool = Pool.from_lms({"a": lm})
    assert pool.lm("a") is lm
    assert list(pool.not_adopted) == ["a"]
    with pytest.raises(PoolError, match=f"Agent 'a': its calls cannot be stored: {reason}"):
        Pool.from_lms({"a": lm}, strict=True)


@pytest.mark.parametrize("is_async", [False, True])
def test_calls_of_an_lm_that_is_not_adopted_are_counted_once_with_what_they_took(
    is_async: bool,
) -> None:
    lm: Any = dspy.LM("own/x", engine=ScriptedEngine("one two"), cache=False)
    dummy = DummyLM([{"answer": "x"}])
    pool = Pool.from_lms({"a": lm, "b": dummy})
    Pool.from_lms({"again": lm})
    with call_scope() as scope:
        assert lm("q") == ["one two"]
        asyncio.run(dummy.acall("q")) if is_async else dummy("q")
    facts = [(f.agent, f.prompt_tokens, f.completion_tokens, f.failure) for f in scope.log]
    assert facts == [("a", 1, 2, None), ("b", 0, 0, None)]
    assert all(f.seconds > 0 for f in scope.log)
    assert pool.calls.ledger.spending.made == 0


def test_a_failure_of_an_lm_that_is_not_adopted_is_counted_too() -> None:
    lm: Any = dspy.LM("own/x", engine=ScriptedEngine(OSError("down")), num_retries=0, cache=False)
    Pool.from_lms({"a": lm})
    with call_scope() as scope, pytest.raises(dspy.LMError):
        lm("q")
    assert [f.failure for f in scope.log] == ["LMUnexpectedError: [own/x] down"]


def test_an_lm_of_another_pool_is_stored_there_and_counted_once() -> None:
    other = scripted_pool({"a": "x"})
    lm: Any = other.lm("a")
    pool = Pool.from_lms({"b": lm}, strict=True)
    assert pool.lm("b") is lm
    assert pool.not_adopted == {}
    with call_scope() as scope:
        lm("q")
    assert len(scope.log) == other.calls.ledger.spending.made == 1


THOUGHTS = {
    "tags": "<think>Rome? No.</think>\n{}",
    "closing only": "Rome? No.\n</think>\n{}",
    "channels": "<|channel|>analysis<|message|>Rome?<|end|><|channel|>final<|message|>{}",
}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize(
    ("adapter", "layout"),
    [
        ("plain", "{}"),
        ("paper_verbatim", "{}"),
        ("chat_strict", "[[ ## answer ## ]]\n{}"),
        ("json", '{{"answer": "{}"}}'),
        ("xml_strict", "<answer>{}</answer>"),
    ],
)
def test_thoughts_of_an_lm_that_is_not_adopted_are_set_apart_too(
    adapter: str, layout: str, thought: str, is_async: bool
) -> None:
    reply = THOUGHTS[thought].format(layout.format("Paris"))
    engines = {"engine": ScriptedEngine(reply), "async_engine": AsyncScriptedEngine(reply)}
    lm: Any = dspy.LM("own/x", cache=False, **engines)
    pool = Pool.from_lms({"a": lm})
    assert list(pool.not_adopted) == ["a"]
    program = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=ADAPTERS[adapter]())
    made = asyncio.run(program.acall(question="?")) if is_async else program(question="?")
    assert made.answer == "Paris"


def test_a_thought_without_an_answer_is_a_failure_of_such_an_lm_too() -> None:
    lm: Any = dspy.LM("own/x", engine=ScriptedEngine("<think>Rome? Or"), cache=False)
    pool = Pool.from_lms({"a": lm})
    program = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=ADAPTERS["plain"]())
    with pytest.raises(LayerFailedError, match=r"a: The model answered with an empty text\."):
        program(question="?")


def test_a_tag_that_is_an_output_field_of_such_an_lm_opens_no_thought() -> None:
    reply = "<thinking>Not Rome.</thinking><answer>Paris</answer>"
    lm: Any = dspy.LM("own/x", engine=ScriptedEngine(reply), cache=False)
    pool = Pool.from_lms({"a": lm})
    program = MixtureOfAgents(
        "question -> thinking, answer", "a", pool=pool, adapter=ADAPTERS["xml_strict"]()
    )
    made = program(question="?")
    assert (made.thinking, made.answer) == ("Not Rome.", "Paris")


STREAMS = {
    "tags": ["<thi", "nk>Rome?", " No.</think>", "\n{}"],
    "channels": ["<|channel|>analysis<|message|>Rome?", "<|end|><|channel|>final<|message|>", "{}"],
}


@pytest.mark.parametrize("thought", STREAMS)
@pytest.mark.parametrize(
    ("adapter", "layout"),
    [
        ("plain", "{}"),
        ("chat_strict", "[[ ## answer ## ]]\n{}\n\n[[ ## completed ## ]]"),
        ("json", '{{"answer": "{}"}}'),
        ("xml_strict", "<answer>{}</answer>"),
    ],
)
def test_a_stream_of_such_an_lm_shows_no_thought(adapter: str, layout: str, thought: str) -> None:
    *begun, last = STREAMS[thought]
    # The answer comes in pieces of two characters, as tokens would.
    text = last.format(layout.format("Paris"))
    pieces = [*begun, *(text[n : n + 2] for n in range(0, len(text), 2))]
    with serving(Reply("".join(pieces), split=lambda _: pieces)) as server:
        shown, answer = streamed(server, adapter)
    # DSPy shows a JSON field as JSON.
    seen = json.loads(shown) if adapter == "json" else shown
    assert (seen, answer) == ("Paris", "Paris")


def test_an_emoji_that_such_an_lm_sends_in_two_halves_is_one() -> None:
    with serving(Reply(split=lambda _: ["Hi \ud83d", "\ude00!"])) as server:
        assert streamed(server, "plain") == ("Hi \U0001f600!",) * 2


def streamed(server: ChatServer, adapter: str) -> tuple[str, str]:
    """Return what a stream shows, and the answer with which it ends."""
    # A field that no typed request carries keeps the LM from being adopted.
    lm = dspy.LM("openai/x", api_base=server.url, api_key="k", cache=False, extra_body={"p": 1})
    pool = Pool.from_lms({"a": lm})
    assert list(pool.not_adopted) == ["a"]
    program = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=ADAPTERS[adapter]())

    async def read() -> tuple[str, str]:
        shown, answer = "", ""
        listener = AnswerListener(program)
        async for part in dspy.streamify(program, stream_listeners=[listener])(question="?"):
            if isinstance(part, dspy.streaming.StreamResponse):
                shown += part.chunk
            elif isinstance(part, dspy.Prediction):
                answer = part.answer
        return shown, answer

    return asyncio.run(read())


def test_how_the_reply_of_such_an_lm_ended_is_known() -> None:
    refusal = "I cannot help with that."
    with serving(
        [Reply("Par", finish_reason="length"), Reply(message={"content": None, "refusal": refusal})]
    ) as server:
        lm = dspy.LM("openai/x", api_base=server.url, api_key="k", cache=False, extra_body={"p": 1})
        pool = Pool.from_lms({"a": lm})
        program = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=ADAPTERS["plain"]())
        assert program(question="?").mixture.final.finish_reason == "length"
        with pytest.raises(LayerFailedError, match=f"a: The model refused: {refusal}"):
            program(question="again?")


@pytest.mark.parametrize("n", [-1, 2**70])
def test_odd_counts_of_such_an_lm_are_no_counts(n: int) -> None:
    usage = {"prompt_tokens": n, "completion_tokens": 7, "total_tokens": 7}
    with serving(Reply(usage=usage)) as server, call_scope() as scope:
        lm: Any = dspy.LM(
            "openai/x", api_base=server.url, api_key="k", cache=False, extra_body={"p": 1}
        )
        Pool.from_lms({"a": lm})
        assert lm("q") == ["Paris"]
    assert [(f.prompt_tokens, f.completion_tokens) for f in scope.log] == [(0, 7)]
