"""Attacks on the server: keys, bodies, headers, names, files, and what logs and responses hold."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from moa_dspy.agent import Agent
from moa_dspy.calls.calls import Calls
from moa_dspy.errors import ArchitectureError, PoolError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.serve.limits import BoundedCalls, ServerKeys, ServerLimits
from tests.serve.running import KEY, app_of, running, server_pool
from tests.servers.chat import Reply, serving

CHAT = "chat/completions"
BEARER = {"Authorization": f"Bearer {KEY}"}


def body(text: str = "Hi", model: str = "a", **rest: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **rest}


@contextmanager
def asking(app: Any) -> Iterator[httpx.Client]:
    """Run an application and ask it with the right key."""
    with running(app) as url, httpx.Client(base_url=url, headers=BEARER) as client:
        yield client


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        f"Basic {KEY}",
        KEY,
        "Bearer wrong-key-here",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        "Bearer \xff\xfe",
    ],
)
def test_a_wrong_key_is_refused_everywhere(header: str | None) -> None:
    headers = [] if header is None else [(b"Authorization", header.encode("latin-1"))]
    pool = server_pool({"a": "hi"})
    with running(app_of(pool)) as url, httpx.Client(base_url=url, headers=headers) as client:
        for path in ("models", "models/a", url.replace("/v1", "/metrics")):
            assert client.get(path).status_code == 401
        for path in (CHAT, "completions", "responses"):
            refused = client.post(path, json=body())
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                401,
                "invalid_api_key",
            )
        assert client.get(url.replace("/v1", "/health")).status_code == 200
    assert pool.calls.ledger.spending.made == 0


def test_several_keys_are_told_apart_by_name() -> None:
    keys = ServerKeys({"alice": "key-of-alice", "bob": "key-of-bob"})
    assert keys.name_of("Bearer key-of-bob") == "bob"
    assert keys.name_of("bearer key-of-alice") == "alice"
    with pytest.raises(PoolError, match="at least 8 characters"):
        ServerKeys({"eve": "short"})


def test_no_key_and_no_prompt_in_a_log_or_a_response(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    pool = server_pool({"a": "secret answer", "b": Exception("down")})
    with running(app_of(pool)) as url, httpx.Client(base_url=url, headers=BEARER) as client:
        answers = [
            client.post(CHAT, json=body("secret prompt", moa_details=True)),
            client.post(CHAT, json=body("secret prompt", stream=True)),
            client.post(CHAT, json=body("secret prompt", model="b")),
            client.post(CHAT, json=body("secret prompt", tempratur=1)),
            client.post(CHAT, content=b"{"),
            client.get(url.replace("/v1", "/metrics")),
        ]
    log = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("moa_dspy"))
    assert "alice a 200" in log
    assert "secret" not in log
    everything = log + "".join(f"{a.text}{a.headers}" for a in answers)
    everything += "\n".join(r.getMessage() for r in caplog.records if "httpx" not in r.name)
    assert KEY not in everything


def test_a_log_says_why_an_agent_did_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    refused = Reply(status=404, body=b'{"error": {"message": "no model for: secret prompt"}}')
    with serving(refused) as server:
        agents = [
            Agent(name=name, model=f"openai/{name}", api_base=server.url, num_retries=0)
            for name in "ab"
        ]
        pool = Pool(agents, calls=Calls(BoundedCalls()))
        for has_content_log in (False, True):
            app = app_of(pool, has_content_log=has_content_log)
            with running(app) as url, httpx.Client(base_url=url, headers=BEARER) as client:
                client.post(CHAT, json=body("secret prompt", model="a + b > synthesize(a)"))
            said = "\n".join(r.getMessage() for r in caplog.records if r.name == "moa_dspy.serve")
            kind = "architecture: agent b did not answer: LMInvalidRequestError"
            whole = f"{kind}: [agent/b] no model for: secret prompt (HTTP 404"
            assert (whole if has_content_log else f"{kind} (HTTP 404)") in said
            assert ("secret" in said) == has_content_log
            caplog.clear()


def test_prompts_are_logged_when_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    app = app_of(server_pool({"a": "hi"}), has_content_log=True)
    with running(app) as url, httpx.Client(base_url=url, headers=BEARER) as client:
        client.post(CHAT, json=body("a prompt"))
    assert "a prompt" in caplog.text


def test_a_large_body_is_refused_before_it_is_read() -> None:
    limits = ServerLimits(body_bytes=10_000)
    with asking(app_of(server_pool({"a": "hi"}), limits=limits)) as client:
        announced = client.post(CHAT, json=body("x" * 20_000))
        assert announced.status_code == 413

        def chunks() -> Any:
            for _ in range(100):
                yield b" " * 1_000

        kind = {"Content-Type": "application/json"}
        assert client.post(CHAT, content=chunks(), headers=kind).status_code == 413


def test_a_prompt_of_100_kb_is_answered() -> None:
    pool = server_pool({"a": "hi", "c": lambda p: str(len(p) > 100_000)})
    with running(app_of(pool)) as url, httpx.Client(base_url=url, headers=BEARER) as client:
        answered = client.post(CHAT, json=body("word " * 20_000, model="a > synthesize(c)"))
    assert answered.json()["choices"][0]["message"]["content"] == "True"


def test_a_slow_body_is_given_up() -> None:
    limits = ServerLimits(body_seconds=0.3)
    with running(app_of(server_pool({"a": "hi"}), limits=limits)) as url:
        address = ("127.0.0.1", httpx.URL(url).port or 0)
        with socket.create_connection(address, timeout=10) as slow:
            head = (
                f"POST /v1/{CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
                "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
            )
            slow.sendall(head.encode())
            started = time.monotonic()
            assert b" 408 " in slow.recv(100)
            assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested at most 64"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested at most 64"),
        (b'{"model": "a", "messages": NaN}', "not JSON"),
        (b'{"model": "a", "n": 1' + b"0" * 10_000 + b"}", "not JSON"),
        (b'{"model": "a", "n": 1e999, "messages": [{"role": "user", "content": "x"}]}', "`n`"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"model": "a", "messages": [{"role": "user", "content": "\\ud800"}]}', "lone surrogate"),
        (b'{"model": "\\ud800"}', "lone surrogate"),
    ],
)
def test_a_bomb_of_json_is_refused(content: bytes, message: str) -> None:
    headers = {"Content-Type": "application/json"}
    with asking(app_of(server_pool({"a": "hi"}))) as client:
        refused = client.post(CHAT, content=content, headers=headers)
    assert refused.status_code == 400
    assert message in refused.json()["error"]["message"]


def test_a_bomb_of_headers_is_refused() -> None:
    pool = server_pool({"a": "hi"})
    headers = {f"X-{n}": "x" * 1_000 for n in range(200)}
    with asking(app_of(pool)) as client:
        # The server hangs up while they are still being sent, or says why if it comes to that.
        with suppress(httpx.TransportError):
            assert client.post(CHAT, json=body(), headers=headers).status_code in (400, 431)
        assert pool.calls.ledger.spending.made == 0
        assert client.post(CHAT, json=body()).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..%2f..%2fetc",
        "a/../a",
        "file:///etc/passwd",
        "a\x00",
        "a\n",
        "a" * 100_000,
        "moa",
        "a*1000000000 > vote",
        "a*000000000999999999 > vote",
        "a + " * 200 + "a > vote",
        "a > synthesize",
        "a > synthesize(z)",
        "{}",
        "a > vote(a; order=" + "a" * 500,
        "__class__",
        "\u202ea",
    ],
)
def test_a_tricky_name_is_no_model(name: str) -> None:
    pool = server_pool({"a": "hi"})
    with running(app_of(pool)) as url, httpx.Client(base_url=url, headers=BEARER) as client:
        refused = client.post(CHAT, json=body(model=name))
        assert refused.status_code in (400, 404)
        assert len(refused.text) < 2_000
        if name.isprintable() and len(name) < 1_000 and "/../" not in name:
            assert client.get(f"models/{name}").status_code in (400, 404)
    assert pool.calls.ledger.spending.made == 0


def test_an_architecture_may_not_ask_too_often() -> None:
    limits = ServerLimits(calls_per_answer=3)
    with asking(app_of(server_pool({"a": "hi"}), limits=limits)) as client:
        assert client.post(CHAT, json=body(model="a*3 > vote")).status_code == 200
        refused = client.post(CHAT, json=body(model="a*4 > vote"))
    assert (
        "makes 4 calls for an answer, but this server allows 3"
        in refused.json()["error"]["message"]
    )


def test_pages_of_other_sites_cannot_ask_a_server_without_keys() -> None:
    with running(app_of(server_pool({"a": "hi"}), keys={})) as url, httpx.Client() as client:
        asked = f"{url}/{CHAT}"
        content = json.dumps(body())
        # What a page may send without being asked: a form's content type, or its own host name.
        plain = {"Content-Type": "text/plain"}
        assert client.post(asked, content=content, headers=plain).status_code == 415
        refused = client.post(asked, json=body(), headers={"Host": "evil.example"})
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert (error["type"], set(error)) == (
            "invalid_request_error",
            {"message", "type", "param", "code"},
        )
        assert "The header `Host` must be 127.0.0.1, localhost or [::1]" in error["message"]
        assert client.get(f"{url}/models", headers={"Host": "[::1]:80"}).status_code == 200
        assert client.post(asked, json=body()).status_code == 200


def test_a_program_that_names_an_endpoint_is_refused(tmp_path: Path) -> None:
    pool = server_pool({"a": "hi", "c": "yes"})
    path = tmp_path / "p.json"
    MixtureOfAgents("question -> answer", "a > synthesize(c)", pool=pool).save(path)
    content = json.loads(path.read_text())
    content["agents"]["a"]["api_base"] = "http://evil.example"
    path.write_text(json.dumps(content))
    with pytest.raises(ArchitectureError, match="api_base"):
        MixtureOfAgents.load(path, pool=pool)
