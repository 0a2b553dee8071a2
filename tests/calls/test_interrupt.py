"""Ctrl-C in DSPy's executors and streams: a real process, a slow server on this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.servers.chat import ChatServer, Reply, serving

# A shell starts what runs in the background with SIGINT ignored, and children inherit that.
HEARS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
ANSWER = "[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]"
PROGRAM = """
import sys
import dspy
from moa_dspy import Agent, MixtureOfAgents, Pool

base, kind, n_threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
pool = Pool([Agent(name=name, model="openai/" + name, api_base=base, max_tokens=16)
             for name in ("a", "b", "c")])
mixture = MixtureOfAgents("question -> answer", sys.argv[4], pool=pool)
rows = [dspy.Example(question=f"q{n}", answer="Paris").with_inputs("question") for n in range(12)]
try:
    if kind == "evaluate":
        evaluate = dspy.Evaluate(devset=rows, metric=lambda row, answer, trace=None: 1.0,
                                 num_threads=n_threads, display_progress=False)
        evaluate(mixture)
    else:
        parallel = dspy.Parallel(num_threads=n_threads, disable_progress_bar=True)
        parallel([(mixture, row) for row in rows])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    if kind == "goes on":
        sys.stdin.readline()
        print(mixture(question="once more").answer, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["evaluate", "parallel"])
@pytest.mark.parametrize(("architecture", "n_asked"), [("a + b > synthesize(c)", 8), ("a", 4)])
def test_an_interrupted_process_sends_nothing_more_and_ends_at_once(
    kind: str, architecture: str, n_asked: int
) -> None:
    hold = threading.Event()
    with serving(Reply(ANSWER, wait=hold)) as server:
        process = start(server.url, kind, 4, architecture)
        wait_for_requests(server, n_asked)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        said, _ = process.communicate(timeout=30)
        # The server answers after ten seconds.
        assert time.monotonic() - started < 5
        assert "interrupted" in said
        hold.set()
        assert len(server.bodies) == n_asked


OTHERS = """
import asyncio, sys, threading
import dspy
from moa_dspy import Agent, MixtureOfAgents, Pool

base, kind = sys.argv[1], sys.argv[2]
pool = Pool([Agent(name=name, model="openai/" + name, api_base=base, max_tokens=16)
             for name in ("a", "b", "c")])
mixture = MixtureOfAgents("question -> answer", sys.argv[4], pool=pool)

class Async(dspy.Module):
    def forward(self, **inputs):
        return asyncio.run(mixture.acall(**inputs))

class Streams(dspy.Module):
    def forward(self, **inputs):
        for event in mixture.pool.lm("c")._engine_spec.stream(request()):
            pass
        return dspy.Prediction(answer="x")

class AsyncStreams(dspy.Module):
    def forward(self, **inputs):
        async def read():
            async for event in mixture.pool.lm("c")._async_engine_spec.stream(request()):
                pass
        asyncio.run(read())
        return dspy.Prediction(answer="x")

def request():
    from moa_dspy.dspy_internals import lm15
    messages = [{"role": "user", "content": threading.current_thread().name}]
    return lm15.request_from_openai_chat({"model": "agent/c", "messages": messages})

async def stream():
    listener = dspy.streaming.StreamListener("answer")
    streamed = dspy.streamify(mixture, stream_listeners=[listener] if kind == "listened" else [])
    async for _ in streamed(question="q"):
        pass

try:
    if kind in ("streamify", "listened"):
        asyncio.run(stream())
    elif kind == "streamify sync":
        for _ in dspy.streamify(mixture, async_streaming=False)(question="q"):
            pass
    elif kind == "asyncify":
        asyncio.run(dspy.asyncify(mixture)(question="q"))
    else:
        program = {"async": Async, "streams": Streams, "async streams": AsyncStreams}[kind]()
        rows = [dspy.Example(question=f"q{n}").with_inputs("question") for n in range(12)]
        dspy.Parallel(num_threads=int(sys.argv[3]), disable_progress_bar=True)(
            [(program, row) for row in rows])
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "architecture", "n_asked"),
    [
        ("async", "a + b > synthesize(c)", 8),
        ("async", "a", 4),
        ("streams", "a", 4),
        ("async streams", "a", 4),
        ("asyncify", "a + b > synthesize(c)", 2),
        ("streamify", "a + b > synthesize(c)", 2),
        ("streamify", "a", 1),
        ("listened", "a", 1),
    ],
)
def test_async_work_and_streams_that_wait_for_bytes_end_too(
    kind: str, architecture: str, n_asked: int
) -> None:
    hold = threading.Event()
    with serving(Reply(ANSWER, wait=hold)) as server:
        process = start(server.url, kind, 4, architecture, program=OTHERS)
        try:
            wait_for_requests(server, n_asked)
            process.send_signal(signal.SIGINT)
            started = time.monotonic()
            said, errors = process.communicate(timeout=30)
        finally:
            process.kill()
        assert time.monotonic() - started < 5, errors[-3000:]
        assert "interrupted" in said, errors[-3000:]
        hold.set()
        assert len(server.bodies) == n_asked


@pytest.mark.slow
def test_a_process_that_goes_on_after_an_interrupt_asks_for_what_it_wants_then() -> None:
    hold = threading.Event()
    with serving(Reply(ANSWER, wait=hold)) as server:
        process = start(server.url, "goes on", 4, "a + b > synthesize(c)")
        wait_for_requests(server, 8)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "interrupted\n"
        # Its proposers are answered now, but no aggregator is asked.
        hold.set()
        time.sleep(1)
        assert len(server.bodies) == 8
        said, _ = process.communicate("\n", timeout=30)
        assert said == "Paris\n"
        assert len(server.bodies) == 11


def start(
    url: str, kind: str, n_threads: int, architecture: str, *, program: str = PROGRAM
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HEARS + program, url, kind, str(n_threads), architecture]
    return subprocess.Popen(
        command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for_requests(server: ChatServer, n: int) -> None:
    last = time.monotonic() + 60
    while len(server.bodies) < n:
        assert time.monotonic() < last, f"{len(server.bodies)} of {n} requests came"
        time.sleep(0.01)
    time.sleep(0.2)
