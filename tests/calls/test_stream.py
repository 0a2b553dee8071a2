from __future__ import annotations

import asyncio
import json
import threading
from functools import partial
from typing import Any

import dspy
import pytest
from dspy import lm15

from moa_dspy.agent import Agent
from moa_dspy.calls import Call, Calls, Recording
from moa_dspy.calls.timeout import THREADS
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool
from tests.calls.fake_clock import FakeClock
from tests.servers.chat import ChatServer, Reply, serving

REQUEST = lm15.Request(model="agent/a", messages=(lm15.Message.user("q"),))


def pool_of(server: ChatServer, calls: Calls | None = None, **values: Any) -> Pool:
    agent = Agent(name="a", model="openai/x", api_base=server.url, **values)
    return Pool([agent], calls=calls or Calls(clock=FakeClock()))


def stored(pool: Pool) -> list[Call]:
    return list(pool.calls.store._calls.values())  # type: ignore[attr-defined]  # the memory


def events(pool: Pool, *, is_async: bool = False) -> list[Any]:
    """Return the events of a stream, as DSPy would read them."""
    lm: Any = pool.lm("a")

    async def collect() -> list[Any]:
        return [event async for event in lm._async_engine_spec.stream(REQUEST)]

    return asyncio.run(collect()) if is_async else list(lm._engine_spec.stream(REQUEST))


def text_of(found: list[Any]) -> str:
    return "".join(event.delta.text for event in found if event.type == "delta")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_arrives_before_it_is_complete_and_is_stored_when_it_is(is_async: bool) -> None:
    gate = threading.Event()
    with serving(Reply("Paris", wait=gate)) as server:
        pool = pool_of(server)
        lm: Any = pool.lm("a")

        def first_and_rest() -> list[Any]:
            source = iter(lm._engine_spec.stream(REQUEST))
            first = [next(source) for _ in range(5)]  # start, P, a, r, i
            assert stored(pool) == []
            gate.set()
            return first + list(source)

        async def afirst_and_rest() -> list[Any]:
            source = lm._async_engine_spec.stream(REQUEST)
            first = [await anext(source) for _ in range(5)]
            assert stored(pool) == []
            gate.set()
            return first + [event async for event in source]

        found = asyncio.run(afirst_and_rest()) if is_async else first_and_rest()
    assert [event.type for event in found] == ["start", *["delta"] * 5, "end"]
    assert text_of(found) == "Paris"
    (call,) = stored(pool)
    assert (call.prompt_tokens, call.completion_tokens, call.failure) == (11, 7, None)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_and_a_plain_call_are_one_call(is_async: bool) -> None:
    with serving(Reply("Paris is nice.")) as server:
        pool, other_pool = pool_of(server), pool_of(server)
        lm: Any = pool.lm("a")
        streamed = events(pool, is_async=is_async)
        assert lm._engine_spec.complete(REQUEST).text == text_of(streamed) == "Paris is nice."
        whole: Any = other_pool.lm("a")
        whole._engine_spec.complete(REQUEST)
        replayed = events(other_pool, is_async=is_async)
        assert text_of(replayed) == "Paris is nice."
        assert len([event for event in replayed if event.type == "delta"]) == 3
        assert len(server.bodies) == 2
        keep = ("key", "response", "prompt_tokens", "completion_tokens")
        (first,), (second,) = stored(pool), stored(other_pool)
        assert [getattr(first, n) for n in keep] == [getattr(second, n) for n in keep]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply("Paris", breaks_after=3), lm15.ServerError),
        (Reply("Paris", fails_after=3), lm15.ServerError),  # else it would be tried again
    ],
)
def test_a_stream_that_breaks_is_a_failed_call_and_its_beginning_no_answer(
    reply: Reply, error: type[Exception], is_async: bool
) -> None:
    with serving([reply, Reply("Rome")]) as server:
        pool = pool_of(server)
        with pytest.raises(error, match=r"broke off before the answer had ended|overloaded"):
            events(pool, is_async=is_async)
        (call,) = stored(pool)
        assert (call.response, pool.calls.ledger.spending.made) == (None, 1)
        assert len(server.bodies) == 1, "what was shown cannot be taken back by another attempt"
        assert text_of(events(pool, is_async=is_async)) == "Rome"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_that_did_not_begin_is_tried_again(is_async: bool) -> None:
    with serving([Reply(status=503), Reply("Rome")]) as server:
        pool = pool_of(server)
        found = events(pool, is_async=is_async)
        assert [event.type for event in found] == ["start", *["delta"] * 4, "end"]
        assert len(server.bodies) == pool.calls.ledger.spending.made == 2


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_that_nobody_reads_to_its_end_is_a_failed_call(is_async: bool) -> None:
    with serving([Reply("Paris"), Reply("Rome")]) as server:
        pool = pool_of(server)
        lm: Any = pool.lm("a")

        async def abandon() -> None:
            source = lm._async_engine_spec.stream(REQUEST)
            await anext(source)
            await anext(source)
            await source.aclose()

        if is_async:
            asyncio.run(abandon())
        else:
            source = lm._engine_spec.stream(REQUEST)
            next(source)
            next(source)
            source.close()
        (call,) = stored(pool)
        assert call.response is None
        assert str(call.failure).startswith("Abandoned after")
        replay = pool_of(server, Calls(recording=Recording([call]), replay_only=True))
        with pytest.raises(lm15.ProviderError, match="Abandoned after"):
            events(replay, is_async=is_async)
        assert text_of(events(pool, is_async=is_async)) == "Rome"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_that_holds_nothing_is_a_failed_call(is_async: bool) -> None:
    with serving(Reply(body=b"data: [DONE]\n\n")) as server:
        pool = pool_of(server)
        with pytest.raises(lm15.ProviderError, match="holds no answer"):
            events(pool, is_async=is_async)
    assert [call.response for call in stored(pool)] == [None]


