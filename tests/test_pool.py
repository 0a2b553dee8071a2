from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
import pytest

from moa_dspy.agent import Agent, available, read_agents
from moa_dspy.calls import Calls
from moa_dspy.errors import PoolError
from moa_dspy.local import CATALOGUE
from moa_dspy.pool import Pool, make_lm
from tests.servers.chat import Reply, serving

LOCAL: dict[str, Any] = {"name": "a", "model": "local/x", "weights": "x.gguf", "sha256": "0" * 64}
REMOTE: dict[str, Any] = {"name": "a", "model": "openai/x"}


FREE = {"usd_per_million_prompt_tokens": 0.0, "usd_per_million_completion_tokens": 0.0}


def agent(**values: Any) -> Agent:
    return Agent(**{**REMOTE, **values})


def pool_file(folder: Path, text: str) -> Path:
    path = folder / "pool.toml"
    path.write_text(text, encoding="utf-8")
    return path


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def test_a_pool_file_lists_agents_with_settings_and_prices(tmp_path: Path) -> None:
    path = pool_file(
        tmp_path,
        """
        [[agents]]
        name = "cold"
        model = "openai/gpt"
        temperature = 0
        max_tokens = 64
        usd_per_million_prompt_tokens = 0.5
        usd_per_million_completion_tokens = 0.0
        [[agents]]
        name = "warm"
        model = "hosted_vllm/x"
        """,
    )
    pool = Pool.read(path)
    assert list(pool) == ["cold", "warm"]
    assert (len(pool), "cold" in pool, "hot" in pool) == (2, True, False)
    assert pool["cold"].usd_per_million_prompt_tokens == 0.5
    lm = pool.lm("cold")
    assert (lm.kwargs["temperature"], lm.kwargs["max_tokens"], lm.cache) == (0, 64, False)
    assert pool.lm("cold") is lm is copy.deepcopy(pool).lm("cold")


def test_a_study_file_is_a_pool_of_its_own_agents_or_of_its_pool(tmp_path: Path) -> None:
    study = "task = {}\ndata = {}\nbudget = {usd = 1}\n"
    agent = "[[agents]]\nname = 'a'\nmodel = 'openai/x'\ntemperature = 'none'\n"
    assert list(Pool.read(pool_file(tmp_path, study + agent))) == ["a"]
    (tmp_path / "pools").mkdir()
    pool_file(tmp_path / "pools", agent)
    other = tmp_path / "study.toml"
    other.write_text("pool = 'pools/pool.toml'\n" + study, "utf-8")
    assert Pool.read(other)["a"].temperature is None
    # A pool that is the study itself has no agents, and is no circle.
    other.write_text("pool = 'study.toml'\n" + study, "utf-8")
    with pytest.raises(PoolError, match=r"study\.toml: unknown key"):
        Pool.read(other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "A pool must hold at least one agent, but got none"),
        ("agent = []", r"pool\.toml: unknown key 'agent'; the only known one is `agents`"),
        ("agents = 3", r"pool\.toml: agents: input should be a valid list, but got 3"),
        ("[[agents]]\nname = 'a'", r"agents\[0\]\.model: this key is missing"),
        (
            "[[agents]]\nname = 'a'\nmodel = 'o/x'\ntemprature = 1",
            r"agents\[0\]\.temprature: unknown key; .* Did you mean 'temperature'\?",
        ),
        (
            "[[agents]]\nname = 'a'\nmodel = 'o/x'\ntemperature = 'hot'",
            r"agents\[0\]\.temperature: input should be a valid number.*but got a text of 3 c",
        ),
        (
            "[[agents]]\nname = 'a'\nmodel = 'o/x'\ntemperature = 3",
            r"agents\[0\]: Agent 'a': `temperature` cannot be 3\.0",
        ),
        (
            2 * "[[agents]]\nname = 'a'\nmodel = 'o/x'\n",
            "Agent names must differ, but a occurs twice",
        ),
    ],
)
def test_a_bad_pool_file_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PoolError, match=message):
        Pool.read(pool_file(tmp_path, text))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("name", bad) for bad in ("", "a b", "a+b", "a\u2003b")),  # an em space is one too
        ("model", "gpt"),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("max_tokens", 0),
        ("n_slots", 0),
        ("n_threads", 0),
        ("client", "httpx"),
        ("num_retries", -1),
        ("timeout_seconds", 0.0),
        ("timeout_seconds", float("inf")),
        ("max_concurrent", 0),
        ("usd_per_million_prompt_tokens", -1.0),
        ("usd_per_million_completion_tokens", float("nan")),
    ],
)
def test_a_value_out_of_range_is_refused(field: str, value: object) -> None:
    with pytest.raises(PoolError, match=rf"Agent .*: `{field}` cannot be "):
        agent(**{field: value})


