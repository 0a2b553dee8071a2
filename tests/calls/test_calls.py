from __future__ import annotations

from typing import Any

import pytest

from moa_dspy.calls import (
    AgentCalls,
    Budget,
    CallRequest,
    Calls,
    CallStore,
    Ledger,
    Recording,
    call_scope,
    canonical_json,
)
from moa_dspy.errors import BudgetReachedError, UnknownCallError
from tests.calls.fake_clock import FakeClock

CALLER = AgentCalls("a", "served/a", usd_per_prompt_token=0.5, usd_per_completion_token=2.0)
SAMPLED = {"messages": ["hello"], "config": {"temperature": 0.7, "max_tokens": 10}}
GREEDY = {"messages": ["hello"], "config": {"temperature": 0, "max_tokens": 10}}


class Endpoint:
    """Answers, or fails as often as said, and counts; never asked is never called."""

    def __init__(self, *, failures: int = 0) -> None:
        self.asked, self.failures = 0, failures

    def __call__(self) -> dict[str, Any]:
        self.asked += 1
        if self.asked <= self.failures:
            raise OSError(f"down {self.asked}")
        return {"text": f"answer {self.asked}", "usage": {"input_tokens": 4, "output_tokens": 3}}


def never() -> dict[str, Any]:
    raise AssertionError("a request was made")


def test_a_call_is_made_once_and_priced_by_the_callers_list() -> None:
    calls, endpoint = Calls(), Endpoint()
    ask = calls.prepare(CALLER, SAMPLED)
    with call_scope() as scope:
        made, again = (calls.answer(ask, endpoint) for _ in range(2))
    assert made == again
    assert (made.agent, made.identity, made.sample) == ("a", "served/a", 0)
    # 4 prompt tokens at 0.5 and 3 completion tokens at 2.0
    assert (made.prompt_tokens, made.completion_tokens, made.usd) == (4, 3, 8.0)
    assert endpoint.asked == calls.ledger.spending.made == calls.ledger.spending.reused == 1
    assert [(facts.usd, facts.is_reused) for facts in scope.log] == [(8.0, False), (8.0, True)]


def test_samples_of_a_sampled_agent_differ_and_of_a_greedy_one_do_not() -> None:
    calls = Calls()

    def asked(request: dict[str, Any]) -> list[CallRequest]:
        found = []
        for sample in range(3):
            with call_scope(sample=sample):
                found.append(calls.prepare(CALLER, request))
        return found

    assert [ask.sample for ask in asked(SAMPLED)] == [0, 1, 2]
    assert len({ask.key for ask in asked(SAMPLED)}) == 3
    assert [ask.sample for ask in asked(GREEDY)] == [0, 0, 0]
    assert len({ask.key for ask in asked(GREEDY)}) == 1


def test_the_key_is_the_content_and_not_the_agents_name() -> None:
    calls = Calls()
    key = calls.prepare(CALLER, {"a": 1, "b": 2}).key
    assert calls.prepare(AgentCalls("other", CALLER.identity), {"b": 2, "a": 1}).key == key
    assert calls.prepare(AgentCalls("a", "elsewhere/a"), {"a": 1, "b": 2}).key != key
    assert calls.prepare(CALLER, {"a": 1, "b": 3}).key != key


def test_the_estimate_is_an_upper_bound() -> None:
    # A token is at least one byte of the request's text.
    ask = Calls().prepare(CALLER, {"config": {"max_tokens": 10}, "m": "é"})
    n_bytes = len('{"config":{"max_tokens":10},"m":"é"}'.encode())
    assert (ask.estimate.tokens, ask.estimate.usd) == (n_bytes + 10, n_bytes * 0.5 + 10 * 2.0)


def test_a_failure_is_stored_paid_as_a_call_and_tried_again() -> None:
    calls, endpoint = Calls(), Endpoint(failures=1)
    ask = calls.prepare(CALLER, SAMPLED)
    with pytest.raises(OSError, match="down 1"):
        calls.answer(ask, endpoint)
    stored = calls.store.get(ask.key)
    assert stored is not None
    assert (stored.failure, stored.response, stored.usd) == ("OSError: down 1", None, 0.0)
    assert calls.answer(ask, endpoint).failure is None
    assert (endpoint.asked, calls.ledger.spending.made) == (2, 2)


