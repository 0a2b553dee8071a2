from __future__ import annotations

import asyncio
import os
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.calls import Calls, Recording, call_scope
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from tests.servers.chat import ChatServer, Reply, serving

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read when LiteLLM is imported: no download

KEY = "-".join(["sk", "planted", "0123456789"])


def lm_of(server: ChatServer, model: str = "openai/x", **settings: Any) -> dspy.LM:
    return dspy.LM(model, **{"api_base": server.url, "api_key": KEY, "cache": False, **settings})


def ask(lm: Any, prompt: str = "q", *, is_async: bool = False, **config: Any) -> list[Any]:
    return list(asyncio.run(lm.acall(prompt, **config)) if is_async else lm(prompt, **config))


def sent(server: ChatServer) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the last request: its body, and of its headers what a caller may set."""
    headers = {k.lower(): v for k, v in server.headers[-1].items()}
    return server.bodies[-1], {k: v for k, v in headers.items() if k in ("authorization", "x-who")}


def stored(pool: Pool) -> list[Any]:
    return list(pool.calls.store._calls.values())  # type: ignore[attr-defined]  # the memory


@pytest.mark.slow
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("engine", ["auto", "lm15", "litellm"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.3, "max_tokens": 7, "stop": ["END"], "seed": 3},
        {"top_p": 0.9, "frequency_penalty": 0.1, "logprobs": True, "top_logprobs": 2},
        {"model": "hosted_vllm/x", "max_tokens": 9, "temperature": 0},
        {"model": "openai/gpt-5-mini", "max_tokens": 20_000},
        {"max_completion_tokens": 9},
        {"response_format": {"type": "json_object"}},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_an_adopted_lm_sends_what_the_lm_itself_sends(
    settings: dict[str, Any], engine: str, is_async: bool
) -> None:
    with serving(Reply()) as server:
        lm = lm_of(server, engine=engine, **settings)
        pool = Pool.from_lms({"a": lm}, strict=True)
        pool_lm = pool.lm("a")
        assert pool_lm is not lm
        configs: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 5}]
        for config in configs:
            assert ask(lm, is_async=is_async, **config)[0] is not None
            plain = sent(server)
            assert ask(pool_lm, is_async=is_async, **config)[0] is not None
            assert sent(server) == plain
            assert plain[1]["authorization"] == f"Bearer {KEY}"
        assert pool.calls.ledger.spending.made == 2


def test_headers_of_an_lm_are_sent_and_are_part_of_who_answers_but_for_keys() -> None:
    def identity(pool: Pool) -> str:
        lm: Any = pool.lm("a")
        return str(lm.engine.caller.identity)

    with serving(Reply()) as server:
        first = Pool.from_lms({"a": lm_of(server, extra_headers={"X-Who": "one"})})
        assert ask(first.lm("a")) == ["Paris"]
        assert sent(server)[1]["x-who"] == "one"
        others = [
            Pool.from_lms({"a": lm_of(server, **more)})
            for more in (
                {},
                {"extra_headers": {"X-Who": "two"}},
                {"extra_headers": {"X-Who": "one"}, "organization": "o"},
            )
        ]
        assert len({identity(pool) for pool in (first, *others)}) == 4
        secret: dict[str, Any] = {"extra_headers": {"X-Who": "one", "X-Auth": f"Token {KEY}"}}
        same = Pool.from_lms({"a": lm_of(server, **secret)})
        assert identity(same) == identity(first)
        lm: Any = same.lm("a")
        assert lm.engine.caller.without_secrets(f"quoted {KEY}") == "quoted ***"


@pytest.mark.parametrize("is_async", [False, True])
def test_calls_of_an_adopted_lm_are_stored_counted_priced_and_replayed(is_async: bool) -> None:
    with serving(Reply()) as server:
        lm = lm_of(server, temperature=0.5, max_tokens=9)
        prices = {"a": (1e6, 2e6)}
        pool = Pool.from_lms({"a": lm}, calls=Calls(), usd_per_million_tokens=prices)
        with call_scope() as scope:
            assert ask(pool.lm("a"), is_async=is_async) == ["Paris"]
            assert ask(pool.lm("a"), is_async=not is_async) == ["Paris"]
        assert len(server.bodies) == 1
        (call,) = stored(pool)
        # 11 prompt tokens at 1 and 7 completion tokens at 2 USD.
        assert (call.agent, call.identity, call.usd) == ("a", f"openai/x@{server.url}", 25.0)
        assert [facts.is_reused for facts in scope.log] == [False, True]
        assert (pool["a"].temperature, pool["a"].max_tokens) == (0.5, 9)

        recording = Recording([call])
        replay = Pool.from_lms({"b": lm}, calls=Calls(recording=recording, replay_only=True))
        assert ask(replay.lm("b"), is_async=is_async) == ["Paris"]
        # An agent of the same endpoint that is declared shares the answer.
        values: dict[str, Any] = {"model": "openai/x", "temperature": 0.5, "max_tokens": 9}
        declared = Agent(name="c", api_base=server.url, **values)
        calls = Calls(recording=recording, replay_only=True)
        assert ask(Pool([declared], calls=calls).lm("c"), is_async=is_async) == ["Paris"]
        assert len(server.bodies) == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_an_lm_that_does_not_cache_is_asked_anew_unless_calls_are_given(is_async: bool) -> None:
    with serving(Reply()) as server:
        # 2 for the one that does not cache, 1 for the one that does, 1 for calls that are kept.
        for cache, calls, n_asked in ((False, None, 2), (True, None, 3), (False, Calls(), 4)):
            pool = Pool.from_lms({"a": lm_of(server, cache=cache)}, calls=calls)
            for _ in range(2):
                assert ask(pool.lm("a"), is_async=is_async) == ["Paris"]
            assert len(server.bodies) == n_asked
            assert pool.calls.ledger.spending.made == (1 if cache or calls else 2)


def test_the_users_own_lm_stays_as_it_was_and_its_history_shows_the_calls() -> None:
    with serving(Reply()) as server:
        lm = lm_of(server, cache=True, num_retries=5, timeout=30)
        before = {**vars(lm), "kwargs": dict(lm.kwargs), "callbacks": list(lm.callbacks)}
        pool = Pool.from_lms({"a": lm})
        assert {**vars(lm)} == before
        assert ask(pool.lm("a")) == ["Paris"]
        assert [entry["outputs"] for entry in lm.history] == [["Paris"]]
        assert (pool["a"].num_retries, pool["a"].timeout_seconds) == (5, 30)
        assert pool.lm("a").cache is False
        assert KEY not in repr((vars(pool), vars(pool.lm("a")), stored(pool), pool["a"]))


def test_a_busy_server_is_tried_again_as_often_as_the_lm_says() -> None:
    with serving(Reply(status=503)) as server:
        pool = Pool.from_lms({"a": lm_of(server, num_retries=0)})
        with pytest.raises(dspy.LMServerError):
            ask(pool.lm("a"))
        assert len(server.bodies) == 1


def test_samples_of_an_adopted_lm_are_independent_though_dspys_cache_is_on() -> None:
    with serving(Reply()) as server:
        lm = lm_of(server, cache=True, temperature=0.7)
        program = MixtureOfAgents(
            "question -> answer", layers=[[lm, lm, lm]], aggregator=lm, adapter=PlainChat()
        )
        for _ in range(2):
            assert program(question="q").answer == "Paris"
        assert len(server.bodies) == 4


def test_an_adapter_asks_an_adopted_lm_for_what_the_model_can_do() -> None:
    with serving(Reply('{"answer": "Paris"}')) as server:
        lm = lm_of(server, "openai/gpt-4o-mini")
        predict = dspy.Predict("question -> answer")
        bodies = []
        for asked_lm in (lm, Pool.from_lms({"a": lm}).lm("a")):
            with dspy.context(lm=asked_lm, adapter=dspy.JSONAdapter()):
                assert predict(question="q").answer == "Paris"
            bodies.append(server.bodies[-1])
        assert bodies[0] == bodies[1]
        assert bodies[0]["response_format"]["type"] == "json_schema"


def test_a_gateway_that_the_environment_names_is_part_of_who_answers() -> None:
    with serving(Reply()) as server:
        os.environ["OPENAI_BASE_URL"] = server.url
        try:
            pool = Pool.from_lms({"a": dspy.LM("openai/x", api_key=KEY)})
        finally:
            del os.environ["OPENAI_BASE_URL"]
        lm: Any = pool.lm("a")
        assert lm.engine.caller.identity == f"openai/x@{server.url}"
