"""Times one study with 1, 2, 4 and 8 worker processes on one PostgreSQL.

Usage: python tests/bench/scale_out.py [--json] [--workers 1 2 4 8] [--val N] [--test N] ...

Models answer after 300 ms and every worker asks 4 questions at a time. It is timed from the moment
when all workers are ready, and the server lets the first answer through, to the moment when the
result is in the database: probe, search, test and what one process alone does are all in it.

speedup_at_N: seconds of one worker over seconds of N.
duplicate_calls: requests that any of the studies made more than once.
same_result: whether all found the same, whatever the number of workers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from moa_dspy.calls import CallStore
from tests.bench.study_world import (
    ROOT,
    FaultServer,
    decided,
    fault_server,
    write_study,
)
from tests.postgresql import PostgreSQLServer


def start(study: Path, storage: str, num_threads: int) -> subprocess.Popen[bytes]:
    arguments = ["worker", str(study), "--storage", storage, "--threads", str(num_threads)]
    # A worker waits for answers most of the time: threads of linear algebra are only in the way.
    return subprocess.Popen(
        [sys.executable, "-m", "moa_dspy", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def await_workers(database: PostgreSQLServer, storage: str, n_workers: int) -> None:
    """Wait until every worker has a connection: all is imported and read then."""
    name = storage.rpartition("/")[2]
    query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'"
    while int(str(database.execute(query)[0][0])) < n_workers:
        time.sleep(0.1)
    time.sleep(1.0)


def await_result(storage: str) -> dict[str, Any]:
    store = CallStore(storage)
    query = "SELECT result FROM shared_studies WHERE result IS NOT NULL"
    while not (rows := store.database.rows(query)):
        time.sleep(0.02)
    store.close()
    found: dict[str, Any] = json.loads(rows[0][0])
    return found


def timed(
    database: PostgreSQLServer, server: FaultServer, study: Path, n_workers: int, num_threads: int
) -> tuple[float, dict[str, Any]]:
    """Return the seconds of a study in a new database, and its result."""
    storage = database.new_database()
    CallStore(storage).close()
    server.get("/gate/0")
    workers = [start(study, storage, num_threads) for _ in range(n_workers)]
    try:
        await_workers(database, storage, n_workers)
        started = time.monotonic()
        server.get("/gate/1")
        result = await_result(storage)
        seconds = time.monotonic() - started
        for worker in workers:
            _, errors = worker.communicate(timeout=60)
            assert worker.returncode == 0, errors.decode()
    finally:
        for worker in workers:
            worker.kill()
    return seconds, result


def measure(options: argparse.Namespace) -> dict[str, Any]:
    printed: dict[str, Any] = {}
    seconds: dict[int, float] = {}
    results: list[dict[str, Any]] = []
    n_duplicates = 0
    database = PostgreSQLServer()
    try:
        with tempfile.TemporaryDirectory() as folder:
            for n_workers in options.workers:
                # A server of its own for each study: its count is that of this study.
                with fault_server() as server:
                    base = server.base(latency_ms=options.latency_ms)
                    sizes, n_trials = (options.val, options.test), options.trials
                    study = write_study(
                        Path(folder), base, sizes=sizes, n_trials=n_trials, max_depth=options.depth
                    )
                    taken, result = timed(database, server, study, n_workers, options.threads)
                    asked = server.stats()["asked"]
                n_calls = sum(map(len, asked.values()))
                n_duplicates += n_calls - len(asked)
                seconds[n_workers] = taken
                results.append(decided(result))
                ideal = n_calls * options.latency_ms / 1_000 / (n_workers * options.threads)
                printed |= {
                    f"seconds_of_{n_workers}": taken,
                    f"seconds_over_ideal_of_{n_workers}": taken / ideal,
                    "calls": n_calls,
                }
    finally:
        database.close()
    if 1 in seconds:
        printed |= {f"speedup_at_{n}": seconds[1] / taken for n, taken in seconds.items()}
    printed["duplicate_calls"] = n_duplicates
    printed["same_result"] = all(result == results[0] for result in results)
    return printed


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Time a study with 1, 2, 4 and 8 workers.")
    parser.add_argument("--json", action="store_true", help="print on one line, for programs")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--threads", type=int, default=4, help="of a worker")
    parser.add_argument("--val", type=int, default=192, help="rows")
    parser.add_argument("--test", type=int, default=192, help="rows")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--latency-ms", type=int, default=300)
    options = parser.parse_args(arguments)
    print(json.dumps(measure(options), indent=None if options.json else 2))


if __name__ == "__main__":
    main(sys.argv[1:])