def test_a_stream_of_what_is_under_way_waits_for_it_and_shows_it() -> None:
    gate = threading.Event()
    with serving(Reply("Paris is nice.", wait=gate)) as server:
        pool = pool_of(server, Calls())
        first = THREADS.submit(lambda: events(pool))
        server.await_request()
        others = [THREADS.submit(partial(events, pool, is_async=a)) for a in (False, True)]
        gate.set()
        for stream in (first, *others):
            assert text_of(stream.result(10)) == "Paris is nice."
        assert len(server.bodies) == pool.calls.ledger.spending.made == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_has_the_agents_time_and_no_more(is_async: bool) -> None:
    gate = threading.Event()
    with serving(Reply("Paris", wait=gate)) as server:
        pool = pool_of(server, timeout_seconds=0.1)
        with pytest.raises((lm15.TimeoutError, lm15.TransportError)):
            events(pool, is_async=is_async)
        gate.set()
    assert [call.response for call in stored(pool)] == [None]


@pytest.mark.parametrize("is_async", [False, True])
def test_an_engine_without_streams_is_asked_for_the_whole_and_shown_in_pieces(
    is_async: bool,
) -> None:
    pool = scripted_pool({"a": "Paris is nice."})
    found = events(pool, is_async=is_async)
    assert text_of(found) == "Paris is nice."
    assert [event.type for event in found] == ["start", *["delta"] * 3, "end"]
    assert pool.calls.ledger.spending.made == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_thoughts_are_streamed_and_stored_too(is_async: bool) -> None:
    with serving(Reply("Paris", thinking="hm")) as server:
        pool = pool_of(server)
        for _ in range(2):
            kinds = [e.delta.type for e in events(pool, is_async=is_async) if e.type == "delta"]
            assert kinds[0] == "thinking"
            assert set(kinds) == {"thinking", "text"}
        assert len(server.bodies) == 1


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("split", [list, str.split, lambda text: [text]])
def test_a_thought_between_tags_is_streamed_as_a_thought(is_async: bool, split: Any) -> None:
    with serving(Reply("<think>hm</think>Paris", split=split)) as server:
        pool = pool_of(server)
        for _ in range(2):  # as it arrives, then from the store
            deltas = [e.delta for e in events(pool, is_async=is_async) if e.type == "delta"]
            said = {k: "".join(d.text for d in deltas if d.type == k) for k in ("thinking", "text")}
            assert said == {"thinking": "hm", "text": "Paris"}
        assert len(server.bodies) == 1
        # What is stored is what came.
        assert "<think>hm</think>Paris" in str(stored(pool)[0].response)


def test_an_emoji_that_is_split_over_two_chunks_is_one_character() -> None:
    with serving(Reply("ok \ud83d\ude00 ok")) as server:
        assert text_of(events(pool_of(server))) == "ok \U0001f600 ok"


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
def test_a_reply_that_the_endpoint_broke_off_is_tried_again_and_no_answer(reason: str) -> None:
    choice = {"index": 0, "message": {"content": "The capital"}, "finish_reason": reason}
    body = json.dumps({"id": "1", "model": "m", "choices": [choice]}).encode()
    with serving([Reply(body=body), Reply("Rome")]) as server:
        pool = pool_of(server)
        assert pool.lm("a")("q") == ["Rome"]
        assert len(server.bodies) == 2
    with serving(Reply(body=body)) as server:
        pool = pool_of(server, num_retries=0)
        with pytest.raises(dspy.LMServerError, match=f"broke off its answer .*'{reason}'"):
            pool.lm("a")("q")
        assert stored(pool)[0].response is None


WORDS = {
    "openai": {"error": {"message": "no such model", "type": "invalid_request_error"}},
    "vllm": {"object": "error", "message": "no such model", "code": 400},
    "fastapi": {"detail": "no such model"},
    "fastapi fields": {"detail": [{"loc": ["body"], "msg": "no such model"}]},
    "flat": {"message": "no such model"},
    "text": "no such model",
}


@pytest.mark.parametrize("shape", WORDS)
@pytest.mark.parametrize("status", [400, 404, 422])
def test_an_error_has_the_servers_words_and_the_address(shape: str, status: int) -> None:
    said = WORDS[shape]
    body = (said if isinstance(said, str) else json.dumps(said)).encode()
    with serving(Reply(status=status, body=body)) as server:
        with pytest.raises(dspy.LMError, match="no such model") as caught:
            pool_of(server, num_retries=0).lm("a")("q")
        assert f"{server.url}/chat/completions" in str(caught.value)
        assert "agent/a" in str(caught.value)


def test_a_404_at_a_root_asks_for_v1() -> None:
    with serving(Reply(status=404, body=b"not found")) as server:
        agent = Agent(name="a", model="openai/x", api_base=server.url.removesuffix("/v1"))
        with pytest.raises(dspy.LMError, match=r"not found .*does `api_base` lack /v1"):
            Pool([agent], calls=Calls(clock=FakeClock())).lm("a")("q")
