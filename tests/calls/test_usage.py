from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.calls import AgentCalls, Budget, Calls, Ledger, call_scope
from moa_dspy.calls.call import token_counts, without_odd_usage
from moa_dspy.errors import BudgetReachedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.streaming import AnswerListener
from tests.servers.chat import HEAD, Reply, serving

REQUEST = json.dumps({"messages": [{"parts": [{"text": "x" * 28, "type": "text"}]}]})
ANSWER = {"message": {"parts": [{"text": "y" * 10, "type": "text"}]}}
# 28 bytes at 3 per token, and 8 of the message; 10 bytes at 3 per token.
ESTIMATE = (18, 4)
ODD = {
    "null": None,
    "empty": {},
    "zero": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    "only the total": {"total_tokens": 18},
    "negative": {"prompt_tokens": -100, "completion_tokens": -5, "total_tokens": -105},
    "text": {"prompt_tokens": "12", "completion_tokens": "7", "total_tokens": "19"},
    "fractions": {"prompt_tokens": 1.5, "completion_tokens": 2.5, "total_tokens": 4},
    "beyond 64 bits": {"prompt_tokens": 10**30, "completion_tokens": 10**30},
    "a list": [1, 2],
    "details of text": {"prompt_tokens": None, "prompt_tokens_details": {"cached_tokens": "1"}},
}


@pytest.mark.parametrize("bad", [None, 0, -1, "7", 1.5, True, 2**70])
def test_a_count_that_is_none_is_estimated(bad: Any) -> None:
    usage = {"input_tokens": bad, "output_tokens": bad}
    found = token_counts(REQUEST, {**ANSWER, "usage": usage})
    assert (found.prompt, found.completion, found.is_estimated) == (*ESTIMATE, True)


def test_the_endpoints_own_counts_are_taken() -> None:
    found = token_counts(REQUEST, {**ANSWER, "usage": {"input_tokens": 11, "output_tokens": 7}})
    assert (found.prompt, found.completion, found.is_estimated) == (11, 7, False)
    half = token_counts(REQUEST, {**ANSWER, "usage": {"input_tokens": 11}})
    assert (half.prompt, half.completion, half.is_estimated) == (11, ESTIMATE[1], True)
    nothing = {"message": {"parts": [{"text": "", "type": "text"}]}}
    empty = token_counts(REQUEST, {**nothing, "usage": {"input_tokens": 11, "output_tokens": 0}})
    assert (empty.completion, empty.is_estimated) == (0, False)


def reply(usage: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Paris"}}
    body = {**HEAD, "object": "chat.completion", "choices": [{**choice, "finish_reason": "stop"}]}
    return Reply(body=json.dumps(body if usage is ... else {**body, "usage": usage}).encode())


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("usage", [..., *ODD.values()], ids=["absent", *ODD])
def test_odd_usage_loses_no_answer_and_a_budget_binds(
    usage: Any, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    name = "odd-" + "".join(c for c in f"{usage}{is_async}" if c.isalnum())
    with serving(reply(usage)) as server, caplog.at_level(logging.WARNING, "moa_dspy"):
        calls = Calls(ledger=Ledger(Budget(tokens=500)))
        agent = Agent(
            name=name, model="openai/m", api_base=server.url, num_retries=0, max_tokens=16
        )
        pool = Pool([agent], calls=calls)
        mixture = MixtureOfAgents("question -> answer", name, pool=pool, adapter=PlainChat())

        def ask_all() -> None:
            for number in range(200):
                question = {"question": f"q{number}"}
                asked = asyncio.run(mixture.acall(**question)) if is_async else mixture(**question)
                assert asked.answer == "Paris"

        with pytest.raises(BudgetReachedError, match="500 tokens"):
            ask_all()
    # Instructions of 57 bytes and a question of 2 or 3: 20 tokens and 8; "Paris": 2. The 12th
    # call would fit, but its upper bound, a token per byte of the request, does not.
    spending = calls.ledger.spending
    assert (spending.made, spending.tokens) == (len(server.bodies), 30 * len(server.bodies))
    assert 10 < len(server.bodies) < 17
    said = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert len(said) == 1
    assert "does not report token counts" in said[0]


def stream_of(usage: Any) -> Reply:
    """The same as frames of a stream; it has its usage in a frame of its own, as OpenAI's."""
    parts: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Paris"}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": usage},
    ]
    frames = [{**HEAD, "object": "chat.completion.chunk", **part} for part in parts]
    text = "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames)
    return Reply(body=f"{text}data: [DONE]\n\n".encode())