@pytest.mark.parametrize(
    ("given", "missing"),
    [("prompt", "completion"), ("completion", "prompt"), ("cached", "prompt")],
)
def test_a_price_is_whole_or_unknown(given: str, missing: str) -> None:
    names = [f"usd_per_million_{kind}_tokens" for kind in (given, missing)]
    message = f"Agent 'a': `{names[0]}` is given, but `{names[1]}` is not: give both prices"
    with pytest.raises(PoolError, match=message):
        agent(**{names[0]: 1.0})
    with pytest.raises(PoolError, match=message):
        agent(**{names[0]: 0.0})


def test_weights_need_a_checksum_and_a_local_name_weights_or_the_catalogue() -> None:
    with pytest.raises(PoolError, match="'a': `sha256` must be given with `weights`"):
        agent(model="local/x", weights="x.gguf")
    with pytest.raises(PoolError, match="'local/x' is not in the catalogue"):
        agent(model="local/x")
    assert all(agent(model=f"local/{name}").is_local for name in CATALOGUE)


def test_weights_are_relative_to_the_file_unless_a_variable_leads(tmp_path: Path) -> None:
    table = "[[agents]]\nname='{0}'\nmodel='local/x'\nsha256='00'\nweights='{1}'\n"
    rows = [("a", "w/x.gguf"), ("b", "/w/x.gguf"), ("c", "${MOA_TEST_UNSET}/x.gguf")]
    path = pool_file(tmp_path, "".join(table.format(*row) for row in rows))
    found = [a.weights for a in read_agents(path)]
    assert found == [str(tmp_path / "w/x.gguf"), "/w/x.gguf", "${MOA_TEST_UNSET}/x.gguf"]


def test_a_missing_variable_is_an_error_at_the_first_call_only() -> None:
    for values in (
        {**REMOTE, "api_key_env": "MOA_TEST_UNSET"},
        {**LOCAL, "weights": "${MOA_TEST_UNSET}/x.gguf"},
    ):
        pool = Pool([Agent(**values)])
        lm = pool.lm("a")
        with pytest.raises(dspy.LMError, match="'a': the environment has no variable MOA_TEST_UN"):
            lm("hello")


def test_an_optional_agent_is_left_out_with_a_note_where_a_variable_is_missing() -> None:
    wanted = {"api_key_env": "MOA_TEST_SOMETIMES", "optional": True}
    agents = [agent(), agent(name="b", **wanted)]
    kept, notes = available(agents)
    assert [a.name for a in kept] == ["a"]
    assert notes == ["Agent 'b' is left out, because MOA_TEST_SOMETIMES is not set."]
    with variable("MOA_TEST_SOMETIMES", "set"):
        assert available(agents) == (agents, [])


