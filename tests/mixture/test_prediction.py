from __future__ import annotations

import copy
from dataclasses import replace

import dspy
import pytest
from dspy import lm15

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.prediction import MixturePrediction
from moa_dspy.testing import scripted_pool
from tests.servers.chat import Reply, serving


@pytest.fixture
def prediction() -> MixturePrediction:
    scripts = {"a": "<b>Paris</b>", "b": lm15.ServerError("down"), "c": "Paris " * 30}
    pool = scripted_pool(scripts, usd_per_million_tokens={"a": 1000.0})
    program = MixtureOfAgents(
        "question -> answer", "a + b > synthesize(c)", pool=pool, adapter=PlainChat()
    )
    found: MixturePrediction = program(question="Capital of France?")
    return found


def test_the_fields_of_a_prediction_are_the_users_own(prediction: MixturePrediction) -> None:
    assert list(prediction.keys()) == ["answer"]
    assert prediction.toDict() == {"answer": ("Paris " * 30).strip()}
    assert isinstance(prediction, dspy.Prediction)


def test_copies_of_a_prediction_keep_how_it_came_about(prediction: MixturePrediction) -> None:
    for copied in (prediction.copy(), copy.deepcopy(prediction), prediction.copy(answer="Rome")):
        assert copied.mixture == prediction.mixture
    assert prediction.copy(answer="Rome").answer == "Rome"


def test_a_prediction_that_no_mixture_made_has_no_mixture() -> None:
    with pytest.raises(AttributeError, match="no attribute 'mixture'"):
        _ = MixturePrediction(answer="x").mixture


def test_the_text_form_has_a_line_per_response_then_the_price_and_the_answer(
    prediction: MixturePrediction,
) -> None:
    first, second, third, summary, blank, answer = str(prediction.mixture).splitlines()
    # Three words of prompt and one of answer.
    assert first.startswith("layer 1  a (4 tokens, 0.00 s): <b>Paris</b>")
    assert second.startswith("layer 1  b (0 tokens, ")
    assert second.endswith("failed: LMServerError: [agent/b] down")
    assert third.startswith("last  c (")
    assert third.endswith("...")
    assert len(third) < 140
    assert "0.004000 usd" in summary
    assert "1 failed" in summary
    assert (blank, answer) == ("", ("Paris " * 30).strip())


def test_the_html_form_escapes_what_models_say(prediction: MixturePrediction) -> None:
    html = prediction._repr_html_()
    assert "&lt;b&gt;Paris&lt;/b&gt;" in html
    assert "<b>" not in html
    assert html.count("<tr>") == 1 + 1 + 3  # the field, the heading, three agents
    assert "failed: LMServerError" in html


def test_a_price_that_is_unknown_is_none_and_said() -> None:
    with serving(Reply()) as server:
        agent = Agent(name="a", model="openai/x", api_base=server.url)
        free = replace(
            agent,
            name="b",
            usd_per_million_prompt_tokens=0.0,
            usd_per_million_completion_tokens=0.0,
        )
        program = MixtureOfAgents(
            "question -> answer",
            "a + b > vote(b)",
            pool=Pool([agent, free]),
            adapter=PlainChat(),
            stop_early=False,
        )
        answer = program(question="?").mixture
    assert {response.agent: response.usd for response in answer.responses} == {"a": None, "b": 0.0}
    assert answer.usd is None
    assert "unknown price" in answer.summary
