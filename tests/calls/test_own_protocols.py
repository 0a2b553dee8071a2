"""Replies in the protocols of Anthropic, Gemini and Ollama: each client reads them alike."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.errors import LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from tests.calls.test_odd_replies import BOTH_WAYS, KEY, asked
from tests.servers.chat import ChatServer, Reply, serving

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read when LiteLLM is imported: no download

PROTOCOLS = {
    "anthropic": ("anthropic/x", ""),
    "gemini": ("gemini/x", "/v1beta"),
    "ollama": ("ollama_chat/x", ""),
}
EVERY_PROTOCOL = pytest.mark.parametrize("protocol", PROTOCOLS)
BOTH_CLIENTS = pytest.mark.parametrize("client", ["litellm", "adopted"])


def mixture_of(server: ChatServer, protocol: str, client: str) -> MixtureOfAgents:
    model, path = PROTOCOLS[protocol]
    base = server.root + path
    if client == "adopted":
        lm = dspy.LM(model, api_base=base, api_key=KEY, num_retries=0, cache=False)
        pool = Pool.from_lms({"a": lm}, strict=True)
    else:
        agent = Agent(
            name="a",
            model=model,
            api_base=base,
            client="litellm",
            num_retries=0,
            api_key_env="OWN_PROTOCOL_KEY",
        )
        pool = Pool([agent])
    return MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_PROTOCOL_KEY", KEY)


def n_asked(server: ChatServer) -> int:
    # LiteLLM looks up what Ollama knows of a model.
    return sum("/api/show" not in path for path in server.paths)


@BOTH_WAYS
@pytest.mark.parametrize(
    "reply",
    [Reply(), Reply(thinking="Rome?"), Reply("<think>Rome?</think>\nParis")],
)
@EVERY_PROTOCOL
@BOTH_CLIENTS
def test_a_thought_is_told_from_the_answer_in_one_request(
    client: str, protocol: str, reply: Reply, is_streamed: bool
) -> None:
    if (client, protocol, is_streamed) == ("litellm", "ollama", True) and "<" in reply.text:
        pytest.skip("LiteLLM itself cuts Ollama's stream at tags, wrong if a chunk holds more")
    with serving(reply) as server:
        answer, shown = asked(mixture_of(server, protocol, client), is_streamed=is_streamed)
        assert n_asked(server) == 1
    final = answer.final
    assert (final.text, shown, final.finish_reason) == ("Paris", "Paris", "stop")
    assert (final.prompt_tokens, final.completion_tokens) == (11, 7)


@BOTH_WAYS
@pytest.mark.parametrize("reason", ["length", "content_filter"])
@EVERY_PROTOCOL
@BOTH_CLIENTS
def test_an_answer_that_was_cut_or_filtered_says_so(
    client: str, protocol: str, reason: str, is_streamed: bool
) -> None:
    with serving(Reply("The capital", finish_reason=reason)) as server:
        answer, shown = asked(mixture_of(server, protocol, client), is_streamed=is_streamed)
    assert (answer.final.text, shown, answer.final.finish_reason) == (*["The capital"] * 2, reason)


@BOTH_WAYS
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(""), r"an empty text\."),
        (Reply("", finish_reason="length"), "an empty text .`max_tokens` ended it"),
        (Reply("", finish_reason="content_filter"), "an empty text .the endpoint's content filter"),
        (
            Reply("", thinking="Rome?", finish_reason="length"),
            "reasoning only, and no text .`max_tokens` ended it",
        ),
    ],
)
@EVERY_PROTOCOL
@BOTH_CLIENTS
def test_a_reply_without_an_answer_says_why(
    client: str, protocol: str, reply: Reply, words: str, is_streamed: bool
) -> None:
    with (
        serving(reply) as server,
        pytest.raises(LayerFailedError, match=f"a: The model answered with {words}"),
    ):
        asked(mixture_of(server, protocol, client), is_streamed=is_streamed)


@BOTH_WAYS
@EVERY_PROTOCOL
@BOTH_CLIENTS
def test_an_answer_whose_tokens_were_not_counted_is_an_answer(
    client: str, protocol: str, is_streamed: bool
) -> None:
    with serving(Reply(usage=...)) as server:
        answer, shown = asked(mixture_of(server, protocol, client), is_streamed=is_streamed)
    assert (answer.final.text, shown) == ("Paris", "Paris")
    assert answer.final.prompt_tokens > 0
    assert answer.final.completion_tokens > 0


def events(*contents: dict[str, Any]) -> list[bytes]:
    return [
        (f"event: {content['type']}\n" if "type" in content else "").encode()
        + f"data: {json.dumps(content)}\n\n".encode()
        for content in contents
    ]


def anthropic(content: Sequence[dict[str, Any]], reason: str) -> Reply:
    """Return a reply with these blocks; of a stream, only the first event counts the prompt."""
    head: dict[str, Any] = {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": "x",
        "content": [],
    }
    head |= {"stop_reason": None, "stop_sequence": None}
    head["usage"] = {"input_tokens": 11, "output_tokens": 1}
    ending = {"stop_reason": reason, "stop_sequence": None}
    usage = {"input_tokens": 11, "output_tokens": 7}
    body = {**head, **ending, "content": list(content), "usage": usage}
    sent: list[dict[str, Any]] = [{"type": "message_start", "message": head}]
    for index, block in enumerate(content):
        begun = {**block, "text": ""} if block["type"] == "text" else block
        sent.append({"type": "content_block_start", "index": index, "content_block": begun})
        if block["type"] == "text":
            delta = {"type": "text_delta", "text": block["text"]}
            sent.append({"type": "content_block_delta", "index": index, "delta": delta})
        sent.append({"type": "content_block_stop", "index": index})
    sent += [
        {"type": "message_delta", "delta": ending, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]
    return Reply(body=json.dumps(body).encode(), frames=events(*sent))


def gemini(candidate: dict[str, Any] | None, **more: Any) -> Reply:
    usage = {"promptTokenCount": 11, "candidatesTokenCount": 4, "thoughtsTokenCount": 3}
    content = {"modelVersion": "x", "responseId": "r1", "usageMetadata": usage, **more}
    if candidate is not None:
        content["candidates"] = [{"index": 0, **candidate}]
    return Reply(body=json.dumps(content).encode(), frames=events(content))


TEXT = {"type": "text", "text": "Paris"}
SIGNED = [{"text": "Rome?", "thought": True}, {"text": "Paris", "thoughtSignature": "YWJj"}]
ANSWERED: dict[str, tuple[str, Reply, str]] = {
    "a window that is full": (
        "anthropic",
        anthropic([TEXT], "model_context_window_exceeded"),
        "length",
    ),
    "a stop sequence": ("anthropic", anthropic([TEXT], "stop_sequence"), "stop"),
    "a thought that is not shown": (
        "anthropic",
        anthropic([{"type": "redacted_thinking", "data": "YWJj"}, TEXT], "end_turn"),
        "stop",
    ),
    "a thought with a signature": (
        "gemini",
        gemini({"content": {"role": "model", "parts": SIGNED}, "finishReason": "STOP"}),
        "stop",
    ),
    "a recitation": (
        "gemini",
        gemini({"content": {"role": "model", "parts": [TEXT]}, "finishReason": "RECITATION"}),
        "content_filter",
    ),
}


def whole_or_frames(reply: Reply, is_streamed: bool) -> Reply:
    return Reply(frames=reply.frames) if is_streamed else Reply(body=reply.body)


@BOTH_WAYS
@pytest.mark.parametrize("kind", ANSWERED)
@BOTH_CLIENTS
def test_what_a_vendor_says_beside_an_answer_is_read_alike(
    client: str, kind: str, is_streamed: bool
) -> None:
    protocol, reply, reason = ANSWERED[kind]
    with serving(whole_or_frames(reply, is_streamed)) as server:
        answer, shown = asked(mixture_of(server, protocol, client), is_streamed=is_streamed)
        assert n_asked(server) == 1
    final = answer.final
    assert (final.text, shown, final.finish_reason) == ("Paris", "Paris", reason)
    # Thoughts are paid for as answers are: 4 and 3 of Gemini's make 7.
    assert (final.prompt_tokens, final.completion_tokens) == (11, 7)


FILTERED = "an empty text .the endpoint's content filter ended it"
UNANSWERED: dict[str, tuple[str, Reply, str]] = {
    "a refusal": ("anthropic", anthropic([], "refusal"), FILTERED),
    "nothing": ("anthropic", anthropic([], "end_turn"), r"an empty text\."),
    "a blocked prompt": ("gemini", gemini(None, promptFeedback={"blockReason": "OTHER"}), FILTERED),
    "no content": ("gemini", gemini({"finishReason": "PROHIBITED_CONTENT"}), FILTERED),
    "no parts": (
        "gemini",
        gemini({"content": {"role": "model"}, "finishReason": "MAX_TOKENS"}),
        "an empty text .`max_tokens` ended it",
    ),
}


@BOTH_WAYS
@pytest.mark.parametrize("kind", UNANSWERED)
@BOTH_CLIENTS
def test_what_a_vendor_says_instead_of_an_answer_is_read_alike(
    client: str, kind: str, is_streamed: bool
) -> None:
    protocol, reply, words = UNANSWERED[kind]
    with (
        serving(whole_or_frames(reply, is_streamed)) as server,
        pytest.raises(LayerFailedError, match=f"a: The model answered with {words}"),
    ):
        asked(mixture_of(server, protocol, client), is_streamed=is_streamed)


@BOTH_WAYS
@pytest.mark.parametrize("protocol", ["anthropic", "gemini"])
@BOTH_CLIENTS
def test_an_endpoint_that_is_overloaded_is_shown_in_its_words(
    client: str, protocol: str, is_streamed: bool
) -> None:
    error = {"type": "overloaded_error", "message": "too many ask", "status": "UNAVAILABLE"}
    body = json.dumps({"type": "error", "error": error}).encode()
    with (
        serving(Reply(status=503, body=body)) as server,
        pytest.raises(LayerFailedError, match=r"ServerError.*too many ask"),
    ):
        asked(mixture_of(server, protocol, client), is_streamed=is_streamed)