def test_identity_is_what_answers_and_not_how_it_samples_or_what_it_costs() -> None:
    first = agent(api_base="http://one/v1").identity
    changes = {"name": "b", "temperature": 0.1, "max_tokens": 5, "api_key_env": "KEY"}
    same = agent(api_base="http://one/v1", **FREE, **changes)
    assert same.identity == first == "openai/x@http://one/v1"
    others = [agent(api_base="http://two/v1"), agent(), agent(model="openai/y")]
    assert first not in {other.identity for other in others}


def test_identity_of_a_local_model_is_its_weights_not_their_place() -> None:
    first = Agent(**LOCAL)
    assert Agent(**{**LOCAL, "weights": "/else/where.gguf"}).identity == first.identity
    assert Agent(**{**LOCAL, "sha256": "1" * 64}).identity != first.identity
    name, model = next(iter(CATALOGUE.items()))
    assert model.sha256 in agent(model=f"local/{name}").identity


def test_a_given_lm_keeps_its_settings_in_the_pool() -> None:
    pool = Pool.from_lms({"a": dspy.LM("openai/x", temperature=0.3, max_tokens=7)})
    assert (pool["a"].model, pool["a"].temperature, pool["a"].max_tokens) == ("openai/x", 0.3, 7)


def test_an_unknown_agent_is_an_error_that_lists_the_known() -> None:
    pool = Pool([agent(), agent(name="b")])
    for look in (pool.__getitem__, pool.lm):
        with pytest.raises(PoolError, match="Unknown agent 'c'; the pool has a, b"):
            look("c")


def test_no_repr_and_no_error_shows_a_key() -> None:
    key = "-".join(["sk", "planted", "123"])
    with variable("MOA_TEST_KEY", key):
        pool = Pool([agent(api_key_env="MOA_TEST_KEY")])
        lm = pool.lm("a")
        shown = [pool, vars(pool), pool["a"], lm, vars(lm), vars(lm._engine_spec)]
    assert key not in repr(shown)


def test_a_key_or_password_in_the_wrong_field_is_refused_unseen() -> None:
    # `api_key_env` is printed when it is not set, and `api_base` is part of what is stored.
    for field, value in (
        ("api_key_env", "sk-planted-123"),
        ("api_base", "https://user:sk-planted-123@host/v1"),
    ):
        with pytest.raises(PoolError, match=f"`{field}` must") as caught:
            agent(**{field: value})
        assert "planted" not in str(caught.value)
    assert agent(api_base="http://host/v1/@me").api_base == "http://host/v1/@me"


@pytest.mark.parametrize("field", ["model", "client", "api_base"])
def test_no_text_in_the_wrong_place_is_shown(field: str) -> None:
    # A key that stands where another text should.
    with pytest.raises(PoolError, match=rf"'a': `{field}` .*a text of 9 char") as caught:
        agent(**{field: "sk-or-123"})
    assert "sk-or-123" not in str(caught.value)
    with pytest.raises(PoolError, match="`name` cannot be a text of 40 characters; it must be a"):
        agent(name="sk " + "x" * 37)
    with pytest.raises(PoolError, match="Agent 'a b': `name` cannot be 'a b'; it must be a word"):
        agent(name="a b")


def test_every_key_of_the_environment_is_masked_in_failures() -> None:
    with variable("SOMEVENDOR_API_KEY", "sk-planted-123456"), variable("MY_OWN", "own"):
        lm = make_lm(agent(model="somevendor/m", api_key_env="MY_OWN"), Calls())
    # The vendor's client would find its key by itself; the agent's own counts however short it is.
    assert lm.engine.caller.without_secrets("sk-planted-123456, own") == "***, ***"


