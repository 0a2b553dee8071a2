from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from moa_dspy.calls.timeout import Threads


def test_a_thread_that_is_idle_is_used_again() -> None:
    threads = Threads()
    first = [threads.submit(threading.get_ident).result() for _ in range(5)]
    assert len(set(first)) == 1


def test_every_task_starts_at_once_however_many_there_are() -> None:
    threads, together = Threads(), threading.Barrier(40)
    running = [threads.submit(lambda: together.wait(30)) for _ in range(40)]
    assert sorted(future.result() for future in running) == list(range(40))


def test_an_error_reaches_who_asks_for_the_result_and_the_thread_goes_on() -> None:
    threads = Threads()

    def fail() -> int:
        raise ValueError(str(threading.get_ident()))

    with pytest.raises(ValueError, match=r"^\d+$") as caught:
        threads.submit(fail).result()
    assert threads.submit(threading.get_ident).result() == int(str(caught.value))


def test_a_task_that_never_ends_does_not_hold_up_the_end_of_the_process() -> None:
    code = (
        "import threading\n"
        "from moa_dspy.calls.timeout import THREADS\n"
        "started = threading.Event()\n"
        "THREADS.submit(lambda: (started.set(), threading.Event().wait()))\n"
        "started.wait()\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_starts_threads_of_its_own() -> None:
    code = (
        "import os\n"
        "from moa_dspy.calls.timeout import THREADS\n"
        "THREADS.submit(int).result()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(THREADS.submit(lambda: 7).result(timeout=30))\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60, check=True)