def test_a_recorded_failure_is_tried_again_live_and_is_the_answer_in_a_replay() -> None:
    live = Calls()
    ask = live.prepare(CALLER, SAMPLED)
    with pytest.raises(OSError, match="down 1"):
        live.answer(ask, Endpoint(failures=1))
    failed = live.store.get(ask.key)
    assert failed is not None
    recording = Recording([failed])
    assert Calls(recording=recording).answer(ask, Endpoint()).failure is None
    assert Calls(recording=recording, replay_only=True).answer(ask, never) == failed


def test_a_replay_asks_nobody_and_names_agent_and_example_of_what_it_lacks() -> None:
    live = Calls()
    known = live.answer(live.prepare(CALLER, SAMPLED), Endpoint())
    replay = Calls(recording=Recording([known]), replay_only=True)
    assert replay.answer(replay.prepare(CALLER, SAMPLED), never) == known
    with call_scope(sample=1, example="geo-7"):
        unknown = replay.prepare(CALLER, SAMPLED)
        message = rf"no call of agent 'a' for example 'geo-7' \(sample 1, key {unknown.key[:12]}\)"
        with pytest.raises(UnknownCallError, match=message):
            replay.answer(unknown, never)
    with pytest.raises(UnknownCallError, match=r"no call of agent 'a' \(sample 0"):
        replay.answer(replay.prepare(CALLER, GREEDY), never)
    assert (replay.ledger.spending.made, replay.ledger.spending.reused) == (0, 1)


def test_a_refused_call_is_not_made_and_not_stored_as_a_failure() -> None:
    calls = Calls(ledger=Ledger(Budget(tokens=5)))
    ask = calls.prepare(CALLER, SAMPLED)
    with pytest.raises(BudgetReachedError, match="5 tokens"):
        calls.answer(ask, never)
    assert calls.store.get(ask.key) is None


@pytest.mark.parametrize("half", ["\ud83d", "\ude00 tail"])
def test_half_of_a_surrogate_pair_is_stored_and_comes_back(half: str, tmp_path: Any) -> None:
    # Servers write JSON escapes; a reply that ends inside a pair has only its first half.
    store = CallStore(tmp_path / "calls.sqlite")
    calls = Calls(store)
    call = calls.answer(calls.prepare(CALLER, SAMPLED), lambda: {"text": half})
    assert call.response == canonical_json({"text": half})
    assert CallStore(tmp_path / "calls.sqlite").get(call.key) == call


def test_a_secret_in_a_failure_is_masked_before_it_is_stored() -> None:
    caller = AgentCalls("a", "served/a", secrets=("sk-planted",))
    calls = Calls()
    ask = calls.prepare(caller, SAMPLED)

    def refuse() -> dict[str, Any]:
        raise OSError("no access with sk-planted")

    with pytest.raises(OSError, match="no access"):
        calls.answer(ask, refuse)
    stored = calls.store.get(ask.key)
    assert stored is not None
    assert stored.failure == "OSError: no access with ***"
    assert "sk-planted" not in repr(caller)


def test_loading_of_weights_is_no_part_of_an_answers_seconds() -> None:
    clock, loads = FakeClock(), [7.0]  # another model was loaded before
    caller = AgentCalls("a", "local/a", loading=lambda: sum(loads))

    def send() -> dict[str, Any]:
        if len(loads) == 1:
            clock.sleep(4.0)
            loads.append(4.0)
        clock.sleep(1.5)
        return {"text": "answer", "usage": {"input_tokens": 4, "output_tokens": 3}}

    calls = Calls(clock=clock)
    first, second = (calls.answer(calls.prepare(caller, {"n": n}), send) for n in range(2))
    assert (first.seconds, second.seconds) == (1.5, 1.5)
    assert clock.slept == [4.0, 1.5, 1.5]
