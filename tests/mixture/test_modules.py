"""Any module may sit in a seat: DSPy's own, and what a user writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from moa_dspy.errors import ArchitectureError, LayerFailedError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.testing import scripted_pool
from tests.mixture.world import reply, wanted

CAPITALS = {"France": "Paris", "Italy": "Rome"}
SYNC_AND_ASYNC = pytest.mark.parametrize("is_async", [False, True])


def call(program: Any, *, is_async: bool, **inputs: Any) -> Any:
    return asyncio.run(program.acall(**inputs)) if is_async else program(**inputs)


def look_up(country: str) -> str:
    """Look up the capital of a country."""
    return CAPITALS[country]


def agent(name: str) -> Callable[[str], str]:
    """Fills any field; as a ReAct agent it looks up France, and finishes when it has seen Paris."""

    def script(prompt: str) -> str:
        fields: dict[str, object] = {what: f"{what} of {name}" for what in wanted(prompt)}
        if "next_tool_name" in fields:
            has_seen = "Paris" in prompt
            fields["next_tool_name"] = "finish" if has_seen else "look_up"
            fields["next_tool_args"] = "{}" if has_seen else '{"country": "France"}'
        if "answer" in fields and "Paris" in prompt:
            fields["answer"] = f"{name} says Paris"
        return reply(prompt, fields)

    return script


def pool() -> Pool:
    return scripted_pool({name: agent(name) for name in "abc"})


class DraftAndRevise(dspy.Module):
    """Two predictors; also says what it drafted."""

    def __init__(self, signature: Any) -> None:
        super().__init__()
        self.draft = dspy.Predict("question -> draft")
        self.revise = dspy.Predict(signature.prepend("draft", dspy.InputField(), str))

    def forward(self, question: str, references: list[str] | None = None) -> Any:
        draft = self.draft(question=question).draft
        read = {} if references is None else {"references": references}
        answer = self.revise(question=question, draft=draft, **read).answer
        return dspy.Prediction(draft=draft, answer=answer)

    async def aforward(self, question: str, references: list[str] | None = None) -> Any:
        draft = (await self.draft.acall(question=question)).draft
        read = {} if references is None else {"references": references}
        found = await self.revise.acall(question=question, draft=draft, **read)
        return dspy.Prediction(draft=draft, answer=found.answer)


class Blocking(dspy.Module):
    """Has no ``aforward``."""

    def __init__(self, signature: Any) -> None:
        super().__init__()
        self.predict = dspy.Predict(signature)

    def forward(self, question: str, references: Any = ()) -> Any:
        return self.predict(question=question, **({"references": references} if references else {}))


@SYNC_AND_ASYNC
def test_react_uses_its_tool_and_keeps_its_trajectory_to_itself(is_async: bool) -> None:
    agents = pool()
    program = MixtureOfAgents(
        "question -> answer",
        "a + b > synthesize(c)",
        pool=agents,
        module=lambda signature: dspy.ReAct(signature, tools=[look_up], max_iters=3),
    )
    with dspy.track_usage() as tracker:
        found = call(program, is_async=is_async, question="Capital of France?")
    assert found.toDict() == {"answer": "c says Paris"}
    # Look up, finish, extract. The aggregator has read Paris and needs no tool.
    assert [response.calls for response in found.mixture.responses] == [3, 3, 2]
    assert [response.text for response in found.mixture.layers[0]] == [
        "a says Paris",
        "b says Paris",
    ]
    assert sorted(tracker.get_total_tokens()) == ["agent/a", "agent/b", "agent/c"]


@SYNC_AND_ASYNC
def test_a_reasoning_is_read_by_the_aggregator_and_returned(is_async: bool) -> None:
    agents = pool()
    program = MixtureOfAgents(
        "question -> answer", "a + b > synthesize(c)", pool=agents, module=dspy.ChainOfThought
    )
    found = call(program, is_async=is_async, question="q")
    assert found.toDict() == {"reasoning": "reasoning of c", "answer": "answer of c"}
    assert found.mixture.layers[0][1].text == "reasoning: reasoning of b\nanswer: answer of b"


@SYNC_AND_ASYNC
@pytest.mark.parametrize("module", [DraftAndRevise, Blocking])
def test_a_module_of_the_users_asks_its_seats_agent_with_every_predictor(
    module: Any, is_async: bool
) -> None:
    agents = pool()
    program = MixtureOfAgents(
        "question -> answer", "a + b > b > synthesize(c)", pool=agents, module=module
    )
    with dspy.context(trace=[]):
        found = call(program, is_async=is_async, question="q")
        trace = dspy.settings.trace
    n = 2 if module is DraftAndRevise else 1
    assert found.answer == "answer of c"
    assert [r.calls for r in found.mixture.responses] == [n] * 4
    assert [r.values["answer"][-1] for r in found.mixture.responses] == ["a", "b", "b", "c"]
    assert [id(asked_predictor) for asked_predictor, _, _ in trace] == [
        id(predictor) for predictor in program.predictors()
    ]


def test_what_a_module_says_beside_the_users_fields_is_kept() -> None:
    program = MixtureOfAgents("question -> answer", "a", pool=pool(), module=DraftAndRevise)
    assert program(question="q").toDict() == {"draft": "draft of a", "answer": "answer of a"}


@SYNC_AND_ASYNC
def test_a_mixture_may_sit_in_a_seat(is_async: bool) -> None:
    inner = scripted_pool({"d": agent("d"), "e": agent("e")})
    program = MixtureOfAgents(
        "question -> answer",
        "a > vote",
        pool=pool(),
        module=lambda signature: MixtureOfAgents(signature, "d + e > select", pool=inner),
    )
    found = call(program, is_async=is_async, question="q")
    assert found.answer == "answer of d"
    assert found.mixture.calls == inner.calls.ledger.spending.made == 2


class Forgetful(Blocking):
    def forward(self, question: str, references: Any = ()) -> Any:
        found = super().forward(question, references)
        return dspy.Prediction(note=found.answer)


class Wordy(Blocking):
    def forward(self, question: str, references: Any = ()) -> Any:
        return super().forward(question, references).answer


@SYNC_AND_ASYNC
@pytest.mark.parametrize("architecture", ["a", "a > vote", "a + b > synthesize(c)"])
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Forgetful, "The module of agent 'a' must return answer, but it returned note"),
        (Wordy, r"must return a dspy\.Prediction, but Wordy returned a str"),
    ],
)
def test_a_module_that_returns_something_else_is_an_error(
    module: Any, message: str, architecture: str, is_async: bool
) -> None:
    program = MixtureOfAgents("question -> answer", architecture, pool=pool(), module=module)
    with pytest.raises(ArchitectureError, match=message):
        call(program, is_async=is_async, question="q")


@SYNC_AND_ASYNC
def test_a_module_that_cannot_read_references_is_named_with_its_error(is_async: bool) -> None:
    class Deaf(dspy.Module):
        def __init__(self, signature: Any) -> None:
            super().__init__()
            self.predict = dspy.Predict(signature)

        def forward(self, question: str) -> Any:
            return self.predict(question=question)

    program = MixtureOfAgents("question -> answer", "a > synthesize(b)", pool=pool(), module=Deaf)
    with pytest.raises(LayerFailedError, match=r"b: TypeError: .*argument 'references'"):
        call(program, is_async=is_async, question="q")
