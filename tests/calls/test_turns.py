"""Equal requests of many processes are one request, and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.calls import CallStore, PaidTwice

Place = Path | str
ASKER = Path(__file__).parent / "asker.py"
LEASE = 1.0


class Server(ThreadingHTTPServer):
    """Answers every path with a number of its own; held, only when it is let go."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.arrived = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    def count(self, path: str) -> int:
        with self._lock:
            self.asked[path] += 1
            return sum(self.asked.values())

    def close(self) -> None:
        self.open.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]  # no other starts it

    def do_GET(self) -> None:
        number = self.server.count(self.path)
        is_held = not self.server.open.is_set()
        self.server.arrived.release()
        if is_held:
            self.server.open.wait(60)
        usage = {"input_tokens": 3, "output_tokens": 2}
        body = json.dumps({"text": f"answer {number}", "usage": usage}).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # whoever asked is dead

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


class Asker:
    """A process of asker.py."""

    def __init__(
        self, place: Place, server: Server, *, n_questions: int, seed: int = 0, **mode: Any
    ) -> None:
        url = f"http://127.0.0.1:{server.server_port}"
        arguments = [str(place), url, str(LEASE), str(n_questions), str(seed), *mode]
        self.process = subprocess.Popen(
            [sys.executable, str(ASKER), *arguments],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.process.pid, how)

    def result(self) -> dict[str, Any]:
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        found: dict[str, Any] = json.loads(out)
        return found

    def bury(self) -> None:
        self.process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [{}, {"asynchronous": True}], ids=["threads", "coroutines"])
def test_processes_that_ask_the_same_at_once_make_one_request_per_question(
    place: Place, server: Server, mode: dict[str, Any]
) -> None:
    askers = [Asker(place, server, n_questions=50, seed=seed, **mode) for seed in range(4)]
    for asker in askers:
        asker.go()
    results = [asker.result() for asker in askers]
    assert server.asked == {f"/{n}": 1 for n in range(50)}
    assert all(result["texts"] == results[0]["texts"] for result in results)
    # 4 x 50 answers, of which 50 were paid for.
    assert sum(result["made"] for result in results) == 50
    assert sum(result["reused"] for result in results) == 150
    store = CallStore(place)
    assert (len(store), store.paid_twice()) == (50, PaidTwice())
    assert store.database.rows("SELECT count(*) FROM claims")[0][0] == 0
    assert store.database.rows("SELECT count(*) FROM owners")[0][0] == 0


@pytest.mark.slow
def test_what_a_killed_process_was_asking_is_asked_by_another(place: Place, server: Server) -> None:
    server.open.clear()
    doomed = Asker(place, server, n_questions=1)
    doomed.go()
    assert server.arrived.acquire(timeout=30)
    heir = Asker(place, server, n_questions=1)
    heir.go()
    doomed.kill()
    doomed.bury()
    # Only once the claim of the dead is free does a second request arrive.
    assert server.arrived.acquire(timeout=30)
    server.open.set()
    assert heir.result() == {"texts": {"0": "answer 2"}, "made": 1, "reused": 0}
    # The answer to the dead was never stored, so nobody can say that it was paid.
    assert CallStore(place).paid_twice() == PaidTwice()


@pytest.mark.slow
def test_an_owner_that_comes_late_gets_the_first_answer_and_its_own_is_counted_as_paid_twice(
    place: Place, server: Server
) -> None:
    server.open.clear()
    late = Asker(place, server, n_questions=1)
    late.go()
    assert server.arrived.acquire(timeout=30)
    late.kill(signal.SIGSTOP)
    heir = Asker(place, server, n_questions=1)
    heir.go()
    assert server.arrived.acquire(timeout=30)
    server.open.set()
    assert heir.result()["texts"] == {"0": "answer 2"}
    late.kill(signal.SIGCONT)
    assert late.result() == {"texts": {"0": "answer 2"}, "made": 1, "reused": 0}
    # 3 prompt and 2 completion tokens, of which the latter cost half a dollar each.
    assert CallStore(place).paid_twice() == PaidTwice(calls=1, tokens=5, usd=1.0)


@pytest.mark.slow
def test_a_long_call_keeps_its_claim_as_long_as_its_owner_lives(
    place: Place, server: Server
) -> None:
    server.open.clear()
    asker = Asker(place, server, n_questions=1)
    asker.go()
    assert server.arrived.acquire(timeout=30)
    waiter = Asker(place, server, n_questions=1)
    waiter.go()
    # Longer than a lease nobody else asks.
    assert not server.arrived.acquire(timeout=1.5 * LEASE)
    server.open.set()
    assert asker.result()["texts"] == waiter.result()["texts"] == {"0": "answer 1"}