def streamed(mixture: MixtureOfAgents, question: str) -> Any:
    stream = dspy.streamify(
        mixture, stream_listeners=[AnswerListener(mixture)], async_streaming=False
    )
    return [part for part in stream(question=question) if isinstance(part, dspy.Prediction)][-1]


@pytest.mark.parametrize("how", ["whole", "awaited", "streamed"])
@pytest.mark.parametrize("is_adopted", [False, True])
@pytest.mark.parametrize("usage", ODD.values(), ids=ODD)
def test_odd_usage_loses_no_answer_of_an_adopted_lm_or_a_stream(
    usage: Any, is_adopted: bool, how: str
) -> None:
    with serving(stream_of(usage) if how == "streamed" else reply(usage)) as server:
        if is_adopted:
            lm = dspy.LM("openai/m", api_base=server.url, api_key="of-nobody", num_retries=0)
            pool = Pool.from_lms({"a": lm}, strict=True)
        else:
            pool = Pool([Agent(name="a", model="openai/m", api_base=server.url, num_retries=0)])
        mixture = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
        if how == "streamed":
            asked = streamed(mixture, "q")
        else:
            awaited = how == "awaited"
            asked = asyncio.run(mixture.acall(question="q")) if awaited else mixture(question="q")
    assert asked.answer == "Paris"
    spending = pool.calls.ledger.spending
    assert (spending.made, len(server.bodies)) == (1, 1)
    assert spending.tokens > 0


@pytest.mark.parametrize("is_async", [False, True])
def test_the_counts_of_a_vendors_own_protocol_may_be_odd_too(is_async: bool) -> None:
    # Anthropic's words; its tier and what it says of its cache are no counts, and stay.
    counts = {"input_tokens": "12", "output_tokens": -7, "service_tier": "standard"}
    body: dict[str, Any] = {
        **{"id": "m1", "type": "message", "role": "assistant", "model": "m"},
        **{"content": [{"type": "text", "text": "Paris"}], "stop_reason": "end_turn"},
        "usage": {**counts, "cache_creation": {"ephemeral_5m_input_tokens": 1.5}},
    }
    with serving(Reply(body=json.dumps(body, indent=2).encode())) as server:
        base = server.url.removesuffix("/v1")
        lm = dspy.LM("anthropic/m", api_base=base, api_key="of-nobody", num_retries=0)
        pool = Pool.from_lms({"a": lm}, strict=True)
        mixture = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
        asked = asyncio.run(mixture.acall(question="q")) if is_async else mixture(question="q")
    assert asked.answer == "Paris"
    assert pool.calls.ledger.spending.tokens > 0


@pytest.mark.parametrize(
    ("usage", "kept"),
    [
        (None, None),
        ([1, 2], None),
        (
            {"prompt_tokens": 3, "cost": 0.25, "total_tokens": 1.5},
            {"prompt_tokens": 3, "cost": 0.25},
        ),
        (
            {"promptTokenCount": 3, "promptTokensDetails": [{"modality": "TEXT"}]},
            {"promptTokenCount": 3, "promptTokensDetails": [{"modality": "TEXT"}]},
        ),
        ({"details_tokens": {"cached_tokens": "1"}}, {"details_tokens": {}}),
    ],
)
def test_only_odd_counts_are_left_out(usage: Any, kept: Any) -> None:
    # An answer may have a field of that name; it is not looked at.
    body = {"content": {"usage": {"tokens": "x"}}}
    assert without_odd_usage({**body, "usage": usage}) == {**body, "usage": kept}
    wrapped = without_odd_usage({"message": {**body, "usage": usage}})
    assert wrapped == {"message": {**body, "usage": kept}}


def test_the_facts_of_a_call_say_that_its_tokens_are_estimated() -> None:
    calls, caller = Calls(), AgentCalls("quiet", "served/quiet")
    counted = {**ANSWER, "usage": {"input_tokens": 11, "output_tokens": 7}}
    with call_scope() as scope:
        for number, response in enumerate((ANSWER, counted)):
            for _ in range(2):  # made, then reused
                calls.answer(calls.prepare(caller, {"number": number}), partial(dict, response))
    assert [facts.is_estimated for facts in scope.log] == [True, True, False, False]
