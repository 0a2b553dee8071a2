"""Kills the processes of a study at random moments while their endpoint fails in every way.

Usage: python tests/bench/chaos.py [--json] [--kills 50] [--workers 3] [--quick] [--seed N]

Half of the kills (SIGKILL) fall on studies in a SQLite file, half on studies in PostgreSQL: on
workers and on the main process, ``optimize --storage``. Whoever is killed is started again, until
the study is finished; then the next one begins, in a new database. 30 % of all attempts fail: 429
with Retry-After, 500, a connection that is dropped, one that hangs, half a response, another JSON,
no choices. The server knows by the key that a process sends who asked what.

calls_lost: answers that were sent completely and are not in the store at the end, to a process that
was there to read them.
Of the answers to one request, one is stored. Each further one has one of these reasons:
in_flight_at_kill: its asker was killed before it was sent.
unstored_at_kill: its asker was killed after it was sent and before it was stored; most_ms_unstored
is the longest time between the two.
given_up: its asker had hung up, or had waited for as long as it would (timeout_seconds).
calls_paid_twice: none of these, so the fault is ours.
same_pick: whether every study found what an undisturbed one finds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import moa_dspy.optimize.run  # noqa: F401  # before a process forks: it starts at once
from moa_dspy.calls import CallStore
from moa_dspy.cli import app
from moa_dspy.optimize import run_study
from tests.bench.study_world import (
    FaultServer,
    decided,
    fault_server,
    stored_names,
    write_study,
)
from tests.postgresql import AbsentError, PostgreSQLServer

KEY = "MOA_CHAOS_KEY"
# Retries of a probe, which no study waits for; and a hanging endpoint is left soon.
TIMEOUT_SECONDS = 2.5
AGENT = f'api_key_env = "{KEY}"\ntimeout_seconds = {TIMEOUT_SECONDS}\nnum_retries = 12\n'


@dataclass(frozen=True)
class Kill:
    """The end of a process.

    Attributes:
        time: On the clock that all processes share.
        stored: Names of the requests whose answers were stored then.
    """

    time: float
    stored: frozenset[str]


@dataclass
class Tally:
    """What was seen in all studies."""

    kills: int = 0
    studies: int = 0
    lost: int = 0
    extra: Counter[str] = field(default_factory=Counter)
    most_unstored: float = 0.0
    is_same: bool = True
    faults: Counter[str] = field(default_factory=Counter)
    kills_of_main: int = 0


class Process:
    """A process of a study, forked from this one so that no import is waited for."""

    _numbers = iter(range(1_000_000))

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.arguments, self.log = list(arguments), log
        self.key = f"key-of-process-{next(self._numbers)}"
        self.pid = os.fork()
        if self.pid == 0:
            self._run()

    def _run(self) -> None:
        try:
            os.environ[KEY] = self.key
            out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            app(self.arguments, standalone_mode=True)
        except SystemExit as ended:
            os._exit(ended.code if isinstance(ended.code, int) else 1)
        except BaseException:
            import traceback

            traceback.print_exc()
        os._exit(1)

    def code(self) -> int | None:
        """Return the exit code; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return None if pid == 0 else os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        # A process that nobody waits for looks alive.
        os.waitpid(self.pid, 0)


class Study:
    """One study that is killed again and again until it is finished."""

    def __init__(
        self, server: FaultServer, study: Path, storage: str, folder: Path, n_workers: int
    ) -> None:
        self.server, self.storage, self.folder = server, storage, folder
        shared = [str(study), "--storage", storage]
        main = ["optimize", *shared, "--out", str(folder / "out"), "--json"]
        worker = ["worker", *shared, "--out", str(folder / "out"), "--threads", "4"]
        self.log = folder / "log.txt"
        CallStore(storage).close()
        self.running = [Process(command, self.log) for command in [main, *[worker] * n_workers]]
        self.kills: dict[str, Kill] = {}

    def run(self, rng: random.Random, tally: Tally, *, n_kills: int) -> None:
        """Kill until it is finished; at most ``n_kills`` times."""
        while self.running:
            time.sleep(rng.uniform(0.2, 1.2))
            for process in list(self.running):
                if (code := process.code()) is not None:
                    self.running.remove(process)
                    assert code == 0, f"{process.arguments}: {self.log.read_text('utf-8')[-3000:]}"
            if n_kills and self.running:
                n_kills -= 1
                self._kill(rng.choice(self.running), tally)

    def _kill(self, victim: Process, tally: Tally) -> None:
        killed = time.monotonic()
        victim.kill()
        self.kills[victim.key] = Kill(killed, frozenset(stored_names(self.storage)))
        self.running.remove(victim)
        tally.kills += 1
        tally.kills_of_main += victim.arguments[0] == "optimize"
        self.running.append(Process(victim.arguments, self.log))

    def count(self, tally: Tally) -> None:
        """Compare what was answered with what is in the store."""
        stats, stored = self.server.stats(), stored_names(self.storage)
        for name, answers in stats["answered"].items():
            reasons = Counter(self._reason(name, answer, tally) for answer in answers)
            tally.lost += name not in stored and reasons["read"] > 0
            if len(answers) == 1:
                continue
            if reasons["read"] == 0 and reasons["given_up"]:
                reasons["given_up"] -= 1  # read in time after all, for it is the stored one
            reasons["paid_twice"] = max(0, reasons.pop("read", 0) - 1)
            tally.extra.update(reasons)
        tally.faults.update(stats["faults"])
        tally.studies += 1

    def _reason(self, name: str, answer: dict[str, Any], tally: Tally) -> str:
        """Return ``read``, or why an answer could not be."""
        kill = self.kills.get(answer["asker"])
        if kill is not None and answer["sent"] >= kill.time:
            return "in_flight_at_kill"
        if answer["has_left"] or answer["sent"] - answer["asked"] >= TIMEOUT_SECONDS:
            return "given_up"
        if kill is None or name in kill.stored:
            return "read"
        tally.most_unstored = max(tally.most_unstored, kill.time - answer["sent"])
        return "unstored_at_kill"


