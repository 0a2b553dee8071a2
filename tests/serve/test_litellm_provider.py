"""LiteLLM's provider ``moa``, in LiteLLM's SDK and in ``dspy.LM``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import dspy
import pytest

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")  # no download at import

import litellm

from moa_dspy.errors import PoolError
from moa_dspy.serve import MixtureLM
from moa_dspy.serve.litellm_provider import register
from moa_dspy.testing import scripted_pool

ASKED = [{"role": "user", "content": "Where?"}]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    pool = scripted_pool(
        {"a": "draft", "c": "Paris it is"}, usd_per_million_tokens={"a": 1.0, "c": 1.0}
    )
    before = litellm.custom_provider_map
    register({"best": MixtureLM("a > synthesize(c)", pool=pool)})
    yield
    litellm.custom_provider_map = before


def test_litellm_answers_whole_and_in_coroutines() -> None:
    whole = litellm.completion("moa/best", ASKED, temperature=0.5)
    assert whole.choices[0].message.content == "Paris it is"
    assert whole.usage.total_tokens > 4
    later = asyncio.run(litellm.acompletion("moa/best", ASKED))
    assert later.choices[0].message.content == "Paris it is"


def test_litellm_streams() -> None:
    chunks = list(litellm.completion("moa/best", ASKED, stream=True))
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(texts) == "Paris it is"
    assert len(texts) > 1

    async def astream() -> str:
        stream = await litellm.acompletion("moa/best", ASKED, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(astream()) == "Paris it is"


def test_an_unknown_name_and_a_bad_request_are_told() -> None:
    with pytest.raises(Exception, match="known are best"):
        litellm.completion("moa/worst", ASKED, num_retries=0)
    with pytest.raises(Exception, match="logprobs"):
        litellm.completion("moa/best", ASKED, logprobs=True, num_retries=0)


def test_dspy_finds_a_registered_mixture_by_name() -> None:
    with dspy.context(lm=dspy.LM("moa/best", cache=False)):
        lm = dspy.settings.lm
        assert lm("Where?") == ["Paris it is"]
        assert lm.history[-1]["usage"]["total_tokens"] > 4


def test_another_provider_of_that_name_is_not_replaced() -> None:
    litellm.custom_provider_map = [{"provider": "moa", "custom_handler": litellm.CustomLLM()}]
    with pytest.raises(PoolError, match="another provider named `moa`"):
        register({})
