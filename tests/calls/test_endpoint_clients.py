"""What the clients of an endpoint promise: streams, timeouts, loops, kept connections, proxies."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from dspy import lm15

from moa_dspy.calls.lm.endpoint import Endpoint, endpoint_engine

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read when LiteLLM is imported: no download

PATIENCE_SECONDS = 30
SHORT_SECONDS = 0.2
KEY = "-".join(["sk", "planted", "0123456789"])
BOTH_KINDS = pytest.mark.parametrize("is_async", [False, True])
BOTH_CLIENTS = pytest.mark.parametrize("client", ["auto", "litellm"])
REQUEST = lm15.Request(model="agent/a", messages=(lm15.Message.user("France?"),))


class ChatServer(ThreadingHTTPServer):
    """Answers "Paris", streamed in two halves; it can be told to stay silent."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.targets: list[str] = []
        self.n_connections, self.is_silent, self.is_patient = 0, False, False
        self.half_is_read, self.left = threading.Event(), threading.Semaphore(0)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        self.host = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer  # pyright: ignore[reportIncompatibleVariableOverride]  # no other starts it

    def setup(self) -> None:
        super().setup()
        self.server.n_connections += 1

    def finish(self) -> None:
        super().finish()
        self.server.left.release()

    def do_POST(self) -> None:  # the name that http.server calls
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.targets.append(self.path)
        if self.server.is_silent:
            self.server.half_is_read.wait(PATIENCE_SECONDS)
            return
        head = {"id": "r1", "object": "chat.completion", "created": 1, "model": body["model"]}
        if body.get("stream"):
            self._stream({**head, "object": "chat.completion.chunk"})
            return
        message = {"role": "assistant", "content": "Paris"}
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        payload = json.dumps({**head, "choices": [choice], "usage": usage}).encode()
        self._headers("Content-Length", str(len(payload)))
        self.wfile.write(payload)

    def _stream(self, head: dict[str, Any]) -> None:
        self._headers("Connection", "close")
        self._chunk(head, {"role": "assistant", "content": "Pa"}, None)
        self.server.is_patient = self.server.half_is_read.wait(PATIENCE_SECONDS)
        self._chunk(head, {"content": "ris"}, None)
        self._chunk(head, {}, "stop")
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _chunk(self, head: dict[str, Any], delta: dict[str, str], reason: str | None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        self.wfile.write(b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n")
        self.wfile.flush()

    def _headers(self, name: str, value: str) -> None:
        self.send_response(200)
        self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as running:
        yield running
        running.half_is_read.set()
        running.shutdown()


def engine_of(server: ChatServer, *, is_async: bool, base: str | None = None, **more: Any) -> Any:
    endpoint = Endpoint("openai/x", base or f"{server.host}/v1", KEY, **more)
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
    server: ChatServer, client: str, is_async: bool
) -> None:
    async def read() -> list[str]:
        engine, texts = engine_of(server, is_async=is_async, client=client), []
        async for event in events_of(engine, is_async=is_async):
            if event.type == "delta":
                texts.append(event.delta.text)
                server.half_is_read.set()
        return texts

    assert (asyncio.run(read()), server.is_patient) == (["Pa", "ris"], True)


@BOTH_KINDS
@BOTH_CLIENTS
def test_a_silent_server_is_given_up_after_the_endpoint_s_seconds(
    server: ChatServer, client: str, is_async: bool
) -> None:
    server.is_silent = True
    engine = engine_of(server, is_async=is_async, client=client, timeout_seconds=SHORT_SECONDS)
    with pytest.raises(lm15.LM15Error, match=r"(?i)timed? ?out|no complete answer"):
        asyncio.run(complete(engine, is_async=is_async))
    assert not server.half_is_read.is_set(), "the client gave up, not the server"


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
    monkeypatch.setenv("http_proxy", server.host)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for base in ("http://models.example/v1", f"{server.host}/v1"):
        engine = engine_of(server, is_async=is_async, base=base)
        assert asyncio.run(complete(engine, is_async=is_async)) == "Paris"
    # A proxy is asked for whole addresses.
    chat = "/v1/chat/completions"
    assert server.targets == [f"http://models.example{chat}", chat]


def test_no_key_is_shown_by_an_endpoint_or_its_engines(server: ChatServer) -> None:
    shown = [repr(Endpoint("openai/x", server.host, KEY))]
    for is_async in (False, True):
        engine = engine_of(server, is_async=is_async)
        asyncio.run(complete(engine, is_async=is_async))
        shown += [repr(engine), repr(vars(engine))]
        engine.close()
    assert KEY not in "".join(shown)
