"""Prompt tokens that a vendor read from its cache cost what the vendor asks for these."""

from __future__ import annotations

import os
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.calls.call import token_counts
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.vendors import listed_price
from tests.calls.test_odd_replies import BOTH_WAYS, asked
from tests.servers.chat import ChatServer, Reply, serving

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read when LiteLLM is imported: no download

OPENAI = {
    "prompt_tokens": 100,
    "completion_tokens": 10,
    "total_tokens": 110,
    "prompt_tokens_details": {"cached_tokens": 80},
}
# Anthropic counts what its cache held, and what it keeps, apart from the rest.
ANTHROPIC = {
    "prompt_tokens": 15,
    "completion_tokens": 10,
    "cache_read_input_tokens": 80,
    "cache_creation_input_tokens": 5,
}


def mixture_of(server: ChatServer, model: str, client: str, **prices: Any) -> MixtureOfAgents:
    path = "" if model.startswith("anthropic/") else "/v1"
    agent = Agent(
        name="a",
        model=model,
        api_base=server.root + path,
        api_key_env="CACHED_PRICES_KEY",
        client=client,
        num_retries=0,
        usd_per_million_prompt_tokens=1.0,
        usd_per_million_completion_tokens=2.0,
        **prices,
    )
    return MixtureOfAgents("question -> answer", "a", pool=Pool([agent]), adapter=PlainChat())


@BOTH_WAYS
@pytest.mark.parametrize(
    ("client", "model", "usage"),
    [
        ("auto", "openai/x", OPENAI),
        ("litellm", "openai/x", OPENAI),
        ("litellm", "anthropic/x", ANTHROPIC),
    ],
)
@pytest.mark.parametrize(
    ("prices", "usd"),
    [
        # 20 tokens at 1, 80 at 0.1, 10 at 2; without a price of its own all 100 at 1.
        ({"usd_per_million_cached_tokens": 0.1}, 48e-6),
        ({"usd_per_million_cached_tokens": 0.0}, 40e-6),
        ({}, 120e-6),
    ],
)
def test_cached_tokens_have_their_own_price(
    monkeypatch: pytest.MonkeyPatch,
    client: str,
    model: str,
    usage: dict[str, Any],
    prices: dict[str, float],
    usd: float,
    is_streamed: bool,
) -> None:
    monkeypatch.setenv("CACHED_PRICES_KEY", "sk-a-long-secret-key")
    with serving(Reply(usage=usage)) as server:
        mixture = mixture_of(server, model, client, **prices)
        answer, _ = asked(mixture, is_streamed=is_streamed)
    assert (answer.final.prompt_tokens, answer.final.completion_tokens) == (100, 10)
    assert answer.usd == pytest.approx(usd)


@BOTH_WAYS
def test_all_tokens_of_an_anthropic_prompt_count_by_dspys_own_client(is_streamed: bool) -> None:
    with serving(Reply(usage=ANTHROPIC)) as server:
        lm = dspy.LM("anthropic/x", api_base=server.root, api_key="sk-a-long-key", cache=False)
        pool = Pool.from_lms({"a": lm}, strict=True, usd_per_million_tokens={"a": (1.0, 2.0)})
        mixture = MixtureOfAgents("question -> answer", "a", pool=pool, adapter=PlainChat())
        answer, _ = asked(mixture, is_streamed=is_streamed)
    assert (answer.final.prompt_tokens, answer.final.completion_tokens) == (100, 10)
    assert answer.usd == pytest.approx(120e-6)


@pytest.mark.parametrize(
    ("cached", "n"), [(80, 80), (0, 0), (None, 0), (-1, 0), ("7", 0), (True, 0), (500, 100)]
)
def test_a_count_of_cached_tokens_is_a_part_of_the_prompts(cached: Any, n: int) -> None:
    usage = {"input_tokens": 100, "output_tokens": 10, "cache_read_tokens": cached}
    assert token_counts("{}", {"message": {"parts": []}, "usage": usage}).cached == n


def test_the_price_list_knows_prices_of_cached_tokens() -> None:
    price = listed_price("openai/gpt-5-mini")
    assert price is not None
    cached = price.usd_per_million_cached_tokens
    assert cached is not None
    assert 0 < cached < price.usd_per_million_prompt_tokens
