"""What the clients of an endpoint promise: streams, timeouts, loops, kept connections, proxies."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from dspy import lm15

from moa_dspy.calls.lm.clients import endpoint_engine
from moa_dspy.calls.lm.endpoint import Endpoint
from tests.servers.chat import ChatServer, Reply, serving

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read when LiteLLM is imported: no download

PATIENCE_SECONDS = 30
SHORT_SECONDS = 0.2
KEY = "-".join(["sk", "planted", "0123456789"])
BOTH_KINDS = pytest.mark.parametrize("is_async", [False, True])
BOTH_CLIENTS = pytest.mark.parametrize("client", ["auto", "litellm"])
REQUEST = lm15.Request(model="agent/a", messages=(lm15.Message.user("France?"),))


class Gate(threading.Event):
    """Opened by a client that has read the first half; says whether the server waited for it."""

    is_patient = False

    def wait(self, timeout: float | None = None) -> bool:
        self.is_patient = super().wait(timeout)
        return self.is_patient


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.set()


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(Reply("Paris")) as running:
        yield running


def engine_of(server: ChatServer, *, is_async: bool, base: str | None = None, **more: Any) -> Any:
    endpoint = Endpoint("openai/x", base or server.url, KEY, **more)
    return endpoint_engine(endpoint, asynchronous=is_async)


async def complete(engine: Any, *, is_async: bool) -> str:
    response = await engine.complete(REQUEST) if is_async else engine.complete(REQUEST)
    return "".join(part.text for part in response.message.parts)


async def events_of(engine: Any, *, is_async: bool) -> AsyncIterator[Any]:
    if is_async:
        async for event in engine.stream(REQUEST):
            yield event
    else:
        for event in engine.stream(REQUEST):
            yield event


@BOTH_KINDS
@BOTH_CLIENTS
def test_a_stream_hands_on_what_came_before_the_rest_is_sent(
    gate: Gate, client: str, is_async: bool
) -> None:
    async def read(server: ChatServer) -> list[str]:
        engine, texts = engine_of(server, is_async=is_async, client=client), []
        async for event in events_of(engine, is_async=is_async):
            if event.type == "delta":
                texts.append(event.delta.text)
                gate.set()
        return texts

    with serving(Reply(split=lambda _: ["Pa", "ris"], wait=gate)) as server:
        assert (asyncio.run(read(server)), gate.is_patient) == (["Pa", "ris"], True)


@BOTH_KINDS
@BOTH_CLIENTS
def test_a_silent_server_is_given_up_after_the_endpoint_s_seconds(
    gate: Gate, client: str, is_async: bool
) -> None:
    with serving(Reply(wait=gate)) as server:
        engine = engine_of(server, is_async=is_async, client=client, timeout_seconds=SHORT_SECONDS)
        with pytest.raises(lm15.LM15Error, match=r"(?i)timed? ?out|no complete answer"):
            asyncio.run(complete(engine, is_async=is_async))
        assert server.answered == [], "the client gave up, not the server"


@BOTH_KINDS
def test_connections_are_kept_and_closed_with_it(server: ChatServer, is_async: bool) -> None:
    engine = engine_of(server, is_async=is_async)

    async def five() -> None:
        for _ in range(5):
            await complete(engine, is_async=is_async)
        assert not server.left.acquire(blocking=False)
        if is_async:
            await engine.aclose()

    asyncio.run(five())
    engine.close()
    assert server.n_connections == 1
    assert server.left.acquire(timeout=PATIENCE_SECONDS)


def test_one_event_loop_after_another_may_ask_and_leaves_nothing_open(server: ChatServer) -> None:
    engine = engine_of(server, is_async=True)
    assert [asyncio.run(complete(engine, is_async=True)) for _ in range(3)] == ["Paris"] * 3
    engine.close()
    gc.collect()
    assert all(server.left.acquire(timeout=PATIENCE_SECONDS) for _ in range(3))
    assert server.n_connections == 3


@BOTH_KINDS
def test_the_proxy_of_the_environment_is_used_unless_the_host_is_exempt(
    server: ChatServer, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "all_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.root)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for base in ("http://models.example/v1", server.url):
        engine = engine_of(server, is_async=is_async, base=base)
        assert asyncio.run(complete(engine, is_async=is_async)) == "Paris"
    # A proxy is asked for whole addresses.
    chat = "/v1/chat/completions"
    assert server.paths == [f"http://models.example{chat}", chat]


def test_no_key_is_shown_by_an_endpoint_or_its_engines(server: ChatServer) -> None:
    shown = [repr(Endpoint("openai/x", server.root, KEY))]
    for is_async in (False, True):
        engine = engine_of(server, is_async=is_async)
        asyncio.run(complete(engine, is_async=is_async))
        shown += [repr(engine), repr(vars(engine))]
        engine.close()
    assert KEY not in "".join(shown)
