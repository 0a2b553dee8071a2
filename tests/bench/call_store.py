"""Times the call store against the bare databases under it.

Usage: python tests/bench/call_store.py [--json] [--calls N] [--hits N]

A store in SQLite is filled with N made-up calls of a usual size (default 1,000,000), one in
PostgreSQL with as many as are looked up. Printed, on one machine and in one thread:

node_lookups_per_second        answers that a search knows already, by node and example
sqlite_hits_over_raw_sqlite3   hits per second over those of a bare SELECT of the same row by
                               the same key, with Python's sqlite3
postgresql_hits_over_bare_select   the same with psycopg, autocommit, on the same server; null
                               where no server can be had
open_seconds                   opening the store of N calls, and its first hit
replay_rss_mb                  largest size of a process that has the library, DSPy and Optuna
                               loaded and gets 140,000 calls from that store

A hit is what a replay does: ``Calls.known`` of a request whose answer this process has not seen.
Ours and the bare SELECT take turns, some hundred rows at a time; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).parents[2]))

from moa_dspy.calls import CallRequest, Calls, CallStore
from tests.bench.made_up_calls import CALLER, fill, request
from tests.postgresql import AbsentError, PostgreSQLServer

N_REPLAYED, N_CHUNKS, N_NODES = 140_000, 50, 200_000
COLUMNS = "key, agent, identity, sample, request, response, prompt_tokens, completion_tokens, usd"
SELECT = f"SELECT {COLUMNS}, seconds, failure, attempt, time FROM calls WHERE key = "


def per_second(task: Callable[[Any], object], inputs: Sequence[Any]) -> float:
    """Return how often per second ``task`` can be done."""
    start = perf_counter()
    for each in inputs:
        task(each)
    return len(inputs) / (perf_counter() - start)


def asks(n_hits: int, n_calls: int) -> list[CallRequest]:
    """Return requests of stored calls, each once, in no order."""
    numbers = random.Random(0).sample(range(n_calls), min(n_hits, n_calls))
    return [Calls().prepare(CALLER, request(number)) for number in numbers]


def rates(place: Path | str, select: Callable[[str], object], *, n_hits: int, n_calls: int) -> Any:
    """Return hits over bare selects, hits per second and bare selects per second."""
    store = CallStore(place, memory_bytes=0)
    ours: list[float] = []
    bare: list[float] = []
    known = Calls(store).known
    for number, asked in enumerate(chunks(asks(n_hits, n_calls))):
        keys = [ask.key for ask in asked]
        # In turn, and each first as often: what comes second finds the pages read.
        turns: list[Any] = [(ours, known, asked), (bare, select, keys)]
        for rate, task, inputs in turns if number % 2 else reversed(turns):
            rate.append(per_second(task, inputs))
    store.close()
    ratios = [stored / its for stored, its in zip(ours, bare, strict=True)]
    return median(ratios), median(ours), median(bare)


def chunks(asked: Sequence[CallRequest]) -> list[Sequence[CallRequest]]:
    size = max(1, len(asked) // N_CHUNKS)
    return [asked[start : start + size] for start in range(0, len(asked), size)]


def of_sqlite(path: Path, *, n_hits: int, n_calls: int) -> dict[str, float]:
    connection = sqlite3.connect(path, isolation_level=None)
    query = f"{SELECT}?"

    def select(key: str) -> object:
        return connection.execute(query, (key,)).fetchone()

    found = rates(path, select, n_hits=n_hits, n_calls=n_calls)
    connection.close()
    names = ("hits_over_raw_sqlite3", "hits_per_second", "raw_selects_per_second")
    return {f"sqlite_{name}": value for name, value in zip(names, found, strict=True)}


def of_postgresql(*, n_hits: int) -> dict[str, float | None]:
    names = ("hits_over_bare_select", "hits_per_second", "bare_selects_per_second")
    try:
        server = PostgreSQLServer()
    except AbsentError as error:
        print(f"NOT MEASURED: {error}", file=sys.stderr)
        return dict.fromkeys((f"postgresql_{name}" for name in names), None)
    try:
        url = server.new_database()
        fill(url, n_hits)
        with psycopg.connect(url, autocommit=True) as connection:
            query = f"{SELECT}%s"

            def select(key: str) -> object:
                return connection.execute(query, (key,)).fetchone()

            found = rates(url, select, n_hits=n_hits, n_calls=n_hits)
    finally:
        server.close()
    return {f"postgresql_{name}": value for name, value in zip(names, found, strict=True)}


def open_seconds(path: Path) -> float:
    (ask,) = asks(1, 1)
    start = perf_counter()
    store = CallStore(path)
    if store.get(ask.key) is None:
        raise AssertionError("the store does not have what was put there")
    seconds = perf_counter() - start
    store.close()
    return seconds


def node_lookups_per_second() -> float:
    """Return how often per second a search finds what an agent answered to an example."""
    from moa_dspy.optimize.nodes import NodeCache
    from moa_dspy.prediction import Question, Response

    memory = NodeCache()
    questions = [Question(f"node {n}", "agent", 0, None, {}) for n in range(N_NODES // 200)]
    places = [(f"row {n}", None) for n in range(200)]
    for place in places:
        memory.put(place, questions, [Response("agent", values={}, text="t")] * len(questions))
    looked_up = [(question.node, place) for question in questions for place in places]
    return per_second(lambda pair: memory.known(*pair), looked_up)


def replay_rss_mb(path: Path, *, n_calls: int) -> float:
    """Return the largest size of another process that replays, in megabytes."""
    command = [sys.executable, __file__, "--replay", str(path), "--calls", str(n_calls)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(out.stdout)


def replay(path: Path, *, n_calls: int) -> Iterator[float]:
    import moa_dspy.optimize  # noqa: F401  # what a replay has loaded

    calls = Calls(CallStore(path), replay_only=True)
    for number in range(min(N_REPLAYED, n_calls)):
        calls.known(calls.prepare(CALLER, request(number)))
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield kilobytes / (1024 if sys.platform != "darwin" else 1024**2)


def measure(*, n_calls: int, n_hits: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls.sqlite"
        fill(path, n_calls)
        return {
            "node_lookups_per_second": node_lookups_per_second(),
            **of_sqlite(path, n_hits=n_hits, n_calls=n_calls),
            **of_postgresql(n_hits=n_hits),
            "open_seconds": open_seconds(path),
            "replay_rss_mb": replay_rss_mb(path, n_calls=n_calls),
            "stored_calls": n_calls,
            "bytes_per_stored_call": path.stat().st_size / n_calls,
        }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Time the call store.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--calls", type=int, default=1_000_000, help="calls in the store")
    parser.add_argument("--hits", type=int, default=20_000, help="calls that are looked up")
    parser.add_argument("--replay", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.replay:
        print(*replay(options.replay, n_calls=options.calls))
        return
    printed = measure(n_calls=options.calls, n_hits=options.hits)
    if options.json:
        print(json.dumps(printed))
        return
    for name, value in printed.items():
        print(f"{name:34} {'-' if value is None else format(value, ',.4g')}")


if __name__ == "__main__":
    main(sys.argv[1:])
