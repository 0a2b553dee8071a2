from __future__ import annotations

import asyncio
import json
import logging
import os
import traceback
from collections.abc import Iterator
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
from tests.servers.chat import ChatServer, Reply, serving

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read when LiteLLM is imported: no download

KEY = "-".join(["sk", "planted", "0123456789"])
VARIABLE = "MOA_TEST_ENDPOINT_KEY"


class Flaky:
    """Answers "Paris", after as many errors as there are."""

    def __init__(self) -> None:
        self.errors: list[int] = []

    def __call__(self, body: dict[str, Any]) -> Reply:
        if not self.errors:
            return Reply()
        # Some servers quote the request's header in what they say about it.
        text = "cannot serve AUTHORIZATION"
        error = json.dumps({"error": {"message": text, "type": text}}).encode()
        return Reply(status=self.errors.pop(0), body=error, retry_after="0")


@pytest.fixture
def flaky() -> Flaky:
    return Flaky()


@pytest.fixture
def server(flaky: Flaky) -> Iterator[ChatServer]:
    with serving(flaky) as running:
        yield running


def keys_of(server: ChatServer) -> list[str | None]:
    return [headers.get("Authorization") for headers in server.headers]


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
    assert (server.paths, body["model"]) == (["/v1/chat/completions"], "x")
    assert (body[limit], body["temperature"]) == (33, 0.7)
    assert set(body) & {"max_tokens", "max_completion_tokens"} == {limit}
    assert body["messages"] == [{"role": "user", "content": "France?"}]
    assert keys_of(server) == [f"Bearer {KEY}"]
    assert (pool.calls.ledger.spending.made, pool.calls.ledger.spending.tokens) == (1, 18)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("client", ["auto", "litellm"])
def test_an_overloaded_server_is_asked_again_and_both_requests_count(
    server: ChatServer, flaky: Flaky, client: str, is_async: bool
) -> None:
    flaky.errors = [500]
    pool = pool_of(server, client=client)
    assert ask(pool.lm("a"), is_async=is_async) == ["Paris"]
    assert len(server.bodies) == pool.calls.ledger.spending.made == 2


@pytest.mark.parametrize("client", ["auto", "litellm"])
def test_two_servers_of_one_model_name_never_share_an_answer(
    server: ChatServer, client: str, tmp_path: Path
) -> None:
    calls = Calls(CallStore(tmp_path / "calls.sqlite"))
    with serving(Reply("Rome")) as other:
        for _ in range(2):
            for endpoint, expected in ((server, "Paris"), (other, "Rome")):
                assert ask(
                    pool_of(endpoint, client=client, calls=calls).lm("a"), is_async=False
                ) == [expected]
        assert (len(server.bodies), len(other.bodies), calls.ledger.spending.made) == (1, 1, 2)


def test_a_server_without_a_key_is_asked_without_one(server: ChatServer) -> None:
    pool = Pool([Agent(name="a", model="hosted_vllm/x", api_base=server.url)])
    assert ask(pool.lm("a"), is_async=False) == ["Paris"]
    assert KEY not in str(keys_of(server))


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("client", ["auto", "litellm"])
@pytest.mark.parametrize("status", [401, 400])
def test_a_key_that_the_server_quotes_is_in_no_error_file_repr_or_log(
    server: ChatServer,
    flaky: Flaky,
    client: str,
    is_async: bool,
    status: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    flaky.errors = [status] * 9
    store = CallStore(tmp_path / "calls.sqlite")
    pool = pool_of(server, client=client, calls=Calls(store), name="b")
    with pytest.raises(dspy.LMError, match=r"cannot serve (Bearer \*\*\*|REDACTED)") as caught:
        ask(pool.lm("b"), is_async=is_async)
    assert keys_of(server)[0] == f"Bearer {KEY}", "the key was sent"
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
