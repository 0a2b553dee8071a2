"""All who work on a study in a database work on the same one."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from moa_dspy.calls import CallStore
from moa_dspy.errors import OutageError, StudyError
from moa_dspy.optimize import run_study
from moa_dspy.optimize.run import work_on
from moa_dspy.optimize.study import PreparedStudy
from tests.bench.study_world import ROOT, FaultServer, decided, fault_server, write_study
from tests.servers.chat import Reply, serving

Start = Callable[..., "subprocess.Popen[str]"]
KEY = "sk-planted-0123456789"


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shared.sqlite'}"


def n_asked(server: FaultServer) -> int:
    return sum(map(len, server.stats()["asked"].values()))


@pytest.mark.slow
def test_a_changed_data_file_is_an_error_that_says_so(
    server: FaultServer, storage: str, tmp_path: Path
) -> None:
    study, out = write_study(tmp_path, server.base(), sizes=(4, 4), n_trials=3), tmp_path / "out"
    run_study(study, out=out, storage=storage)
    n_before = n_asked(server)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text("utf-8").replace("val 3", "val 13"), "utf-8")
    with pytest.raises(StudyError, match=r"holds another study 'shared': data changed since"):
        run_study(study, out=out, storage=storage, resume=True)
    with pytest.raises(StudyError, match="data changed since"):
        work_on(PreparedStudy.read(study), storage, out=out, is_helper=True)
    assert n_asked(server) == n_before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "name"),
    [(("seed = 1", "seed = 2"), "seed"), (("max_tokens = 64", "max_tokens = 65"), "agents")],
)
def test_another_study_of_the_same_name_is_refused(
    change: tuple[str, str], name: str, server: FaultServer, storage: str, tmp_path: Path
) -> None:
    study = write_study(tmp_path, server.base(), sizes=(4, 4), n_trials=3)
    run_study(study, out=tmp_path / "out", storage=storage)
    study.write_text(study.read_text("utf-8").replace(*change), "utf-8")
    with pytest.raises(StudyError, match=f"another study 'shared': {name} changed since"):
        run_study(study, out=tmp_path / "out", storage=storage)


def test_resume_needs_a_study_that_somebody_began(
    server: FaultServer, storage: str, tmp_path: Path
) -> None:
    study = write_study(tmp_path, server.base(), sizes=(4, 4))
    with pytest.raises(StudyError, match=r"nothing to resume: .* has no study 'shared'"):
        run_study(study, out=tmp_path / "out", storage=storage, resume=True)
    assert n_asked(server) == 0


@pytest.mark.slow
def test_a_larger_budget_reopens_a_study_for_who_runs_it_and_is_refused_for_who_helps(
    server: FaultServer, storage: str, tmp_path: Path
) -> None:
    def with_budget(calls: int) -> Path:
        more = f"[budget]\ncalls = {calls}\n"
        return write_study(tmp_path, server.base(), sizes=(6, 6), n_trials=8, more=more)

    out = tmp_path / "out"
    first = run_study(with_budget(60), out=out, storage=storage)
    assert "budget of 60 calls is reached" in str(first.stopped_by)
    assert first.calls_made == n_asked(server) <= 60
    study = with_budget(500)
    with pytest.raises(StudyError, match="budget changed since"):
        work_on(PreparedStudy.read(study), storage, out=out, is_helper=True, writes_files=False)
    second = run_study(study, out=out, storage=storage)
    assert second.stopped_by is None
    assert second.calls_made == n_asked(server)
    assert len(second.trials) > len(first.trials)


@pytest.mark.slow
def test_an_outage_stops_a_study_that_goes_on_later_as_if_nothing_had_happened(
    server: FaultServer, storage: str, tmp_path: Path
) -> None:
    whole = run_study(write_study(tmp_path / "a", server.base()), out=tmp_path / "whole")
    # The proxy in front of the models answers the three probes, and then nothing.
    study = write_study(tmp_path / "b", server.base(), more="[calls]\noutage_seconds = 0.2\n")

    class Down:
        """Pulls the plug when the probes are over."""

        def __init__(self, plug: Any) -> None:
            self.plug = plug

        def __call__(self, snapshot: Any, /) -> None:
            if snapshot.stage == "search":
                self.plug()

    with fault_server() as other:
        text = study.read_text("utf-8").replace(str(server.port), str(other.port))
        study.write_text(text, "utf-8")
        with pytest.raises(OutageError, match=r"does not answer.* the same command continues"):
            run_study(study, out=tmp_path / "out", storage=storage, show=Down(other.kill))
        answered = CallStore(storage)
        n_kept = len(answered)
        answered.close()
        assert n_kept >= 36, "every answer to the single agents"
        # The same address answers again.
        with fault_server(port=other.port) as again:
            resumed = run_study(study, out=tmp_path / "out", storage=storage, resume=True)
            n_again = sum(map(len, again.stats()["asked"].values()))
    assert decided(resumed.to_json()) == decided(whole.to_json())
    assert n_again + n_kept == whole.calls_made


def dump(storage: str) -> bytes:
    """Return everything that a database holds, as it lies there, and its calls unpacked."""
    store = CallStore(storage)
    calls = repr(list(store)).encode()
    store.close()
    if storage.startswith("sqlite"):
        with sqlite3.connect(storage.removeprefix("sqlite:///")) as connection:
            return calls + "\n".join(connection.iterdump()).encode()
    with psycopg.connect(storage) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
        found = [connection.execute(f"SELECT * FROM {name}").fetchall() for (name,) in tables]
        return calls + repr(found).encode()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_key_is_in_nothing_that_a_worker_leaves(
    kind: str, request: pytest.FixtureRequest, server: FaultServer, start: Start, tmp_path: Path
) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    if kind == "postgresql":
        storage = str(request.getfixturevalue("postgresql_url"))
    agent = 'api_key_env = "PLANTED_API_KEY"\nnum_retries = 9\ntimeout_seconds = 1.0\n'
    base = server.base(fault_percent=20)
    study = write_study(tmp_path, base, sizes=(5, 5), n_trials=4, agent=agent)
    out = tmp_path / "out"
    worker = start("worker", study, "--storage", storage, "--out", out, PLANTED_API_KEY=KEY)
    printed = worker.communicate(timeout=120)
    assert worker.returncode == 0, printed
    assert {KEY} == {key for keys in server.stats()["asked"].values() for key in keys}
    assert sum(server.stats()["faults"].values()) > 0
    assert (out / "program.json").exists()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY.encode() not in dump(storage)
    assert b"val 4" in dump(storage)
    assert KEY not in "".join(printed)


@pytest.mark.slow
def test_a_probe_that_a_retry_mends_changes_nothing_in_the_result(tmp_path: Path) -> None:
    found = []
    for name, first in (("well", []), ("busy", [Reply(status=503)])):
        with serving([*first, Reply("1")]) as server:
            study = write_study(
                tmp_path / name,
                server.url,
                sizes=(3, 2),
                n_trials=2,
                n_agents=2,
                agent="num_retries = 3\n",
            )
            result = run_study(study, out=tmp_path / name / "out")
            found.append((len(server.bodies), decided(json.loads(json.dumps(result.to_json())))))
    (n_well, well), (n_busy, busy) = found
    assert n_busy == n_well + 1
    assert well == busy


NO_SOCKETS = """
import socket, sys
from pathlib import Path
def refuse(*arguments, **options):
    raise AssertionError("a socket was opened")
socket.socket.connect = refuse
socket.socket.bind = refuse
socket.create_connection = refuse
from moa_dspy.optimize import run_study
study, out, storage = sys.argv[1:]
result = run_study(Path(study), out=Path(out), storage=storage or None)
print(result.pick)
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_shared", [True, False])
def test_a_replay_opens_no_socket(
    is_shared: bool, server: FaultServer, storage: str, tmp_path: Path
) -> None:
    study, out = write_study(tmp_path, server.base(), sizes=(4, 4), n_trials=4), tmp_path / "out"
    where = storage if is_shared else ""
    first = run_study(study, out=out, storage=where or None)
    command = [sys.executable, "-c", NO_SOCKETS, str(study), str(out), where]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(first.pick)
    # It does open one for agents that nobody asked before.
    command[3] = str(write_study(tmp_path / "b", server.base(latency_ms=1), name="new"))
    command[4] = str(tmp_path / "other")
    failed = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert failed.returncode != 0
    assert "a socket was opened" in failed.stderr
    assert json.loads((out / "result.json").read_text("utf-8"))["pick"] == str(first.pick)