def test_a_reasoning_model_is_sent_no_temperature_and_its_own_name_for_the_limit() -> None:
    for model in ("openai/gpt-5-mini", "openai/gpt-5.1", "openai/o3", "openrouter/openai/o4-mini"):
        assert agent(model=model).temperature is None
    assert agent(model="openai/gpt-4o").temperature == 0.7
    assert agent(model="openai/gpt-5-mini", temperature=1.0).temperature == 1.0
    with serving(Reply("Paris")) as server:
        settings = {"top_p": 0.5, "reasoning_effort": "low", "extra_body": {"top_k": 3}}
        headers = {"X-Team": "blue", "X-Api-Key": "${MOA_TEST_HEADER}"}
        asked = agent(model="openai/gpt-5-mini", api_base=server.url, headers=headers, **settings)
        with variable("MOA_TEST_HEADER", "planted-key"):
            assert Pool([asked]).lm("a")("q") == ["Paris"]
        body = server.bodies[0]
        assert "temperature" not in body
        assert "max_tokens" not in body
        assert body["max_completion_tokens"] == 1024
        assert (body["top_p"], body["reasoning_effort"], body["top_k"]) == (0.5, "low", 3)
        assert server.headers[0]["X-Team"] == "blue"
        assert server.headers[0]["X-Api-Key"] == "planted-key"
    assert "planted-key" not in repr(asked) + asked.identity


def test_a_temperature_of_none_in_a_pool_file_sends_none(tmp_path: Path) -> None:
    text = "[[agents]]\nname='a'\nmodel='openai/x'\ntemperature='none'\n"
    assert read_agents(pool_file(tmp_path, text))[0].temperature is None


def test_a_credential_in_a_header_must_be_a_variable() -> None:
    with pytest.raises(PoolError, match="'a': `headers` must not hold the credential") as caught:
        agent(headers={"Authorization": "Bearer planted"})
    assert "planted" not in str(caught.value)
    assert agent(headers={"X-Team": "a"}).identity != agent(headers={"X-Team": "b"}).identity
    keyed = agent(headers={"Authorization": "Bearer ${MOA_TEST_HEADER}"})
    assert keyed.identity == agent().identity
    assert keyed.missing_variables == ("MOA_TEST_HEADER",)


@pytest.mark.parametrize("name", ["OPENAI_BASE_URL", "OPENAI_API_BASE"])
def test_a_gateway_of_the_environment_is_asked_and_named(name: str) -> None:
    assert agent().identity == "openai/x@vendor"
    with serving(Reply("Paris")) as server, variable(name, server.url):
        assert agent().identity == f"openai/x@{server.url}"
        assert agent(api_base="http://one/v1").identity == "openai/x@http://one/v1"
        with variable("OPENAI_API_KEY", "planted-key"):
            assert Pool([agent()]).lm("a")("q") == ["Paris"]
        assert server.headers[0]["Authorization"] == "Bearer planted-key"


@pytest.mark.parametrize("model", ["ollama/m", "ollama_chat/m"])
@pytest.mark.parametrize("end", ["", "/", "/v1"])
def test_ollamas_root_address_will_do(model: str, end: str) -> None:
    with serving(Reply("Paris")) as server:
        base = server.url.removesuffix("/v1") + end
        assert Pool([agent(model=model, api_base=base)]).lm("a")("q") == ["Paris"]


def test_a_price_is_the_pools_or_nothing_or_listed_or_unknown() -> None:
    local = next(iter(CATALOGUE))
    given = agent(name="given", **{**FREE, "usd_per_million_prompt_tokens": 2.0})
    agents = [
        given,
        agent(name="free", model=f"local/{local}"),
        agent(name="listed", model="openai/gpt-4o"),
        agent(name="served", model="openai/gpt-4o", api_base="http://one/v1"),
        agent(name="near", model="openai/gpt-4o-of-ours"),
    ]
    pool = Pool(agents)
    sources = {name: getattr(pool.price(name), "source", None) for name in pool}
    assert sources == {
        "given": "pool",
        "free": "local",
        "listed": "litellm",
        "served": None,
        "near": None,
    }
    assert pool.unpriced == ("served", "near")
    # 3 tokens at 2 usd, 5 at 0, per million
    assert given.price is not None
    assert given.price.usd(3, 5) == pytest.approx(6e-6)
