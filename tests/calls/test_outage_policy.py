"""Inside a study an endpoint that is down is waited for, and what it did not say is no fact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from moa_dspy.agent import Agent
from moa_dspy.calls import Budget, Calls, Ledger, OutagePolicy, call_scope
from moa_dspy.calls.request import ProbePolicy
from moa_dspy.errors import BudgetReachedError, OutageError
from moa_dspy.pool import Pool
from tests.calls.fake_clock import FakeClock
from tests.servers.chat import ChatServer, Reply, Script, serving

EMPTY = Reply(body=b'{"choices": []}')
PASSING = {
    "busy": Reply(status=429, retry_after="3"),
    "down": Reply(status=503),
    "half a reply": Reply(missing_bytes=9),
    "no JSON": Reply(body=b"<html>oops</html>"),
    "no choices": EMPTY,
}


def pool_of(
    server: ChatServer,
    *,
    outage_seconds: float = 900,
    budget: Budget | None = None,
    probe_retries: int | None = None,
) -> Pool:
    """Return one agent; with ``probe_retries`` it is probed, and retried as often."""
    clock = FakeClock()
    calls = Calls(clock=clock, ledger=Ledger(budget))
    is_probed = probe_retries is not None
    calls.outage_policy = ProbePolicy() if is_probed else OutagePolicy(outage_seconds, clock)
    n = probe_retries or 0
    agent = Agent(name="a", model="openai/x", api_base=server.url, num_retries=n)
    return Pool([agent], calls=calls)


def ask(pool: Pool) -> Any:
    lm: Any = pool.lm("a")
    return lm("q")


@pytest.mark.parametrize("fault", PASSING)
def test_a_failure_for_the_moment_is_asked_again_and_leaves_no_trace(fault: str) -> None:
    with serving([PASSING[fault]] * 6 + [Reply("Paris")]) as server:
        pool = pool_of(server)
        with call_scope() as scope:
            assert ask(pool) == ["Paris"]
        assert len(server.bodies) == pool.calls.ledger.spending.made == 7
    # A disturbed study must look like an undisturbed one: one call, that of the answer.
    assert [(facts.failure, facts.attempt) for facts in scope.log] == [(None, 7)]
    (call,) = pool.calls.store._calls.values()  # type: ignore[attr-defined]  # the memory
    assert (call.failure, call.attempt) == (None, 7)


def test_replies_that_never_hold_an_answer_are_the_models_failure_after_ten() -> None:
    with serving(EMPTY) as server:
        pool = pool_of(server)
        with pytest.raises(dspy.LMProviderError, match="holds no answer"):
            ask(pool)
        assert len(server.bodies) == 10
    (call,) = pool.calls.store._calls.values()  # type: ignore[attr-defined]  # the memory
    assert "holds no answer" in str(call.failure)


def test_a_retry_that_mends_a_probe_leaves_no_failed_call() -> None:
    # Else a study whose main process was killed in its probe counts other calls per question.
    with serving([Reply(status=503), Reply("Paris")]) as server:
        pool = pool_of(server, probe_retries=2)
        with call_scope() as scope:
            assert ask(pool) == ["Paris"]
    assert [(facts.failure, facts.attempt) for facts in scope.log] == [(None, 2)]


def test_a_probe_is_given_up_after_the_agents_own_retries_and_fails_once() -> None:
    with serving(Reply(status=503)) as server:
        pool = pool_of(server, probe_retries=2)
        with call_scope() as scope, pytest.raises(dspy.LMServerError):
            ask(pool)
        assert len(server.bodies) == 3
    assert [facts.attempt for facts in scope.log] == [3]
    assert "503" in str(scope.log[0].failure)


def test_what_the_endpoint_refuses_is_not_asked_again() -> None:
    with serving(Reply(status=400)) as server:
        with pytest.raises(dspy.LMInvalidRequestError):
            ask(pool_of(server))
        assert len(server.bodies) == 1


def test_an_outage_ends_the_study_and_says_whose_it_is() -> None:
    with serving(Reply(status=503)) as server:
        pool = pool_of(server, outage_seconds=60)
        with pytest.raises(Exception, match="does not answer") as caught:
            ask(pool)
        causes = [caught.value, caught.value.__cause__]
        assert any(isinstance(cause, OutageError) for cause in causes), causes
        assert server.url in str(caught.value)
        assert isinstance(pool.calls.clock, FakeClock)
        assert 60 < sum(pool.calls.clock.slept) < 60 + 64
    assert pool.calls.store._calls == {}  # type: ignore[attr-defined]  # the memory


def test_who_is_told_to_come_back_after_the_outage_would_be_given_up_is_told_at_once() -> None:
    with serving(Reply(status=429, retry_after="3600")) as server:
        # The longest wait is named, not the time that has passed, which is none.
        message = r"asks to wait 3600 s, and the longest wait is 60 s \(`outage_seconds`\): "
        with pytest.raises(Exception, match=message) as caught:
            ask(pool_of(server, outage_seconds=60))
        assert len(server.bodies) == 1
    assert "\n" not in str(caught.value)


def test_an_answer_to_anybody_begins_the_outage_anew() -> None:
    busy = Reply(status=503)
    with serving([busy] * 6 + [Reply("one")] + [busy] * 6 + [Reply("two")]) as server:
        pool = pool_of(server, outage_seconds=64)
        assert ask(pool) == ["one"]
        lm: Any = pool.lm("a")
        assert lm("another") == ["two"]
    assert isinstance(pool.calls.clock, FakeClock)
    assert sum(pool.calls.clock.slept) > 0


def test_an_endpoint_that_is_down_ends_with_the_budget() -> None:
    with serving(Reply(status=503)) as server:
        with pytest.raises(Exception, match="budget of 5 calls is reached") as caught:
            ask(pool_of(server, budget=Budget(calls=5)))
        causes = [caught.value, caught.value.__cause__]
        assert any(isinstance(cause, BudgetReachedError) for cause in causes)
        assert len(server.bodies) == 5


def by_question(bad: dict[str, Reply], *, is_down: Callable[[], bool] = lambda: False) -> Script:
    """Answer every question but the bad ones; while it is down, none."""

    def script(body: dict[str, Any]) -> Reply:
        if is_down():
            return Reply(status=503)
        return bad.get(body["messages"][-1]["content"], Reply("Paris"))

    return script


def asked(server: ChatServer) -> Counter[str]:
    return Counter(body["messages"][-1]["content"] for body in server.bodies)


@pytest.mark.parametrize("fault", PASSING)
def test_a_question_that_always_fails_while_others_are_answered_is_the_models_failure(
    fault: str,
) -> None:
    with serving(by_question({"bad": PASSING[fault]})) as server:
        pool = pool_of(server)
        lm: Any = pool.lm("a")
        assert lm("good") == ["Paris"]
        with call_scope() as scope, pytest.raises(dspy.LMError):
            lm("bad")
        # After 5 and 10 attempts the question that was answered shows that the model still works;
        # it is counted in the budget.
        assert asked(server) == {"good": 3, "bad": 10}
        assert pool.calls.ledger.spending.made == 13
    assert [(facts.failure is not None, facts.attempt) for facts in scope.log] == [(True, 10)]
    stored = pool.calls.store._calls.values()  # type: ignore[attr-defined]  # the memory
    assert sorted(call.failure is None for call in stored) == [False, True]


def test_questions_that_fail_are_given_up_sooner_once_further_attempts_never_helped() -> None:
    bad = {f"bad {n}": Reply(status=503) for n in range(6)}
    with serving(by_question(bad)) as server:
        lm: Any = pool_of(server).lm("a")
        lm("good")
        for question in bad:
            with pytest.raises(dspy.LMServerError):
                lm(question)
        # When the third has failed 5 times, further attempts are known to be in vain: no answered
        # request needed more than 1 attempt, so 2 * 1 + 1 = 3 are enough.
        assert [asked(server)[question] for question in bad] == [10, 10, 5, 3, 3, 3]


def test_questions_are_not_given_up_before_twice_the_attempts_that_helped_another() -> None:
    bad = {f"bad {n}": Reply(status=503) for n in range(4)}
    with serving(by_question(bad, is_down=lambda: len(server.bodies) < 6)) as server:
        lm: Any = pool_of(server).lm("a")
        assert lm("late") == ["Paris"]
        for question in bad:
            with pytest.raises(dspy.LMServerError):
                lm(question)
        # One needed 6 attempts: 2 * 6 + 1 = 13.
        assert [asked(server)[question] for question in bad] == [13, 13, 13, 13]


def test_a_question_is_not_given_up_while_its_model_answers_nothing_else_either() -> None:
    # After the first answer the endpoint is down for 30 requests: longer than 10 attempts.
    with serving(by_question({}, is_down=lambda: 1 < len(server.bodies) <= 31)) as server:
        pool = pool_of(server, outage_seconds=3_600)
        lm: Any = pool.lm("a")
        lm("good")
        with call_scope() as scope:
            assert lm("another") == ["Paris"]
        # Five times 5 attempts and a check fail; the next attempt is answered.
        assert asked(server) == {"good": 6, "another": 26}
    assert [(facts.failure, facts.attempt) for facts in scope.log] == [(None, 26)]


def test_a_check_of_the_model_is_not_made_beyond_the_budget() -> None:
    with serving(by_question({"bad": Reply(status=503)})) as server:
        lm: Any = pool_of(server, budget=Budget(calls=6)).lm("a")
        lm("good")
        with pytest.raises(Exception, match="budget of 6 calls is reached"):
            lm("bad")
        assert len(server.bodies) == 6
