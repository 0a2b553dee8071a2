"""A process that may open few files: a real process, with the limit set in it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.servers.chat import Reply, serving

pytest.importorskip("resource")

PROGRAM = """
import asyncio, os, resource, sys
import dspy
from moa_dspy import Agent, MixtureOfAgents, Pool
# Modules that are imported at the first request take a file each.
from moa_dspy.calls.lm import clients, endpoint, engine, lm, response, stream

base, is_async, n_questions, limit = sys.argv[1], sys.argv[2] == "async", *map(int, sys.argv[3:])
pool = Pool([Agent(name=f"a{n}", model=f"openai/m{n}", api_base=base, max_tokens=16)
             for n in range(6)])
mixture = MixtureOfAgents("question -> answer", "a0 + a1 + a2 + a3 + a4 + a5 > select", pool=pool)

def limit_files():
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    most = limit or len(os.listdir(folder))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

async def ask_all():
    limit_files()
    asked = [mixture.acall(question=f"q{n}") for n in range(n_questions)]
    return await asyncio.gather(*asked, return_exceptions=True)

if is_async:
    found = asyncio.run(ask_all())
else:
    limit_files()
    parallel = dspy.Parallel(num_threads=n_questions, disable_progress_bar=True, max_errors=1000,
                             return_failed_examples=True)
    rows = [dspy.Example(question=f"q{n}").with_inputs("question") for n in range(n_questions)]
    answers, _, failures = parallel([(mixture, row) for row in rows])
    found = [*filter(None, answers), *failures]
errors = [one for one in found if isinstance(one, Exception)]
print(*sorted({str(one)[:600] for one in errors}), len(errors), len(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_as_many_questions_as_there_are_are_answered_with_few_files(mode: str) -> None:
    # 64 questions of 6 agents are 384 requests at a time; 256 files are what macOS allows.
    with serving(Reply("[[ ## answer ## ]]\nParis")) as server:
        assert run(server.url, mode, 64, 256) == "0 64"
        assert len(server.bodies) == 384
        assert server.n_most <= 128


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_too_many_open_files_is_an_error_that_says_what_to_raise(mode: str) -> None:
    with serving(Reply("[[ ## answer ## ]]\nParis")) as server:
        said = run(server.url, mode, 2, 0)
    assert "Raise the limit (`ulimit -n 4096`), or lower `max_concurrent`" in said


def run(url: str, mode: str, n_questions: int, limit: int) -> str:
    command = [sys.executable, "-c", PROGRAM, url, mode, str(n_questions), str(limit)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=200)
    assert not done.returncode, done.stderr[-2000:]
    return done.stdout.strip()