def undisturbed(folder: Path, sizes: tuple[int, int], n_trials: int) -> dict[str, Any]:
    """Return what the study finds alone, without a fault."""
    with fault_server() as server:
        study = write_study(folder, server.base(), sizes=sizes, n_trials=n_trials, agent=AGENT)
        found = decided(json.loads(json.dumps(run_study(study, out=folder / "out").to_json())))
    return found


def places(folder: Path, database: PostgreSQLServer | None, kind: str) -> str:
    if kind == "postgresql":
        assert database is not None
        return database.new_database()
    return f"sqlite:///{folder / 'shared.sqlite'}"


def disturb(options: argparse.Namespace, folder: Path, database: PostgreSQLServer | None) -> Tally:
    tally, rng = Tally(), random.Random(options.seed)
    sizes, n_trials = (options.val, options.test), options.trials
    os.environ[KEY] = "key-of-the-undisturbed"
    expected = undisturbed(folder / "undisturbed", sizes, n_trials)
    kinds = ["sqlite", "postgresql"] if database is not None else ["sqlite"]
    for number, kind in enumerate(kinds):
        wanted = options.kills * (number + 1) // len(kinds)
        while tally.kills < wanted:
            home = folder / f"study{tally.studies}"
            with fault_server() as server:
                base = server.base(latency_ms=options.latency_ms, fault_percent=30)
                study = write_study(home, base, sizes=sizes, n_trials=n_trials, agent=AGENT)
                storage = places(home, database, kind)
                run = Study(server, study, storage, home, options.workers)
                run.run(rng, tally, n_kills=wanted - tally.kills)
                run.count(tally)
            found = json.loads((home / "out" / "result.json").read_text("utf-8"))
            tally.is_same = tally.is_same and decided(found) == expected
    return tally


def measure(options: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    try:
        database = PostgreSQLServer()
    except AbsentError as error:
        print(f"NOT TESTED on PostgreSQL: {error}", file=sys.stderr)
        database = None
    try:
        with tempfile.TemporaryDirectory() as folder:
            tally = disturb(options, Path(folder), database)
    finally:
        if database is not None:
            database.close()
    return {
        "kills": tally.kills,
        "kills_of_main": tally.kills_of_main,
        "studies": tally.studies,
        "calls_lost": tally.lost,
        "calls_paid_twice": tally.extra["paid_twice"],
        "in_flight_at_kill": tally.extra["in_flight_at_kill"],
        "unstored_at_kill": tally.extra["unstored_at_kill"],
        "most_ms_unstored": round(1_000 * tally.most_unstored, 1),
        "given_up": tally.extra["given_up"],
        "same_pick": tally.is_same,
        "faults": dict(sorted(tally.faults.items())),
        "on_postgresql": database is not None,
        "seconds": time.monotonic() - started,
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Kill the processes of a study at random moments.")
    parser.add_argument("--json", action="store_true", help="print on one line, for programs")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=3, help="beside the main process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--val", type=int, default=24, help="rows")
    parser.add_argument("--test", type=int, default=24, help="rows")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--latency-ms", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="a few kills of a small study")
    options = parser.parse_args(arguments)
    if options.quick:
        options.kills, options.workers, options.val, options.test = 4, 2, 7, 7
        options.trials, options.latency_ms = 4, 50
    print(json.dumps(measure(options), indent=None if options.json else 2))


if __name__ == "__main__":
    main(sys.argv[1:])
