"""Every agent of the page of providers answers, from a server that speaks its protocol."""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from moa_dspy.agent import Agent
from moa_dspy.pool import Pool
from tests.docs.blocks import blocks_of

PAGE = "docs/providers.md"
AGENTS = [
    Agent(**table)
    for block in blocks_of(PAGE)
    if block.language == "toml"
    for table in tomllib.loads(block.text)["agents"]
]
GATEWAYS = {
    "anthropic": "ANTHROPIC_API_BASE",
    "gemini": "GEMINI_API_BASE",
    "openai": "OPENAI_BASE_URL",
    "openrouter": "OPENROUTER_API_BASE",
}
DIALECTS = {
    "openai": {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Paris"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    },
    "anthropic": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Paris"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 2},
    },
    "gemini": {
        "candidates": [
            {
                "content": {"role": "model", "parts": [{"text": "Paris"}]},
                "finishReason": "STOP",
                "index": 0,
            }
        ],
        "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 7},
        "modelVersion": "m",
    },
}
"""The shapes of an answer, as the providers document them."""


class Speaks(BaseHTTPRequestHandler):
    """Answers Paris in the protocol that the path belongs to."""

    asked: list[tuple[str, Message, dict[str, Any]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, self.headers, body))
        ends = {"chat/completions": "openai", "messages": "anthropic"}
        path = self.path.partition("?")[0]
        dialect = next((name for end, name in ends.items() if path.endswith(end)), "gemini")
        payload = json.dumps(DIALECTS[dialect]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any]]]:
    asked: list[Any] = []
    handler = type("Handler", (Speaks,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    "agent", [a for a in AGENTS if not a.is_local], ids=lambda agent: str(agent.name)
)
def test_an_agent_of_the_page_answers(
    agent: Agent, server: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    vendor = agent.model.partition("/")[0]
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    if agent.api_key_env is not None:
        monkeypatch.setenv(agent.api_key_env, "a-key-of-the-test")
    if agent.api_base is None:
        monkeypatch.setenv(GATEWAYS[vendor], f"{url}/v1")
    else:
        agent = replace(agent, api_base=f"{url}/v1")
    pool = Pool([agent])
    reply = pool.lm(agent.name)("What is the capital of France?")
    assert "Paris" in str(reply)
    path, headers, body = asked[0]
    assert len(asked) == 1
    sent = json.dumps([path, headers.items()])
    assert "a-key-of-the-test" in sent or agent.api_key_env is None
    expected = {"anthropic": "messages", "gemini": "generateContent"}
    assert expected.get(vendor, "chat/completions") in path
    for key, value in agent.extra_body.items():
        assert body[key] == value
    for header, value in agent.headers.items():
        assert headers[header] == value
    assert pool.calls.ledger.spending.tokens == 7


def test_every_provider_of_the_list_has_a_section() -> None:
    models = " ".join(agent.model for agent in AGENTS)
    assert all(f"{vendor}/" in models for vendor in (*GATEWAYS, "local"))
    assert len(AGENTS) >= 10


def test_prices_are_known_where_the_page_says_so() -> None:
    sources = {agent.name: agent.price and agent.price.source for agent in AGENTS}
    assert {sources[name] for name in ("mini", "thinker", "haiku", "flash")} == {"litellm"}
    assert sources["smollm2"] == sources["own"] == "local"
    assert sources["gemma"] == sources["qwen"] == sources["llama"] == "pool"
