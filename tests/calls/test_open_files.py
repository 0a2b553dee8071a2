"""A process that may open few files: a real process, with the limit set in it."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from tests.servers.chat import Reply, serving

pytest.importorskip("resource")

PROGRAM = """
import asyncio, resource, sys
import dspy
from moa_dspy import Agent, MixtureOfAgents, Pool

base, is_async = sys.argv[1], sys.argv[2] == "async"
pool = Pool([Agent(name=f"a{n}", model=f"openai/m{n}", api_base=base, max_tokens=16)
             for n in range(6)])
mixture = MixtureOfAgents("question -> answer", "a0 + a1 + a2 + a3 + a4 + a5 > vote", pool=pool)

async def ask_all():
    asked = [mixture.acall(question=f"q{n}") for n in range(20)]
    return await asyncio.gather(*asked, return_exceptions=True)

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
if is_async:
    found = asyncio.run(ask_all())
else:
    parallel = dspy.Parallel(num_threads=20, disable_progress_bar=True, max_errors=100,
                             return_failed_examples=True)
    rows = [dspy.Example(question=f"q{n}").with_inputs("question") for n in range(20)]
    found = parallel([(mixture, row) for row in rows])[2]
errors = [one for one in found if isinstance(one, Exception)]
print(*sorted({str(one)[:600] for one in errors}), len(errors), len(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_too_many_open_files_is_an_error_that_says_what_to_raise(mode: str) -> None:
    hold = threading.Event()  # never set: an answer takes ten seconds
    with serving(Reply("[[ ## answer ## ]]\nParis", wait=hold)) as server:
        command = [sys.executable, "-c", PROGRAM, server.url, mode]
        done = subprocess.run(command, text=True, capture_output=True, timeout=100)
    assert "may open 64 files. Raise the limit (`ulimit -n 4096`)" in done.stdout, done.stderr[
        -2000:
    ]
