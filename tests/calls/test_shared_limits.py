"""The limits of an endpoint hold for all processes on one store together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.agent import Agent
from moa_dspy.calls import Calls, CallStore
from moa_dspy.calls.request import Limiter
from moa_dspy.pool import Pool
from tests.servers.chat import ChatServer, Reply, serving

Place = Path | str


@pytest.fixture
def stores(place: Place) -> Iterator[list[CallStore]]:
    """Return three stores in one place, as three processes have them."""
    opened = [CallStore(place) for _ in range(3)]
    yield opened
    for store in opened:
        store.close()


def pool_of(server: ChatServer, store: CallStore, **values: Any) -> Pool:
    agent = Agent(name="a", model="openai/x", api_base=server.url, **values)
    return Pool([agent], calls=Calls(store))


def test_max_concurrent_counts_over_all_processes(stores: list[CallStore]) -> None:
    def slowly(_: dict[str, Any]) -> Reply:
        time.sleep(0.02)
        return Reply("Paris")

    with serving(slowly) as server:
        lms: list[Any] = [pool_of(server, store, max_concurrent=2).lm("a") for store in stores]
        with ThreadPoolExecutor(12) as threads:
            list(threads.map(lambda n: lms[n % 3](f"question {n}"), range(24)))
        assert (len(server.bodies), server.n_most) == (24, 2)


def test_a_slot_is_free_again_when_the_request_failed(stores: list[CallStore]) -> None:
    with serving([Reply(status=400), Reply("Paris")]) as server:
        first, second, _ = (pool_of(server, store, max_concurrent=1) for store in stores)
        lm: Any = first.lm("a")
        with pytest.raises(Exception, match="400"):
            lm("q")
        other: Any = second.lm("a")
        assert other("q") == ["Paris"]
    query = "SELECT count(*) FROM claims WHERE substr(key, 1, 5) = 'slot:'"
    assert stores[0].database.rows(query)[0][0] == 0


@pytest.mark.slow
def test_what_one_process_was_told_all_keep(stores: list[CallStore]) -> None:
    gate = threading.Event()
    with serving([Reply(status=429, retry_after="2"), Reply("Paris")]) as server:
        pool, other, _ = (pool_of(server, store, num_retries=0) for store in stores)
        lm: Any = pool.lm("a")
        with pytest.raises(Exception, match="429"):
            lm("q")
        limiter = other.calls.limiters.of(server.url)
        entry = stores[1].limits.acquire(limiter)
        assert not entry.is_open
        assert 1 < entry.wait_seconds <= 2
        gate.set()
        started = time.monotonic()
        other_lm: Any = other.lm("a")
        assert other_lm("another") == ["Paris"]
        assert time.monotonic() - started >= 1


def test_an_endpoint_without_a_name_has_no_shared_limits(stores: list[CallStore]) -> None:
    assert not stores[0].limits.applies_to(Limiter(1))
