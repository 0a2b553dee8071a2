from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dspy
import pytest
from dspy import lm15

from moa_dspy.agent import Agent
from moa_dspy.calls import AgentCalls, Calls, StoredEngine
from moa_dspy.pool import Pool
from moa_dspy.testing import last_user_text


@dataclass
class WeighingEngine:
    """Replies by script, with the probabilities of what its tokens could have been instead."""

    script: Callable[[str], tuple[list[str], Mapping[str, float]]]
    refusal: Exception | None = None
    asked: list[Any] = field(default_factory=list)

    def complete(self, request: Any) -> Any:
        self.asked.append(request)
        wants = request.config.logprobs
        if wants is not None and self.refusal is not None:
            raise self.refusal
        tokens, likely = self.script(last_user_text(request))
        top = tuple(lm15.TopLogprob(t, math.log(p)) for t, p in likely.items())
        scores = tuple(lm15.TokenLogprob(t, math.log(likely.get(t, 0.99)), top=top) for t in tokens)
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant("".join(tokens)),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=1, output_tokens=1),
            logprobs=scores if wants is not None else None,
        )


@pytest.fixture
def weighing() -> Callable[..., WeighingEngine]:
    return WeighingEngine


@pytest.fixture
def pool_of() -> Callable[..., Pool]:
    """Makes a pool with one agent, "judge", that an engine answers for, through a call store."""

    def make(engine: Any, calls: Calls | None = None) -> Pool:
        shared = calls or Calls()
        lm = dspy.LM(
            "agent/judge",
            temperature=0.0,
            max_tokens=8,
            cache=False,
            num_retries=0,
            engine=StoredEngine(shared, AgentCalls("judge", "scripted/judge"), lambda: engine),
        )
        agent = Agent(name="judge", model="scripted/judge", temperature=0.0)
        return Pool([agent], calls=shared, lms={"judge": lm})

    return make


@pytest.fixture
def rows() -> list[dspy.Example]:
    return [
        dspy.Example(id=f"q{n}", instruction=f"Say {n}.", reference=f"{n}!").with_inputs(
            "instruction"
        )
        for n in range(40)
    ]
