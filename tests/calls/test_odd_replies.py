"""Replies as servers other than OpenAI's send them, whole and as streams, through each client."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from dataclasses import replace
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.calls.reply import why_broken_off
from moa_dspy.errors import LayerFailedError
from moa_dspy.judges import PairJudge
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.prediction import Answer
from moa_dspy.streaming import AnswerListener
from tests.servers.chat import HEAD, USAGE, ChatServer, Reply, serving

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read when LiteLLM is imported: no download

KEY = "-".join(["sk", "planted", "0123456789"])
CLIENTS = ("auto", "litellm", "adopted")
EVERY_CLIENT = pytest.mark.parametrize("client", CLIENTS)
BOTH_WAYS = pytest.mark.parametrize("is_streamed", [False, True])


def mixture_of(server: ChatServer, client: str, *, model: str = "openai/x") -> MixtureOfAgents:
    if client == "adopted":
        lm = dspy.LM(model, api_base=server.url, api_key=KEY, num_retries=0, cache=False)
        pool = Pool.from_lms({"a": lm}, strict=True)
    else:
        way: Any = client
        pool = Pool([Agent(name="a", model=model, api_base=server.url, client=way, num_retries=0)])
    return MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())


def asked(program: MixtureOfAgents, *, is_streamed: bool = False) -> tuple[Answer, str]:
    """Return the answer with its facts, and what of it was shown as a stream."""

    async def streamed() -> tuple[Answer, str]:
        shown, answer = "", None
        listener = AnswerListener(program)
        async for part in dspy.streamify(program, stream_listeners=[listener])(question="?"):
            if isinstance(part, dspy.Prediction):
                answer = part.mixture
            elif isinstance(part, dspy.streaming.StreamResponse):
                shown += part.chunk
        assert answer is not None
        return answer, shown

    try:
        if is_streamed:
            return asyncio.run(streamed())
        answer = program(question="?").mixture
        return answer, answer.final.text
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group


def chunk(delta: dict[str, Any], **choice: Any) -> bytes:
    whole = {"index": 0, "delta": delta, "finish_reason": None, **choice}
    content = {**HEAD, "object": "chat.completion.chunk", "choices": [whole]}
    return f"data: {json.dumps(content)}\n\n".encode()


END = [chunk({}, finish_reason="stop"), b"data: [DONE]\n\n"]
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "Rome?"}]}
PARTS = [THOUGHT, {"type": "text", "text": "Paris"}]
TEXT = [chunk({"role": "assistant", "content": "Paris"}), *END]
ODD_USAGE: dict[str, Any] = {
    "null": None,
    "none": ...,
    "a text": "many",
    "a list": [1],
    "null counts": dict.fromkeys(USAGE),
    "texts": {**USAGE, "prompt_tokens": "11", "completion_tokens": "x"},
    "negative": {**USAGE, "prompt_tokens": -1, "completion_tokens": -1},
    "fractions": {**USAGE, "prompt_tokens": 1.5, "completion_tokens": 2.5},
    "beyond 64 bits": {**USAGE, "prompt_tokens": 2**70, "completion_tokens": 2**70},
}


@BOTH_WAYS
@pytest.mark.parametrize("usage", ODD_USAGE)
@EVERY_CLIENT
def test_odd_usage_loses_no_answer_and_is_settled_by_an_estimate(
    client: str, usage: str, is_streamed: bool
) -> None:
    with serving(Reply(usage=ODD_USAGE[usage], split=lambda text: [text])) as server:
        program = mixture_of(server, client)
        answer, shown = asked(program, is_streamed=is_streamed)
        assert (answer.final.text, shown, len(server.bodies)) == ("Paris", "Paris", 1)
    tokens = answer.final.prompt_tokens + answer.final.completion_tokens
    assert 0 < tokens < 100
    assert tokens == program.pool.calls.ledger.spending.tokens


@pytest.mark.parametrize("detail", [{"cached_tokens": "x"}, "x", [1]])
def test_odd_details_of_usage_leave_the_counts_that_are_fine(detail: Any) -> None:
    usage = {**USAGE, "prompt_tokens_details": detail}
    for client in CLIENTS:
        with serving(Reply(usage=usage)) as server:
            final = asked(mixture_of(server, client))[0].final
        assert (final.text, final.prompt_tokens, final.completion_tokens) == ("Paris", 11, 7)


@BOTH_WAYS
@EVERY_CLIENT
def test_content_may_come_as_parts_and_a_thought_among_them_is_set_apart(
    client: str, is_streamed: bool
) -> None:
    frames = [chunk({"content": [part]}) for part in PARTS]
    with serving(Reply(message={"content": PARTS}, frames=[*frames, *END])) as server:
        answer, shown = asked(mixture_of(server, client), is_streamed=is_streamed)
    assert (answer.final.text, shown) == ("Paris", "Paris")


@BOTH_WAYS
@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
@EVERY_CLIENT
def test_an_answer_that_the_endpoint_broke_off_is_a_failure(
    client: str, reason: str, is_streamed: bool
) -> None:
    with (
        serving(Reply("The capital is", finish_reason=reason)) as server,
        pytest.raises(LayerFailedError, match=f"broke off its answer .finish_reason '{reason}'"),
    ):
        asked(mixture_of(server, client), is_streamed=is_streamed)


def test_a_reply_with_an_error_and_no_reason_shows_only_the_error() -> None:
    reply = {"choices": [{"error": {"message": "gone"}}]}
    assert why_broken_off(reply) == "The endpoint broke off its answer: gone"


@EVERY_CLIENT
def test_a_broken_off_answer_is_asked_for_again_like_a_502(client: str) -> None:
    broken = Reply("The", finish_reason="error", choice={"error": {"message": "gone"}})
    with serving([broken, Reply("Paris")]) as server:
        program = mixture_of(server, client)
        if client == "adopted":
            pytest.skip("an adopted LM has the retries that it was given: none")
        agent = replace(program.pool["a"], num_retries=1)
        program = MixtureOfAgents(
            "question -> answer", "a", pool=Pool([agent]), adapter=PlainChat()
        )
        assert program(question="?").answer == "Paris"
        assert len(server.bodies) == 2


@BOTH_WAYS
@pytest.mark.parametrize("reason", ["length", "content_filter"])
@EVERY_CLIENT
def test_an_answer_that_was_cut_says_so(client: str, reason: str, is_streamed: bool) -> None:
    with serving(Reply("The capital is", finish_reason=reason)) as server:
        answer, _ = asked(mixture_of(server, client), is_streamed=is_streamed)
    assert answer.final.finish_reason == reason
    assert "1 cut by" in answer.summary


@EVERY_CLIENT
def test_a_stream_that_ends_before_its_answer_is_no_answer(client: str) -> None:
    with (
        serving(Reply(frames=[chunk({"content": "The capital"})])) as server,
        pytest.raises(LayerFailedError, match=r"broke off|without a completion"),
    ):
        asked(mixture_of(server, client), is_streamed=True)


@EVERY_CLIENT
@pytest.mark.parametrize(
    "frame",
    [
        b'data: {"error": {"message": "overloaded now", "type": "server_error"}}\n\n',
        b'data: {"error": "overloaded now"}\n\n',
        b'event: error\ndata: {"message": "overloaded now"}\n\n',
        b'event: error\ndata: {"error": {"message": "overloaded now"}}\n\n',
    ],
)
def test_an_error_inside_of_a_stream_is_shown_in_its_words(client: str, frame: bytes) -> None:
    with (
        serving(Reply(frames=[chunk({"content": "The"}), frame])) as server,
        pytest.raises(LayerFailedError, match="overloaded now"),
    ):
        asked(mixture_of(server, client), is_streamed=True)


@EVERY_CLIENT
def test_a_server_that_knows_no_streams_answers_all_the_same(client: str) -> None:
    message = {"role": "assistant", "content": "Paris"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = json.dumps({**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE})
    with serving(Reply(body=body.encode())) as server:
        answer, shown = asked(mixture_of(server, client), is_streamed=True)
        assert (answer.final.text, shown, len(server.bodies)) == ("Paris", "Paris", 1)
    assert answer.final.prompt_tokens == 11


@BOTH_WAYS
@EVERY_CLIENT
def test_a_refusal_is_shown_with_its_reason(client: str, is_streamed: bool) -> None:
    refusal = "I cannot help with that."
    frames = [chunk({"refusal": piece}) for piece in ("I cannot ", "help ", "with that.")]
    reply = Reply(message={"content": None, "refusal": refusal}, frames=[*frames, *END])
    with serving(reply) as server:
        with pytest.raises(LayerFailedError, match=f"a: The model refused: {refusal}"):
            asked(mixture_of(server, client), is_streamed=is_streamed)
        assert len(server.bodies) == 1


@EVERY_CLIENT
@pytest.mark.parametrize("is_split_in_bytes", [False, True])
def test_an_emoji_that_is_split_over_chunks_is_one(client: str, is_split_in_bytes: bool) -> None:
    frames = [chunk({"content": f"Hi {half}"}) for half in ("\ud83d", "\ude00!")]
    frames[1] = chunk({"content": "\ude00!"})
    if is_split_in_bytes:
        whole = f'data: {{"choices": [{{"index": 0, "delta": {{"content": "Hi {GRIN}!"}}}}]}}\n\n'
        middle = len(whole.encode().partition(GRIN.encode())[0]) + 2
        frames = [whole.encode()[:middle], whole.encode()[middle:]]
    with serving(Reply(frames=[*frames, *END])) as server:
        answer, shown = asked(mixture_of(server, client), is_streamed=True)
    assert (answer.final.text, shown) == (f"Hi {GRIN}!",) * 2


GRIN = "\U0001f600"


@pytest.mark.parametrize("low", [None, float("-inf"), float("nan"), -9999.0])
@pytest.mark.parametrize("client", ["auto", "litellm"])
def test_a_log_probability_that_is_none_means_probability_0(client: str, low: Any) -> None:
    others = [{"token": "2", "logprob": -0.1}, {"token": "1", "logprob": low}]
    token = {"token": "2", "logprob": -0.1, "bytes": None, "top_logprobs": others}
    with serving(Reply("2", choice={"logprobs": {"content": [token]}})) as server:
        way: Any = client
        agent = Agent(name="j", model="openai/x", api_base=server.url, client=way, temperature=0)
        judge = PairJudge(pool=Pool([agent]), agent="j")
        found = judge(instruction="?", response_1="Rome", response_2="Paris")
    assert (found.verdict, found.preference, found.excluded) == ("2", pytest.approx(1.0), None)


@pytest.mark.parametrize("client", ["auto", "litellm"])
def test_a_reasoning_model_is_asked_as_its_endpoint_wants_it(client: str) -> None:
    def script(body: dict[str, Any]) -> Reply:
        for name in ("temperature", "max_tokens", "top_p"):
            if name in body:
                error = {"message": f"{name} is not supported with this model", "param": name}
                return Reply(status=400, body=json.dumps({"error": error}).encode())
        return Reply("Paris")

    with serving(script) as server:
        answer, _ = asked(mixture_of(server, client, model="openai/gpt-5-mini"))
        assert answer.final.text == "Paris"
        assert server.bodies[0]["max_completion_tokens"] > 0


@pytest.mark.parametrize("client", ["auto", "litellm"])
def test_further_fields_and_headers_of_an_agent_are_sent(client: str) -> None:
    way: Any = client
    with serving(Reply()) as server:
        agent = Agent(
            name="a",
            model="openai/x",
            api_base=server.url,
            client=way,
            extra_body={"min_p": 0.1, "chat_template_kwargs": {"enable_thinking": False}},
            headers={"X-Team": "north"},
        )
        assert Pool([agent]).lm("a")("?") == ["Paris"]
        (body,) = server.bodies
        assert server.headers[0]["X-Team"] == "north"
    assert body["min_p"] == 0.1
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_server_without_a_key_is_asked_through_litellm_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(Reply()) as server:
        assert asked(mixture_of(server, "litellm"))[0].final.text == "Paris"


@pytest.mark.parametrize("client", ["litellm", "adopted"])
def test_a_stream_that_is_compressed_unasked_is_read(client: str) -> None:
    compressed = Reply(frames=[gzip.compress(b"".join(TEXT))], encoding="gzip")
    with serving(compressed) as server:
        answer, shown = asked(mixture_of(server, client), is_streamed=True)
        assert (answer.final.text, shown) == ("Paris", "Paris")
        sent = server.headers[0]
    if client == "litellm":
        assert sent["accept-encoding"] == "identity"
