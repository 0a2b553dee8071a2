from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import dspy
import pytest
from dspy import lm15

from moa_dspy.agent import Agent
from moa_dspy.calls import AgentCalls, Calls, Recording, call_scope, stored_lm
from moa_dspy.calls.lm.engine import sample_index
from moa_dspy.pool import Pool
from moa_dspy.testing import ScriptedEngine, scripted_pool
from tests.servers.chat import ChatServer, Reply, serving

ADVICE = "[[ ## discussion ## ]]\nnone\n\n[[ ## advice ## ]]\n{}\n\n[[ ## completed ## ]]"


_numbers = count()


def numbered(_: dict[str, Any]) -> Reply:
    """Give another answer to every request, so that an answer says where it came from."""
    return Reply(f"[[ ## answer ## ]]\n{next(_numbers)}\n\n[[ ## completed ## ]]")


def pool_of(server: ChatServer, calls: Calls | None = None, temperature: float = 0.7) -> Pool:
    agent = Agent(name="a", model="openai/x", api_base=server.url, temperature=temperature)
    return Pool([agent], calls=calls)


def predict_of(pool: Pool, **config: Any) -> dspy.Predict:
    predict = dspy.Predict("question -> answer", **config)
    predict.set_lm(pool.lm("a"))
    return predict


def three_completions(pool: Pool) -> list[str]:
    return list(predict_of(pool, n=3)(question="q").completions.answer)


def best_of_three(pool: Pool) -> list[str]:
    return _kept(pool, dspy.BestOfN)


def refined(pool: Pool) -> list[str]:
    with dspy.context(lm=scripted_pool({"advisor": ADVICE}).lm("advisor")):
        return _kept(pool, dspy.Refine)


def _kept(pool: Pool, wrapper: Any) -> list[str]:
    seen: list[str] = []

    def reward(_: dict[str, Any], prediction: dspy.Prediction) -> float:
        seen.append(prediction.answer)
        return 0.0

    wrapper(predict_of(pool), N=3, reward_fn=reward, threshold=1.0)(question="q")
    return seen


@pytest.mark.parametrize("ask", [three_completions, best_of_three, refined])
def test_three_samples_are_three_requests_and_a_replay_gives_the_same_texts_for_none(
    ask: Callable[[Pool], list[str]],
) -> None:
    with serving(numbered) as server:
        pool = pool_of(server)
        answers = ask(pool)
        assert len(set(answers)) == 3
        assert len(server.bodies) == pool.calls.ledger.spending.made == 3
        recording = Recording(pool.calls.store._calls.values())  # type: ignore[attr-defined]
        replay = pool_of(server, Calls(recording=recording, replay_only=True))
        assert ask(replay) == answers
        assert len(server.bodies) == 3


def test_a_rollout_a_seat_and_a_completion_are_three_different_things() -> None:
    with serving(numbered) as server:
        pool = pool_of(server)
        lm: Any = pool.lm("a")
        asked: dict[str, list[str]] = {}
        for slot in (0, 1):
            with call_scope(sample=slot):
                asked[f"{slot}"] = lm("q")
                # Rollout 0 is a rollout of its own: BestOfN begins with it.
                for rollout in (0, 1):
                    asked[f"{slot}/{rollout}"] = lm.copy(rollout_id=rollout)("q")
                    asked[f"{slot}/{rollout} n=2"] = lm("q", rollout_id=rollout, n=2)
        assert len(server.bodies) == 10
        for slot in (0, 1):
            for rollout in (0, 1):
                # The first of several completions is the one that is there already.
                name = f"{slot}/{rollout}"
                assert asked[f"{name} n=2"][0] == asked[name][0]
        assert len({text for texts in asked.values() for text in texts}) == 10


