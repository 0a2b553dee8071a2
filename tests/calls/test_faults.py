from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from typing import Any

import dspy
import pytest
from dspy import lm15

from moa_dspy.agent import Agent
from moa_dspy.calls import AgentCalls, Call, Calls, Recording, call_scope, stored_lm
from moa_dspy.pool import Pool
from moa_dspy.testing import ScriptedEngine
from tests.servers.chat import HEAD, USAGE, ChatServer, Reply, serving

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read when LiteLLM is imported: no download

LATE = (dspy.LMTimeoutError, dspy.LMTransportError)
MESSAGE = {"role": "assistant", "content": "Paris"}


def body(choices: Any, **more: Any) -> Reply:
    return Reply(body=json.dumps({**HEAD, "choices": choices, "usage": USAGE, **more}).encode())


def choice(message: Any) -> list[dict[str, Any]]:
    return [{"index": 0, "message": message, "finish_reason": "stop"}]


FAULTS: dict[str, tuple[Reply, str]] = {
    "no choices": (body([]), "ProviderError: The endpoint's reply holds no answer"),
    "choices absent": (Reply(body=b"{}"), "ProviderError: The endpoint's reply holds no answer"),
    "choices null": (body(None), "ProviderError: The endpoint's reply holds no answer"),
    "no message": (body([{"index": 0}]), "ProviderError: The endpoint's reply holds no answer"),
    "content a number": (body(choice({"content": 5})), "ProviderError: The .* holds no answer"),
    "choices a text": (body("x"), "ProviderError: The endpoint's reply holds no answer"),
    "null": (Reply(body=b"null"), "cannot be read: TypeError: a Chat Completions response"),
    "no JSON": (Reply(body=b"<html>oops</html>"), "ProviderError: the reply .* is not JSON"),
    "half a JSON": (Reply(body=b'{"choices": [{"mess'), "ProviderError: the reply .* is not JSON"),
    "no bytes": (Reply(body=b""), "ProviderError: the reply .* is not JSON"),
    "half a reply": (Reply(missing_bytes=9), "TransportError: connection closed with 9 body bytes"),
    "an error in a success": (
        Reply(body=b'{"error": {"message": "overloaded", "type": "server_error"}}'),
        "ServerError: overloaded",
    ),
}


def pool_of(server: ChatServer, calls: Calls | None = None, **values: Any) -> Pool:
    agent = Agent(name="a", model="openai/x", api_base=server.url, num_retries=0, **values)
    return Pool([agent], calls=calls)


def ask(pool: Pool, *, is_async: bool) -> list[Any]:
    lm: Any = pool.lm("a")
    return list(asyncio.run(lm.acall("q")) if is_async else lm("q"))


def stored(pool: Pool) -> Call:
    (call,) = pool.calls.store._calls.values()  # type: ignore[attr-defined]  # the memory
    assert isinstance(call, Call)
    return call


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_reply_is_a_failed_call_that_says_what_is_wrong(fault: str, is_async: bool) -> None:
    reply, message = FAULTS[fault]
    with serving(reply) as server:
        pool = pool_of(server)
        with call_scope() as scope, pytest.raises(dspy.LMError):
            ask(pool, is_async=is_async)
        assert len(server.bodies) == pool.calls.ledger.spending.made == 1
    call = stored(pool)
    assert call.response is None
    assert re.search(message, str(call.failure)), call.failure
    assert [facts.failure for facts in scope.log] == [call.failure]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["no choices", "no JSON", "half a reply", "choices a text"])
def test_litellm_tells_of_bad_replies_too(fault: str) -> None:
    with serving(FAULTS[fault][0]) as server:
        pool = pool_of(server, client="litellm", api_key_env="PATH")
        with pytest.raises(dspy.LMError):
            ask(pool, is_async=False)
    assert stored(pool).response is None


@pytest.mark.parametrize("is_async", [False, True])
def test_an_answer_whose_bytes_keep_coming_is_a_failed_call_after_the_agents_time(
    is_async: bool,
) -> None:
    with serving(Reply(drips=True)) as server:
        # Longer than between two bytes, so that only the total time can end it.
        pool = pool_of(server, timeout_seconds=0.25)
        with pytest.raises(LATE, match=r"no complete answer after 0\.25 s|timed out"):
            ask(pool, is_async=is_async)
    assert stored(pool).seconds >= 0.24


