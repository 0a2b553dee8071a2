"""Limits of the server: places, deadlines, clients that leave, and what may be spent a day."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from moa_dspy.agent import Agent
from moa_dspy.calls.calls import Calls
from moa_dspy.errors import PoolError
from moa_dspy.pool import Pool
from moa_dspy.prediction import NOT_AWAITED, Response
from moa_dspy.serve.answering import Metrics, ServedModel
from moa_dspy.serve.chat import ChatMixture, Proposals
from moa_dspy.serve.limits import BoundedCalls, DailySpending, Places, ServerLimits
from moa_dspy.testing import scripted_pool
from tests.serve.running import KEY, app_of, running, server_pool
from tests.servers.chat import ChatServer, Reply, serving

CHAT = "chat/completions"


def body(model: str = "a", text: str = "Hi", **rest: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **rest}


@contextmanager
def asking(app: Any) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with running(app) as url, httpx.Client(base_url=url, headers=headers, timeout=20) as client:
        yield client


def real_pool(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Pool:
    monkeypatch.setenv("TEST_KEY", "sk-test")
    agents = [
        Agent(
            name=name,
            model=f"openai/{name}",
            api_base=server.url,
            api_key_env="TEST_KEY",
            temperature=0.7,
            num_retries=0,
        )
        for name in "abc"
    ]
    return Pool(agents, calls=Calls(BoundedCalls()))


def soon(claim: Callable[[], bool]) -> bool:
    """Return whether a claim comes true within five seconds."""
    until = time.monotonic() + 5
    while not claim() and time.monotonic() < until:
        time.sleep(0.02)
    return claim()


def test_a_full_queue_refuses_and_says_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    limits = ServerLimits(concurrent=1, queued=1)
    with serving(Reply(wait=go_on)) as server, ThreadPoolExecutor() as threads:
        app = app_of(real_pool(server, monkeypatch), limits=limits)
        with asking(app) as client:
            first = threads.submit(client.post, CHAT, json=body(text="1"))
            server.await_request()
            second = threads.submit(client.post, CHAT, json=body(text="2"))
            places = app.state.served.places
            assert soon(lambda: places.n_waiting == 1)
            refused = client.post(CHAT, json=body(text="3"))
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["code"] == "server_busy"
            go_on.set()
            assert [future.result().status_code for future in (first, second)] == [200, 200]
            assert (places.n_answering, places.n_waiting) == (0, 0)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_that_takes_too_long_is_given_up(
    is_streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Reply(wait=threading.Event())) as server:
        app = app_of(real_pool(server, monkeypatch), limits=ServerLimits(deadline_seconds=0.4))
        with asking(app) as client:
            late = client.post(CHAT, json=body("a + b > synthesize(c)", stream=is_streamed))
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_leaves_stops_the_fan_out(
    is_streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    with serving(Reply(wait=go_on)) as server:
        app = app_of(real_pool(server, monkeypatch))
        with asking(app) as client:
            asked = body("a + b > synthesize(c)", stream=is_streamed)
            with pytest.raises(httpx.ReadTimeout):
                client.post(CHAT, json=asked, timeout=0.5)
            places = app.state.served.places
            assert soon(lambda: places.n_answering == 0)
            go_on.set()
            time.sleep(0.3)
            # The proposers were asked; the aggregator never was.
            assert sorted(request_body["model"] for request_body in server.bodies) == ["a", "b"]


def test_a_client_that_leaves_in_the_middle_of_a_stream_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = threading.Event()
    with serving(Reply("Paris it is", split=str.split, wait=go_on)) as server:
        app = app_of(real_pool(server, monkeypatch))
        with asking(app) as client:
            with client.stream("POST", CHAT, json=body(stream=True)) as stream:
                lines = stream.iter_lines()
                # Words come while the model still writes: it waits before the last one.
                assert any("Paris" in next(lines) for _ in range(6))
                assert app.state.served.places.n_answering == 1
            assert soon(lambda: app.state.served.places.n_answering == 0)
            go_on.set()


def test_a_stream_that_breaks_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Reply("Paris it is", split=str.split, fails_after=2)
    with serving(broken) as server, asking(app_of(real_pool(server, monkeypatch))) as client:
        chat = client.post(CHAT, json=body(stream=True)).text
        response = client.post("responses", json={"model": "a", "input": "x", "stream": True})
    assert '"code": "agents_failed"' in chat
    assert "[DONE]" not in chat
    assert '"type": "response.failed"' in response.text


def shown_metrics(client: httpx.Client) -> str:
    return client.get(str(client.base_url).replace("/v1/", "/metrics")).text


def test_a_stream_is_counted_when_it_ends_and_as_it_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "moa_dspy.serve")
    go_on = threading.Event()
    slow = Reply("Paris it is", split=str.split, wait=go_on)
    broken = Reply("Paris it is", split=str.split, fails_after=2)
    with (
        serving([slow, slow, broken]) as server,
        asking(app_of(real_pool(server, monkeypatch))) as client,
    ):

        def counted(status: int) -> bool:
            return f'moa_requests_total{{model="a",status="{status}"}} 1.0' in shown_metrics(client)

        with client.stream("POST", CHAT, json=body(stream=True)) as stream:
            lines = stream.iter_lines()
            assert "data" in next(lines)
            assert "moa_requests_total{" not in shown_metrics(client)
        assert soon(lambda: counted(499))
        with client.stream("POST", CHAT, json=body(stream=True)) as stream:
            lines = stream.iter_lines()
            assert "data" in next(lines)
            time.sleep(0.3)
            go_on.set()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert soon(lambda: counted(200))
        assert '"agents_failed"' in client.post(CHAT, json=body(stream=True)).text
        assert soon(lambda: counted(502))
    messages = [record.getMessage() for record in caplog.records]
    logged = [message.split() for message in messages if message.startswith("alice a ")]
    assert [line[2] for line in logged] == ["499", "200", "502"]
    # The time to the end, not to the headers: the model waited before its last word.
    assert float(logged[1][3]) >= 0.3


class BrokenEvent:
    @property
    def delta(self) -> Any:
        raise RuntimeError("sk-secret")


class BrokenMixture(ChatMixture):
    """Sends an event that no path can write."""

    async def astream(
        self, request: Any, *, rollout: int | None = None
    ) -> AsyncGenerator[Any, None]:
        yield Proposals(())
        yield BrokenEvent()


@pytest.mark.parametrize("path", [CHAT, "completions", "responses"])
def test_a_stream_ends_with_an_error_that_was_not_expected(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = server_pool({"a": "hi"})
    app = app_of(pool)
    app.state.served.catalogue.models["a"] = ServedModel("a", "agent", BrokenMixture.of("a", pool))
    with asking(app) as client:
        asked = {**body(stream=True), "prompt": "x", "input": "x"}
        kept = {CHAT: "messages", "completions": "prompt", "responses": "input"}[path]
        wanted = {key: asked[key] for key in ("model", "stream", kept)}
        text = client.post(path, json=wanted).text
        assert soon(lambda: 'status="500"} 1.0' in shown_metrics(client))
    last = json.loads(text.strip().rpartition("data: ")[2])
    error = last["response"]["error"] if path == "responses" else last["error"]
    assert (error["code"], error["message"]) == ("internal_error", "An internal error.")
    assert "sk-secret" not in text
    assert [r.exc_info is not None for r in caplog.records if "failed" in r.message] == [True]


def test_what_a_key_and_all_may_spend_a_day_is_a_promise() -> None:
    pool = server_pool({"a": "one two"}, usd_per_million_tokens={"a": 1_000.0}, temperature=0.5)
    with asking(app_of(pool, limits=ServerLimits(calls_per_key_per_day=2))) as client:
        codes = [client.post(CHAT, json=body(text=str(n))).status_code for n in range(3)]
        refused = client.post(CHAT, json=body(text="4"))
    assert codes == [200, 200, 429]
    assert refused.json()["error"]["type"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"
    assert pool.calls.ledger.spending.made == 2


def test_money_is_refused_before_it_is_spent() -> None:
    # A reply may be 1,024 tokens, at 1,000 usd per million: the next one may cost over 1 usd.
    pool = server_pool({"a": "one two"}, usd_per_million_tokens={"a": 1_000.0})
    with asking(app_of(pool, limits=ServerLimits(usd_per_day=1.0))) as client:
        refused = client.post(CHAT, json=body())
        assert refused.status_code == 429
        # Nothing is spent yet, so no limit is reached.
        message = refused.json()["error"]["message"]
        assert "more than is left of today's spending limit (1 usd for all keys)" in message
        assert "reached" not in message
        assert client.post(CHAT, json=body(max_tokens=10)).status_code == 200
    assert pool.calls.ledger.spending.made == 1


def test_a_limit_of_money_needs_every_price() -> None:
    lms = {"a": scripted_pool({"a": "x"}).lm("a")}
    pool = Pool([Agent(name="a", model="x/a")], lms=lms)
    with pytest.raises(PoolError, match="the price of a is unknown"):
        DailySpending(ServerLimits(usd_per_day=1.0), pool)
    with pytest.raises(PoolError, match="`concurrent` must be positive"):
        ServerLimits(concurrent=0)


def test_a_fall_to_one_answer_is_in_a_header_and_in_the_metrics() -> None:
    pool = server_pool({"a": "yes", "b": Exception("down"), "c": "yes"})
    with asking(app_of(pool)) as client:
        for is_streamed in (False, True):
            asked = body("a + b > synthesize(c)", stream=is_streamed)
            answered = client.post(CHAT, json=asked)
            assert answered.headers["x-moa-degraded"] == "1 of 2 agents answered"
        two = client.post(CHAT, json=body("a + b + c > synthesize(c)"))
        assert two.headers["x-moa-failures"] == "1 of 3"
        shown = shown_metrics(client)
    assert 'moa_degraded_total{model="architecture"} 2.0' in shown
    assert 'moa_agent_failures_total{agent="b"} 3.0' in shown
    assert 'moa_requests_total{model="architecture",status="200"} 3.0' in shown


def test_agents_of_an_answer_that_failed_are_counted_too() -> None:
    pool = server_pool({"a": "yes", "b": Exception("down")})
    with asking(app_of(pool)) as client:
        for model in ("b", "a > synthesize(b)"):
            assert client.post(CHAT, json=body(model)).status_code == 502
            assert "Layer" not in client.post(CHAT, json=body(model, stream=True)).text
        shown = shown_metrics(client)
    assert 'moa_agent_failures_total{agent="b"} 4.0' in shown
    assert 'moa_agent_calls_total{agent="a"} 2.0' in shown
    assert 'moa_agent_calls_total{agent="b"} 4.0' in shown


def test_an_answer_that_a_vote_did_not_need_is_no_failure() -> None:
    late = Response("c", failure=NOT_AWAITED)
    layer = (Response("a", text="yes"), Response("b", text="yes"), late)
    assert Proposals((layer,)).n_asked == Proposals((layer,)).n_answered == 2
    assert not Proposals(((layer[0], late),)).fell_to_one
    metrics = Metrics(Places(ServerLimits()))
    metrics.count_agents(layer)
    assert metrics.registry.get_sample_value("moa_agent_failures_total", {"agent": "c"}) is None
    assert metrics.registry.get_sample_value("moa_agent_calls_total", {"agent": "c"}) == 0


def test_equal_requests_of_a_sampling_agent_are_answered_anew() -> None:
    counter = iter(range(100))
    pool = server_pool({"a": lambda _: f"reply {next(counter)}"}, temperature=0.7)
    with asking(app_of(pool)) as client:
        replies = [client.post(CHAT, json=body(n=2)).json()["choices"] for _ in range(2)]
    assert len({choice["message"]["content"] for choices in replies for choice in choices}) == 4
