from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.calls import Calls, CallStore
from moa_dspy.errors import LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read when LiteLLM is imported: no download

KEY = "-".join(["sk", "planted", "0123456789"])
VARIABLE = "MOA_TEST_ENDPOINT_KEY"


class ChatServer(ThreadingHTTPServer):
    """Speaks the chat completions protocol on this machine and remembers what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.errors: list[int] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer  # pyright: ignore[reportIncompatibleVariableOverride]  # no other starts it

    def do_POST(self) -> None:  # the name that http.server calls
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append({"path": self.path, **body})
        self.server.keys.append(self.headers["Authorization"])
        if self.server.errors:
            # Some servers quote the request's header in what they say about it.
            text = f"cannot serve {self.headers['Authorization']}"
            self._reply(self.server.errors.pop(0), {"error": {"message": text, "type": text}})
            return
        message = {"role": "assistant", "content": self.server.answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        head = {"id": "r1", "object": "chat.completion", "created": 1, "model": body["model"]}
        self._reply(200, {**head, "choices": [choice], "usage": usage})

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        payload = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer("Paris") as running:
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def _key() -> Iterator[None]:
    os.environ[VARIABLE] = KEY
    yield
    del os.environ[VARIABLE]


def pool_of(server: ChatServer, *, client: str, calls: Calls | None = None, **more: Any) -> Pool:
    values = {"name": "a", "model": "openai/x", "temperature": 0.7, "max_tokens": 33, **more}
    agent = Agent(api_base=server.url, api_key_env=VARIABLE, client=client, **values)
    return Pool([agent], calls=calls)


def ask(lm: Any, *, is_async: bool, prompt: str = "France?") -> list[str]:
    async def inside_one_loop() -> list[str]:
        try:
            return list(await lm.acall(prompt))
        finally:
            await lm.aclose()

    return asyncio.run(inside_one_loop()) if is_async else list(lm(prompt))


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("client", "limit"), [("auto", "max_tokens"), ("litellm", "max_completion_tokens")]
)
def test_a_request_carries_model_settings_and_key_and_its_answer_is_stored(
    server: ChatServer, client: str, limit: str, is_async: bool
) -> None:
    pool = pool_of(server, client=client)
    for _ in range(2):
        assert ask(pool.lm("a"), is_async=is_async) == ["Paris"]
    (body,) = server.bodies
    assert (body["path"], body["model"]) == ("/v1/chat/completions", "x")
    assert (body[limit], body["temperature"]) == (33, 0.7)
    assert set(body) & {"max_tokens", "max_completion_tokens"} == {limit}
    assert body["messages"] == [{"role": "user", "content": "France?"}]
    assert server.keys == [f"Bearer {KEY}"]
    assert (pool.calls.ledger.spending.made, pool.calls.ledger.spending.tokens) == (1, 18)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("client", ["auto", "litellm"])
def test_an_overloaded_server_is_asked_again_and_both_requests_count(
    server: ChatServer, client: str, is_async: bool
) -> None:
    server.errors = [500]
    pool = pool_of(server, client=client)
    assert ask(pool.lm("a"), is_async=is_async) == ["Paris"]
    assert len(server.bodies) == pool.calls.ledger.spending.made == 2


@pytest.mark.parametrize("client", ["auto", "litellm"])
def test_two_servers_of_one_model_name_never_share_an_answer(
    server: ChatServer, client: str, tmp_path: Path
) -> None:
    calls = Calls(CallStore(tmp_path / "calls.sqlite"))
    with ChatServer("Rome") as other:
        for _ in range(2):
            for who, expected in ((server, "Paris"), (other, "Rome")):
                assert ask(pool_of(who, client=client, calls=calls).lm("a"), is_async=False) == [
                    expected
                ]
        assert (len(server.bodies), len(other.bodies), calls.ledger.spending.made) == (1, 1, 2)
        other.shutdown()


def test_a_server_without_a_key_is_asked_without_one(server: ChatServer) -> None:
    pool = Pool([Agent(name="a", model="hosted_vllm/x", api_base=server.url)])
    assert ask(pool.lm("a"), is_async=False) == ["Paris"]
    assert KEY not in str(server.keys)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("client", ["auto", "litellm"])
@pytest.mark.parametrize("status", [401, 400])
def test_a_key_that_the_server_quotes_is_in_no_error_file_repr_or_log(
    server: ChatServer,
    client: str,
    is_async: bool,
    status: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    server.errors = [status] * 9
    store = CallStore(tmp_path / "calls.sqlite")
    pool = pool_of(server, client=client, calls=Calls(store), name="b")
    with pytest.raises(dspy.LMError, match=r"cannot serve (Bearer \*\*\*|REDACTED)") as caught:
        ask(pool.lm("b"), is_async=is_async)
    assert server.keys[0] == f"Bearer {KEY}", "the key was sent"
    program = MixtureOfAgents("question -> answer", "b", pool=pool, adapter=PlainChat())
    with pytest.raises(LayerFailedError, match=r"b: LM.*cannot serve") as lost:
        program(question="France?")
    (failed, *_) = list(store)
    assert "cannot serve" in str(failed.failure)
    store.close()
    shown = [*traceback.format_exception(caught.value), *traceback.format_exception(lost.value)]
    shown += [repr(caught.value), repr(lost.value), repr(pool.lm("b").history), repr(vars(pool))]
    assert KEY not in "".join(shown)
    assert KEY not in caplog.text
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*"))