@pytest.mark.parametrize("is_async", [False, True])
def test_a_server_that_says_nothing_is_a_failed_call_after_the_agents_time(is_async: bool) -> None:
    gate = threading.Event()
    with serving(Reply(wait=gate)) as server:
        pool = pool_of(server, timeout_seconds=0.1)
        # Either limit may be the first to see it: that of the answer, or that of its first byte.
        with pytest.raises(LATE, match=r"no complete answer after 0\.1 s|timed out"):
            ask(pool, is_async=is_async)
        gate.set()
    assert stored(pool).response is None


def test_an_engine_that_cannot_be_stopped_is_left_alone_after_the_agents_time() -> None:
    gate = threading.Event()

    class Hanging:
        def complete(self, request: Any) -> Any:
            gate.wait(10)
            return ScriptedEngine("too late").complete(request)

    calls, caller = Calls(), AgentCalls("a", "served/a")
    lm: Any = stored_lm("agent/a", calls, caller, lambda _: Hanging(), timeout_seconds=0.05)
    with pytest.raises(dspy.LMTimeoutError, match=r"no complete answer after 0\.05 s"):
        lm("q")
    gate.set()
    (call,) = calls.store._calls.values()  # type: ignore[attr-defined]  # the memory
    assert call.response is None


@pytest.mark.parametrize("is_async", [False, True])
def test_an_empty_text_is_an_answer_and_so_are_thoughts_without_one(is_async: bool) -> None:
    with serving([Reply(text=""), Reply(text="", thinking="hm")]) as server:
        pool = pool_of(server)
        assert ask(pool, is_async=is_async) == [""]
        assert stored(pool).failure is None
        thinking = pool_of(server)
        (thought,) = ask(thinking, is_async=is_async)
        assert (thought["text"], thought["reasoning_content"]) == (None, "hm")
        assert ask(thinking, is_async=not is_async) == [thought]
        assert len(server.bodies) == 2


def test_a_request_that_is_cancelled_on_its_way_is_a_failed_call_in_a_replay_too() -> None:
    gate = threading.Event()
    with serving(Reply(wait=gate)) as server:
        pool = pool_of(server)

        async def cancelled() -> None:
            lm: Any = pool.lm("a")
            asking = asyncio.create_task(lm.acall("q"))
            await asyncio.to_thread(server.await_request)
            await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

        asyncio.run(cancelled())
        gate.set()
        call = stored(pool)
        assert re.fullmatch(r"Cancelled after \d+\.\d\d s\.", str(call.failure))
        assert call.seconds >= 0.01
        assert pool.calls.ledger.spending.made == 1
        replay = pool_of(server, Calls(recording=Recording([call]), replay_only=True))
        with call_scope() as scope, pytest.raises(dspy.LMProviderError, match="Cancelled after"):
            ask(replay, is_async=True)
        assert [(f.seconds, f.is_reused) for f in scope.log] == [(call.seconds, True)]
        assert len(server.bodies) == 1


class Interrupted:
    """An engine during whose work somebody presses Ctrl-C."""

    def complete(self, request: Any) -> Any:
        raise KeyboardInterrupt


def test_an_interrupted_request_is_noted_and_asked_again_next_time() -> None:
    calls = Calls()
    caller = AgentCalls("a", "served/a")
    lm: Any = stored_lm("agent/a", calls, caller, lambda _: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        lm("q")
    (call,) = calls.store._calls.values()  # type: ignore[attr-defined]  # the memory
    assert str(call.failure).startswith("KeyboardInterrupt after ")
    assert calls.ledger.spending.made == 1
    again: Any = stored_lm("agent/a", calls, caller, lambda _: ScriptedEngine("Paris"))
    assert again("q") == ["Paris"]


def test_what_an_engine_of_the_user_raises_as_an_lm_error_stays_what_it_is() -> None:
    class Refusing:
        def complete(self, request: Any) -> Any:
            raise lm15.ContextLengthError("too long", status=400)

    lm: Any = stored_lm("agent/a", Calls(), AgentCalls("a", "served/a"), lambda _: Refusing())
    with pytest.raises(dspy.ContextWindowExceededError, match="too long"):
        lm("q")
