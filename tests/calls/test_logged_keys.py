from __future__ import annotations

import asyncio
import logging

import dspy
import pytest

from moa_dspy.agent import Agent
from moa_dspy.errors import LoggedKeys
from moa_dspy.pool import Pool
from tests.servers.chat import Reply, serving

KEY = "sk-my-own-kind-of-key"
OTHER = "the-gateway-password"


def agent_lm(url: str) -> dspy.LM:
    agent = Agent(
        name="a",
        model="openai/m",
        api_base=url,
        api_key_env="MOA_LOG_TEST",
        client="litellm",
        headers={"X-Gateway-Token": "${MOA_LOG_TEST_GATEWAY}"},
    )
    return Pool([agent]).lm("a")


def adopted_lm(url: str) -> dspy.LM:
    headers = {"X-Gateway-Token": OTHER}
    lm: dspy.LM = dspy.LM(
        "openai/m", engine="litellm", api_base=url, api_key=KEY, extra_headers=headers
    )
    return Pool.from_lms({"a": lm}, strict=True).lm("a")


def environment_lm(url: str) -> dspy.LM:
    # LiteLLM itself looks for this key.
    return Pool.from_lms({"a": dspy.LM("openai/m", engine="litellm", api_base=url)}).lm("a")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("make", [agent_lm, adopted_lm, environment_lm])
def test_what_litellm_logs_of_a_request_shows_no_key(
    make: object,
    is_async: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert callable(make)
    monkeypatch.setenv("MOA_LOG_TEST", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MOA_LOG_TEST_GATEWAY", OTHER)
    logger = logging.getLogger("LiteLLM")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.DEBUG), serving(Reply("Paris")) as server:
            with caplog.at_level(logging.DEBUG, "LiteLLM"):
                lm = make(server.url)
                asyncio.run(lm.acall("Capital?")) if is_async else lm("Capital?")
            assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    finally:
        logger.removeHandler(caplog.handler)
    assert "Capital?" in caplog.text  # it did log the request
    assert KEY not in caplog.text
    assert OTHER not in caplog.text


def logged(keys: list[str], message: str, *values: object) -> str:
    masking = LoggedKeys()
    masking.add(keys)
    record = logging.LogRecord("x", logging.DEBUG, "", 0, message, values, None)
    assert masking.filter(record)
    return record.getMessage()


def test_a_key_is_masked_wherever_it_stands_and_a_short_one_is_left() -> None:
    assert logged([KEY], "POST %s", {"api_key": KEY}) == "POST {'api_key': '***'}"
    assert logged(["EMPTY"], "EMPTY and %d %%", 3) == "EMPTY and 3 %"
    # The longer of two first, or its rest would be shown.
    assert logged([KEY, f"{KEY}-2"], f"{KEY}-2") == "***"


def test_a_key_in_an_error_is_masked_too() -> None:
    masking = LoggedKeys()
    masking.add([KEY])
    try:
        raise ValueError(f"no such key: {KEY}")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), info)
    masking.filter(record)
    shown = logging.Formatter().format(record)
    assert "ValueError: no such key: ***" in shown
    assert KEY not in shown
