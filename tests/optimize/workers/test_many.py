"""A study is the same with one worker or many, and whoever dies."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.calls import CallStore
from moa_dspy.optimize import run_study
from tests.bench.study_world import FaultServer, decided, stored_names, write_study

Start = Callable[..., "subprocess.Popen[str]"]


def ended(process: subprocess.Popen[str]) -> str:
    """Wait for a worker and return what it printed."""
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out


def asked(server: FaultServer) -> list[int]:
    return [len(askers) for askers in server.stats()["asked"].values()]


def alone(server: FaultServer, folder: Path) -> dict[str, Any]:
    """Run the study as one process does, against a server of equal answers; return the result."""
    result = run_study(write_study(folder, server.base()), out=folder / "out")
    return decided(json.loads(json.dumps(result.to_json())))


def await_(happens: Callable[[], bool]) -> None:
    last = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < last
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [2, 4])
def test_workers_find_what_one_process_finds_and_pay_nothing_twice(
    n_workers: int, server: FaultServer, storage: str, start: Start, tmp_path: Path
) -> None:
    whole = alone(server, tmp_path / "alone")
    n_alone = len(asked(server))
    study = write_study(tmp_path / "shared", server.base(latency_ms=20))
    out = tmp_path / "out"
    workers = [
        start("worker", study, "--storage", storage, "--threads", "2") for _ in range(n_workers)
    ]
    printed = [ended(worker) for worker in workers]
    # One who comes late finds the result, and asks nobody.
    result = run_study(study, out=out, storage=storage)
    assert decided(json.loads((out / "result.json").read_text("utf-8"))) == whole
    assert result.calls_made == n_alone
    assert asked(server) == [2] * n_alone, "once by the process alone, once by all workers"
    assert len({text.splitlines()[-1] for text in printed}) == 1
    assert "finished: " in printed[0]
    tasks = [int(text.split("tasks done by this worker: ")[1].split()[0]) for text in printed]
    assert sum(n > 0 for n in tasks) > 1, tasks


@pytest.mark.slow
def test_another_worker_goes_on_when_the_coordinator_is_killed(
    server: FaultServer, storage: str, start: Start, tmp_path: Path
) -> None:
    whole = alone(server, tmp_path / "alone")
    n_alone = len(asked(server))
    study = write_study(tmp_path / "shared", server.base(latency_ms=50))
    first = start("worker", study, "--storage", storage, "--threads", "2", KEY="first")
    await_(lambda: sum(asked(server)) > n_alone)
    second = start("worker", study, "--storage", storage, "--threads", "2", KEY="second")
    await_(lambda: sum(asked(server)) > n_alone + 60)
    store = CallStore(storage)
    claimed = "SELECT owner FROM claims WHERE key = 'coordinator:shared'"
    ((owner,),) = store.database.rows(claimed)
    store.close()
    assert int(owner.split("/")[1]) == first.pid
    first.kill()
    first.wait()
    ended(second)
    out = tmp_path / "out"
    run_study(study, out=out, storage=storage)
    assert decided(json.loads((out / "result.json").read_text("utf-8"))) == whole
    assert len(stored_names(storage)) == n_alone
    # What the killed one had on its way, on two threads, may have been asked again.
    assert 0 <= sum(asked(server)) - 2 * n_alone <= 2
