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
from pathlib import Path
from typing import Any

import pytest

from moa_dspy.calls import CallStore, PaidTwice
from tests.servers.chat import ChatServer, Reply, serving

Place = Path | str
ASKER = Path(__file__).parent / "asker.py"
LEASE = 1.0


class Answers:
    """Answers every question with the number of the request; held, only when it is let go."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        self.open = threading.Event()
        self.open.set()
        self._lock = threading.Lock()

    def __call__(self, body: dict[str, Any]) -> Reply:
        with self._lock:
            self.asked[body["number"]] += 1
            number = sum(self.asked.values())
        self.open.wait(60)
        return Reply(f"answer {number}", usage={"prompt_tokens": 3, "completion_tokens": 2})


@pytest.fixture
def answers() -> Iterator[Answers]:
    script = Answers()
    yield script
    script.open.set()


@pytest.fixture
def server(answers: Answers) -> Iterator[ChatServer]:
    with serving(answers) as running:
        yield running


class Asker:
    """A process of asker.py."""

    def __init__(
        self, place: Place, server: ChatServer, *, n_questions: int, seed: int = 0, **mode: Any
    ) -> None:
        arguments = [str(place), server.url, str(LEASE), str(n_questions), str(seed), *mode]
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
    place: Place, server: ChatServer, answers: Answers, mode: dict[str, Any]
) -> None:
    askers = [Asker(place, server, n_questions=50, seed=seed, **mode) for seed in range(4)]
    for asker in askers:
        asker.go()
    results = [asker.result() for asker in askers]
    assert answers.asked == {n: 1 for n in range(50)}
    assert all(result["texts"] == results[0]["texts"] for result in results)
    # 4 x 50 answers, of which 50 were paid for.
    assert sum(result["made"] for result in results) == 50
    assert sum(result["reused"] for result in results) == 150
    store = CallStore(place)
    assert (len(store), store.paid_twice()) == (50, PaidTwice())
    assert store.database.rows("SELECT count(*) FROM claims")[0][0] == 0
    assert store.database.rows("SELECT count(*) FROM owners")[0][0] == 0


@pytest.mark.slow
def test_what_a_killed_process_was_asking_is_asked_by_another(
    place: Place, server: ChatServer, answers: Answers
) -> None:
    answers.open.clear()
    doomed = Asker(place, server, n_questions=1)
    doomed.go()
    assert server.asked.acquire(timeout=30)
    heir = Asker(place, server, n_questions=1)
    heir.go()
    doomed.kill()
    doomed.bury()
    # Only once the claim of the dead is free does a second request arrive.
    assert server.asked.acquire(timeout=30)
    answers.open.set()
    assert heir.result() == {"texts": {"0": "answer 2"}, "made": 1, "reused": 0}
    # The answer to the dead was never stored, so nobody can say that it was paid.
    assert CallStore(place).paid_twice() == PaidTwice()


@pytest.mark.slow
def test_an_owner_that_comes_late_gets_the_first_answer_and_its_own_is_counted_as_paid_twice(
    place: Place, server: ChatServer, answers: Answers
) -> None:
    answers.open.clear()
    late = Asker(place, server, n_questions=1)
    late.go()
    assert server.asked.acquire(timeout=30)
    late.kill(signal.SIGSTOP)
    heir = Asker(place, server, n_questions=1)
    heir.go()
    assert server.asked.acquire(timeout=30)
    answers.open.set()
    assert heir.result()["texts"] == {"0": "answer 2"}
    late.kill(signal.SIGCONT)
    assert late.result() == {"texts": {"0": "answer 2"}, "made": 1, "reused": 0}
    # 3 prompt and 2 completion tokens, of which the latter cost half a dollar each.
    assert CallStore(place).paid_twice() == PaidTwice(calls=1, tokens=5, usd=1.0)


@pytest.mark.slow
def test_a_long_call_keeps_its_claim_as_long_as_its_owner_lives(
    place: Place, server: ChatServer, answers: Answers
) -> None:
    answers.open.clear()
    asker = Asker(place, server, n_questions=1)
    asker.go()
    assert server.asked.acquire(timeout=30)
    waiter = Asker(place, server, n_questions=1)
    waiter.go()
    # Longer than a lease nobody else asks.
    assert not server.asked.acquire(timeout=1.5 * LEASE)
    answers.open.set()
    assert asker.result()["texts"] == waiter.result()["texts"] == {"0": "answer 1"}
