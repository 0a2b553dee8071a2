from __future__ import annotations

import asyncio
from typing import Any

import dspy
import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.errors import LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool
from tests.servers.chat import Reply, serving

SAID = "[[ ## answer ## ]]\nx\n\n[[ ## completed ## ]]"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("adapter", "n_calls"),
    # The chat adapter asks once more for what it cannot read, which is counted.
    [(PlainChat(), 1), (None, 2)],
)
def test_reasoning_without_a_text_is_a_failure_that_is_counted_and_named(
    adapter: Any, n_calls: int, is_async: bool
) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return Reply("", thinking="Let me think.") if body["model"] == "b" else Reply(SAID)

    with serving(reply) as server:
        agents = [Agent(name=n, model=f"openai/{n}", api_base=server.url) for n in "ab"]
        pool = Pool(agents)
        program = MixtureOfAgents(
            "question -> answer", "a + b > select", pool=pool, adapter=adapter
        )
        found = asyncio.run(program.acall(question="q")) if is_async else program(question="q")
        (failed,) = found.mixture.failures
        assert failed.agent == "b"
        assert failed.failure == "The model answered with reasoning only, and no text."
        assert failed.calls == n_calls
        assert failed.completion_tokens == 7 * n_calls
        assert len(server.bodies) == pool.calls.ledger.spending.made == 1 + n_calls


def reply_of(**fields: str) -> str:
    written = [f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()]
    return "\n\n".join([*written, "[[ ## completed ## ]]"])


@pytest.mark.parametrize(
    ("signature", "module", "said", "blank"),
    [
        ("q -> answer", dspy.ChainOfThought, {"reasoning": "r", "answer": "4"}, ("answer",)),
        ("q -> answer, unit", dspy.Predict, {"answer": "4", "unit": "m"}, ("answer", "unit")),
    ],
)
def test_blank_answers_win_no_vote(
    signature: str, module: Any, said: dict[str, str], blank: tuple[str, ...]
) -> None:
    nothing = reply_of(**{**said, **dict.fromkeys(blank, " ")})
    pool = scripted_pool({"a": reply_of(**said), "b": nothing, "c": nothing})
    program = MixtureOfAgents(signature, "a + b + c > vote(a)", pool=pool, module=module)
    found = program(q="?")
    assert found.answer == "4"
    assert {r.failure for r in found.mixture.failures} == {"The model answered with an empty text."}
    only = scripted_pool({"a": nothing, "b": nothing})
    with pytest.raises(LayerFailedError, match="0 of 2 agents answered"):
        MixtureOfAgents(signature, "a + b > vote(a)", pool=only, module=module)(q="?")


def test_a_traced_vote_has_the_trace_of_all_members_although_the_first_agree() -> None:
    pool = scripted_pool(dict.fromkeys("abcd", reply_of(answer="six")))
    program = MixtureOfAgents("q -> answer", "a + b + c + d > vote(a; agree=2)", pool=pool)
    assert program(q="?").mixture.calls == 2
    with dspy.context(trace=[]):
        assert program(q="?").answer == "six"
        assert len(dspy.settings.trace) == 4
