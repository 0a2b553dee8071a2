from __future__ import annotations

import asyncio
from typing import Any

import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
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