def test_an_index_is_the_seats_where_there_is_nothing_else_and_large_where_there_is() -> None:
    assert [sample_index(slot) for slot in (0, 1, 7)] == [0, 1, 7]
    many = [
        sample_index(slot, rollout=rollout, completion=completion)
        for slot in range(8)
        for rollout in (None, *range(20))
        for completion in range(1, 5)
    ]
    assert len(set(many)) == len(many) == 8 * 21 * 4
    assert min(many) >= 2**20
    assert max(many) < 2**31
    # sha256("0/1/0") begins with 8 bytes that are 1005542878 - 2**20 modulo 2**31 - 2**20. The
    # keys of recordings are made of it, so it can never change.
    assert sample_index(0, rollout=1) == 1_005_542_878


def test_a_greedy_agent_is_asked_once_and_nothing_is_warned_of() -> None:
    with serving(numbered) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        pool = pool_of(server, temperature=0.0)
        for slot in range(3):
            with call_scope(sample=slot):
                assert pool.lm("a")("q") == pool.lm("a")("q")
        assert len(server.bodies) == 1


def test_calls_at_the_same_time_have_samples_of_their_own() -> None:
    n = 8
    with serving(numbered) as server:
        pool = pool_of(server)
        lm: Any = pool.lm("a")
        with ThreadPoolExecutor(n) as threads:
            in_threads = list(threads.map(lambda r: lm("q", rollout_id=r)[0], range(n)))

        async def together() -> list[str]:
            asked = (lm.acall("q", rollout_id=r) for r in range(n))
            return [answer[0] for answer in await asyncio.gather(*asked)]

        assert asyncio.run(together()) == in_threads
        assert len(set(in_threads)) == len(server.bodies) == n


class Nesting:
    """An engine that asks another LM before it answers, as a served mixture does."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def complete(self, request: Any) -> Any:
        return ScriptedEngine(self.inner("inside")[0]).complete(request)


def test_an_lm_inside_another_does_not_take_the_others_sample() -> None:
    numbers = count()
    calls = Calls()
    pool = scripted_pool({"in": lambda _: str(next(numbers))}, calls=calls, temperature=0.7)
    outer: Any = stored_lm(
        "agent/out",
        calls,
        AgentCalls("out", "nested/out"),
        lambda _: Nesting(pool.lm("in")),
        temperature=0.7,
    )
    # Both completions ask the inner LM the same thing: it answers once.
    assert outer("q", n=2, rollout_id=3) == ["0", "0"]
    samples = {call.agent: call.sample for call in calls.store._calls.values()}  # type: ignore[attr-defined]
    assert samples["in"] == 0
    # The outer call's own count goes on after the inner one has ended.
    made = [c.sample for c in calls.store._calls.values() if c.agent == "out"]  # type: ignore[attr-defined]
    assert sorted(made) == sorted(sample_index(0, rollout=3, completion=n) for n in (0, 1))


def test_an_engine_that_is_asked_inside_another_lms_call_has_no_part_in_it() -> None:
    calls = Calls()
    inner: Any = scripted_pool({"in": "x"}, calls=calls, temperature=0.7).lm("in")
    request = lm15.Request(
        model="agent/in",
        messages=(lm15.Message.user("q"),),
        config=lm15.Config(temperature=0.7),
    )
    outer: Any = stored_lm(
        "agent/out",
        calls,
        AgentCalls("out", "nested/out"),
        lambda _: Nesting(lambda _: [inner.engine.complete(request).text]),
        temperature=0.7,
    )
    outer("q", rollout_id=3)
    samples = {call.agent: call.sample for call in calls.store._calls.values()}  # type: ignore[attr-defined]
    assert samples == {"in": 0, "out": sample_index(0, rollout=3)}


def test_a_call_that_failed_leaves_no_sample_behind() -> None:
    calls = Calls()
    pool = scripted_pool({"a": lm15.InvalidRequestError("no")}, calls=calls, temperature=0.7)
    lm: Any = pool.lm("a")
    for _ in range(2):
        with pytest.raises(dspy.LMError):
            lm("q", rollout_id=5, n=2)
    assert [call.sample for call in calls.store._calls.values()] == [  # type: ignore[attr-defined]
        sample_index(0, rollout=5)
    ]
