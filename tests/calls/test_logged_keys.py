from __future__ import annotations

import logging

import pytest

from moa_dspy.calls.lm.endpoint import Endpoint, endpoint_engine

KEY = "sk-my-own-kind-of-key"


@pytest.mark.parametrize("name", ["LiteLLM", "LiteLLM Router", "LiteLLM Proxy"])
def test_what_litellm_logs_shows_no_key(name: str, caplog: pytest.LogCaptureFixture) -> None:
    for asynchronous in (False, True):
        endpoint_engine(
            Endpoint("cohere/m", api_key=KEY, client="litellm"), asynchronous=asynchronous
        )
    logger = logging.getLogger(name)
    with caplog.at_level(logging.DEBUG, name):
        logger.addHandler(caplog.handler)
        try:
            logger.debug("POST with %s and %s", {"api_key": KEY}, "a text")
            logger.debug(f"headers: Bearer {KEY}")
        finally:
            logger.removeHandler(caplog.handler)
    request, headers = dict.fromkeys(record.getMessage() for record in caplog.records)
    # Once it is loaded, LiteLLM masks more by itself, in its own word.
    assert request in (
        "POST with {'api_key': '***'} and a text",
        "POST with {'REDACTED'} and a text",
    )
    assert headers in ("headers: Bearer ***", "headers: REDACTED")
    assert KEY not in caplog.text
