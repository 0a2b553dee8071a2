from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.errors import PoolError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.references import ReferenceLimits, count_tokens
from moa_dspy.testing import scripted_pool

LONG = "word " * 400
SCRIPTS: dict[str, Any] = {"a": "short", "b": LONG, "c": lambda prompt: prompt}


def mixture(pool: Pool, text: str = "a + b > synthesize(c)", **options: Any) -> MixtureOfAgents:
    return MixtureOfAgents("question -> answer", text, pool=pool, adapter=PlainChat(), **options)


def with_window(context_window: int) -> Pool:
    """The scripted pool, whose last agent takes so many tokens of prompt and answer."""
    pool = scripted_pool(SCRIPTS)
    agents = [
        replace(agent, context_window=context_window, max_tokens=64) for agent in pool.values()
    ]
    return Pool(agents, calls=pool.calls, lms={name: pool.lm(name) for name in pool})


def test_without_limits_every_reference_is_read_whole() -> None:
    found = mixture(scripted_pool(SCRIPTS))(question="q")
    assert LONG.strip() in found.answer
    assert found.mixture.cuts == ()


@pytest.mark.parametrize("limits", [ReferenceLimits(per_reference=50), ReferenceLimits(total=60)])
def test_what_is_cut_is_the_end_of_the_longest_and_is_reported(limits: ReferenceLimits) -> None:
    found = mixture(scripted_pool(SCRIPTS), reference_limits=limits)(question="q")
    (cut,) = found.mixture.last.cuts
    assert (cut.reference, cut.agent, cut.tokens) == (2, "b", count_tokens(LONG.strip()))
    assert 16 <= cut.kept_tokens <= 60
    assert '1. "short"' in found.answer
    assert ' [cut]"' in found.answer
    assert found.mixture.cuts == (cut,)
    assert "1 references cut" in found.mixture.summary
    # What the agent said is kept as it was said.
    assert found.mixture.layers[0][1].text == LONG.strip()


def test_the_built_prompt_and_the_answer_fit_the_readers_window() -> None:
    pool = with_window(500)
    found = mixture(pool)(question="q")
    (cut,) = found.mixture.cuts
    assert cut.agent == "b"
    # A word of a scripted agent is a token; its instructions are 80 words more.
    assert found.mixture.last.prompt_tokens + 80 + 64 <= 500
    assert cut.kept_tokens > 100  # and what room there is is used


def test_readers_in_a_layer_are_cut_to_their_own_windows() -> None:
    pool = with_window(300)
    found = mixture(pool, "b > a + c > select")(question="q")
    assert [len(response.cuts) for response in found.mixture.layers[1]] == [1, 1]


def test_a_ranker_that_saw_fewer_responses_picks_among_those_that_it_saw() -> None:
    # No room for two: the first that is left out is the last, then there is one.
    pool = scripted_pool({"a": LONG, "b": LONG + "b", "c": "2"})
    limits = ReferenceLimits(total=20)
    found = mixture(pool, "a + b > select(c)", reference_limits=limits)(question="q")
    assert [cut.kept_tokens == 0 for cut in found.mixture.last.cuts] == [False, True]
    # "2" names nothing that was read, so it is no opinion.
    assert found.answer == LONG.strip()


def test_a_window_that_holds_no_answer_is_an_error_at_once() -> None:
    with pytest.raises(PoolError, match="`context_window` cannot be 100"):
        Agent(name="a", model="m/m", max_tokens=100, context_window=100)
