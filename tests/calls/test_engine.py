from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15

from moa_dspy.adapters import PlainChat
from moa_dspy.agent import Agent
from moa_dspy.calls import (
    AgentCalls,
    AsyncStoredEngine,
    Budget,
    Calls,
    CallStore,
    Ledger,
    Recording,
)
from moa_dspy.calls import StoredEngine as Stored
from moa_dspy.errors import BudgetReachedError, MoaError, PoolError, StoreError, UnknownCallError
from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from moa_dspy.testing import AsyncScriptedEngine, Script, ScriptedEngine, scripted_pool

CALLER = AgentCalls("a", "scripted/a")


def lm_of(calls: Calls, build: Callable[[], Any], abuild: Callable[[], Any], **more: Any) -> Any:
    engine = Stored(calls, CALLER, build, **more)
    return dspy.LM(
        "agent/a",
        temperature=0.7,
        max_tokens=20,
        cache=False,
        num_retries=0,
        engine=engine,
        async_engine=AsyncStoredEngine(calls, CALLER, abuild, **more),
    )


def scripted_lm(calls: Calls, script: Script) -> Any:
    return lm_of(calls, lambda: ScriptedEngine(script), lambda: AsyncScriptedEngine(script))


def unreachable() -> Any:
    raise AssertionError("the endpoint was built")


def mixture(pool: Pool, architecture: str = "a") -> MixtureOfAgents:
    return MixtureOfAgents("question -> answer", architecture, pool=pool, adapter=PlainChat())


def asked(lm: Any, prompt: str = "say two words") -> list[str]:
    return list(lm(prompt))


def test_a_stored_answer_keeps_text_history_and_usage_and_builds_no_endpoint() -> None:
    calls = Calls()
    first = scripted_lm(calls, "one two")
    second = lm_of(calls, unreachable, unreachable)
    with dspy.track_usage() as made:
        assert asked(first) == ["one two"]
    with dspy.track_usage() as reused:
        assert asked(second) == ["one two"]
        assert asyncio.run(second.acall("say two words")) == ["one two"]
    # 3 words asked and 2 answered; DSPy's own cache would forget the usage on a hit.
    usage = made.get_total_tokens()["agent/a"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 2)
    assert reused.get_total_tokens()["agent/a"]["prompt_tokens"] == 6
    assert [entry["outputs"] for entry in second.history] == [["one two"]] * 2
    assert (calls.ledger.spending.made, calls.ledger.spending.reused) == (1, 2)


@pytest.mark.parametrize("is_async_first", [False, True])
def test_sync_and_async_share_one_key(is_async_first: bool) -> None:
    calls = Calls()
    lm = scripted_lm(calls, "x")
    for is_async in (is_async_first, not is_async_first):
        assert (asyncio.run(lm.acall("q")) if is_async else lm("q")) == ["x"]
    assert (calls.ledger.spending.made, calls.ledger.spending.reused) == (1, 1)


def test_a_changed_prompt_or_setting_is_another_call() -> None:
    calls = Calls()
    lm = scripted_lm(calls, "x")
    asked(lm, "q")
    asked(lm, "q ")
    asked(lm.copy(temperature=0.8), "q")
    asked(lm.copy(max_tokens=21), "q")
    asked(copy.deepcopy(lm), "q")
    assert (calls.ledger.spending.made, calls.ledger.spending.reused) == (4, 1)


def test_a_stream_is_the_finished_answer_and_is_stored_as_one() -> None:
    calls = Calls()
    lm = scripted_lm(calls, "one two")
    request = lm15.Request(model="agent/a", messages=(lm15.Message.user("q"),))
    events = list(lm._engine_spec.stream(request))

    async def collect() -> list[Any]:
        return [event async for event in lm._async_engine_spec.stream(request)]

    assert [type(event) for event in asyncio.run(collect())] == [type(event) for event in events]
    assert "".join(getattr(event.delta, "text", "") for event in events if hasattr(event, "delta"))
    assert (calls.ledger.spending.made, calls.ledger.spending.reused) == (1, 1)


def test_a_seeded_endpoint_draws_by_the_calls_content() -> None:
    seeds: list[int | None] = []

    class Seeing:
        def complete(self, request: Any) -> Any:
            seeds.append(request.config.seed)
            return ScriptedEngine("x").complete(request)

    for is_seeded in (True, True, False):
        lm = lm_of(Calls(), Seeing, unreachable, is_seeded=is_seeded)
        asked(lm, "one")
        asked(lm, "two")
        asked(lm.copy(seed=5), "one")
    first, second, given, *rest = seeds
    assert first != second
    assert given == 5
    assert rest == [first, second, 5, None, None, 5]


def test_a_failure_is_a_reason_in_the_answer_live_and_in_a_replay() -> None:
    live = Calls()
    error = lm15.ServerError("it is down", status=503)
    answer = mixture(scripted_pool({"a": "x", "b": error}, calls=live), "a + b > select")(
        question="?"
    ).mixture
    assert [(r.agent, r.failure) for r in answer.failures] == [
        ("b", "LMServerError: [agent/b] it is down")
    ]

    recording = Recording(live.store._calls.values())  # type: ignore[attr-defined]  # the memory
    replay = Calls(recording=recording, replay_only=True)
    again = mixture(scripted_pool({"a": error, "b": "never"}, calls=replay), "a + b > select")(
        question="?"
    ).mixture
    assert again.final == answer.final
    assert [r.agent for r in again.failures] == ["b"]
    assert "it is down" in str(again.failures[0].failure)
    assert replay.ledger.spending.made == 0


class Broken:
    """A store that cannot be written."""

    def get(self, key: str, /) -> None:
        return None

    def put(self, call: object, /) -> None:
        raise StoreError("The call store is full.")


@pytest.mark.parametrize(
    ("calls", "error"),
    [
        (Calls(ledger=Ledger(Budget(tokens=1))), BudgetReachedError),
        (Calls(replay_only=True), UnknownCallError),
        (Calls(Broken()), StoreError),
    ],
    ids=["budget", "replay", "store"],
)
@pytest.mark.parametrize("architecture", ["a", "a + b > select", "a > synthesize(b)"])
@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_not_a_models_failure_surfaces_as_itself(
    calls: Calls, error: type[MoaError], architecture: str, is_async: bool
) -> None:
    program = mixture(scripted_pool({"a": "x", "b": "y"}, calls=calls), architecture)

    def run() -> None:
        asyncio.run(program.acall(question="?")) if is_async else program(question="?")

    with pytest.raises(error, match=r"budget|recording|store"):
        run()


def test_a_missing_key_surfaces_as_an_error_of_the_pool() -> None:
    pool = Pool([Agent(name="a", model="openai/x", api_key_env="MOA_TEST_UNSET")])
    with pytest.raises(PoolError, match="MOA_TEST_UNSET"):
        mixture(pool)(question="?")


def test_an_interrupted_run_goes_on_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    first = scripted_pool({"a": "x", "b": "y"}, calls=Calls(CallStore(path)))
    mixture(first, "a + b > select")(question="?")
    second = scripted_pool({"a": "x", "b": "y", "c": "z"}, calls=Calls(CallStore(path)))
    mixture(second, "a + b + c > select")(question="?")
    assert (second.calls.ledger.spending.made, second.calls.ledger.spending.reused) == (1, 2)
