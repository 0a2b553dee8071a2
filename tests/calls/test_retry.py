from __future__ import annotations

import asyncio
import os
from typing import Any

import dspy
import pytest
from dspy import lm15

from moa_dspy.agent import Agent
from moa_dspy.calls import AgentCalls, Calls, RetryPolicy, call_scope
from moa_dspy.errors import BudgetReachedError, PoolError
from moa_dspy.pool import Pool
from tests.calls.fake_clock import FakeClock
from tests.servers.chat import ChatServer, Reply, serving

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read when LiteLLM is imported: no download

BUSY, FINE = Reply(status=503), Reply("Paris")


def pool_of(server: ChatServer, **values: Any) -> Pool:
    agent = Agent(name="a", model="openai/x", api_base=server.url, **values)
    return Pool([agent], calls=Calls(clock=FakeClock()))


def slept(pool: Pool) -> list[float]:
    assert isinstance(pool.calls.clock, FakeClock)
    return pool.calls.clock.slept


def ask(pool: Pool, *, is_async: bool) -> list[str]:
    lm: Any = pool.lm("a")
    return list(asyncio.run(lm.acall("q")) if is_async else lm("q"))


def test_waits_double_at_most_to_a_minute_and_are_drawn_by_the_calls_key() -> None:
    policy, error = RetryPolicy(num_retries=99), lm15.ServerError("down")
    waits = [
        [policy.wait_seconds(error, attempt=n, key=f"key {k}") or 0.0 for k in range(200)]
        for n in (1, 2, 3, 7, 20)
    ]
    for drawn, most in zip(waits, (1, 2, 4, 60, 60), strict=True):
        # Full jitter: 200 draws reach into both ends of 0..most.
        assert 0 <= min(drawn) < 0.1 * most
        assert 0.9 * most < max(drawn) <= most
    again = [policy.wait_seconds(error, attempt=2, key=f"key {k}") for k in range(200)]
    assert again == waits[1]


@pytest.mark.parametrize(
    ("error", "is_retried"),
    [
        (lm15.RateLimitError("slow down"), True),
        (lm15.TimeoutError("slow"), True),
        (lm15.ServerError("down"), True),
        (lm15.TransportError("reset"), True),
        (dspy.LMServerError("down"), True),
        (dspy.LMTransportError("reset"), True),
        (lm15.AuthError("who?"), False),
        (lm15.BillingError("pay"), False),
        (lm15.InvalidRequestError("what?"), False),
        (lm15.ContextLengthError("long"), False),
        (lm15.ProviderError("no JSON"), False),
        (dspy.LMInvalidRequestError("what?"), False),
        (BudgetReachedError("spent"), False),
        (PoolError("no key"), False),
        (ValueError("a bug"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_what_dspy_calls_retryable_is_tried_again_and_nothing_else(
    error: BaseException, is_retried: bool
) -> None:
    wait = RetryPolicy(1).wait_seconds(error, attempt=1, key="k")
    assert (wait is not None) is is_retried
    assert RetryPolicy(1).wait_seconds(error, attempt=2, key="k") is None


def test_errors_of_litellm_itself_are_told_apart_as_well() -> None:
    from litellm.exceptions import AuthenticationError, RateLimitError

    busy = RateLimitError("slow down", llm_provider="x", model="m")
    assert RetryPolicy(1).wait_seconds(busy, attempt=1, key="k") is not None
    denied = AuthenticationError("who?", llm_provider="x", model="m")
    assert RetryPolicy(1).wait_seconds(denied, attempt=1, key="k") is None


def test_a_servers_hint_is_waited_for_and_one_of_hours_is_not() -> None:
    def wait(seconds: float) -> float | None:
        error = lm15.RateLimitError("slow down", retry_after=seconds)
        return RetryPolicy(1).wait_seconds(error, attempt=1, key="k")

    jitter = wait(0)
    assert jitter is not None
    assert wait(600) == 600 + jitter
    assert wait(601) is None


@pytest.mark.parametrize("is_async", [False, True])
def test_every_attempt_is_paid_logged_and_numbered(is_async: bool) -> None:
    with serving([BUSY, BUSY, FINE]) as server:
        pool = pool_of(server)
        with call_scope() as scope:
            assert ask(pool, is_async=is_async) == ["Paris"]
        assert len(server.bodies) == pool.calls.ledger.spending.made == 3
    assert [facts.attempt for facts in scope.log] == [1, 2, 3]
    assert ["status 503" in str(facts.failure) for facts in scope.log] == [True, True, False]
    (call,) = pool.calls.store._calls.values()  # type: ignore[attr-defined]  # the memory
    assert (call.attempt, call.failure) == (3, None)
    # The clock stood still but for the two waits.
    assert call.time == pytest.approx(1_700_001_000.0 + sum(slept(pool)))
    policy, error = RetryPolicy(3), lm15.ServerError("busy")
    assert slept(pool) == [
        pytest.approx(policy.wait_seconds(error, attempt=n, key=call.key)) for n in (1, 2)
    ]


@pytest.mark.parametrize("is_async", [False, True])
def test_the_last_failure_is_raised_and_stored_when_there_are_no_more_attempts(
    is_async: bool,
) -> None:
    with serving(BUSY) as server:
        pool = pool_of(server, num_retries=1)
        with pytest.raises(dspy.LMServerError, match="status 503"):
            ask(pool, is_async=is_async)
        assert len(server.bodies) == pool.calls.ledger.spending.made == 2
    (call,) = pool.calls.store._calls.values()  # type: ignore[attr-defined]  # the memory
    assert call.attempt == 2
    assert "ServerError: status 503" in str(call.failure)


def test_a_call_is_dated_by_its_beginning() -> None:
    clock = FakeClock()
    calls = Calls(clock=clock)

    def send() -> dict[str, Any]:
        clock.sleep(5.0)
        return {}

    call = calls.answer(calls.prepare(AgentCalls("a", "served/a"), {"q": "?"}), send)
    assert (call.time, call.seconds) == (1_700_001_000.0, 5.0)


@pytest.mark.parametrize(("status", "n_asked"), [(400, 1), (401, 1), (429, 2), (500, 2)])
def test_a_refused_request_is_not_sent_again(status: int, n_asked: int) -> None:
    with serving([Reply(status=status), Reply(status=400)]) as server:
        with pytest.raises(dspy.LMError):
            ask(pool_of(server), is_async=False)
        assert len(server.bodies) == n_asked


def test_a_retry_after_of_the_server_is_kept_to() -> None:
    with serving([Reply(status=429, retry_after="7"), FINE]) as server:
        pool = pool_of(server)
        assert ask(pool, is_async=False) == ["Paris"]
    (wait,) = slept(pool)
    assert 7 <= wait <= 8
