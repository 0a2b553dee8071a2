"""The load of many streaming clients on a server of mixtures: errors, leaks, added time, memory.

Usage: python tests/bench/serve_load.py --json [--clients 500] [--seconds 60]

``moa-dspy serve`` runs as its own process, and so do the agents, which answer after 100 ms. All of
it is on 127.0.0.1. ``added_ms_median`` is one streaming client at a time, over the same mixture
asked in this process. ``leaked_tasks`` are tasks of the server's event loop, and sockets that its
clients have left, a few seconds after the load and after clients that hung up in the middle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

REPOSITORY = Path(__file__).parents[2]
MODEL = "a + b > synthesize(c)"
ENDED = b"data: [DONE]"
AGENT = """
[[agents]]
name = "{name}"
model = "openai/{name}"
api_base = "http://127.0.0.1:{port}/100/v1"
api_key_env = "BENCH_KEY"
usd_per_million_prompt_tokens = 1.0
usd_per_million_completion_tokens = 1.0
"""


@dataclass
class Result:
    """What was measured."""

    clients: int
    seconds: float
    requests: int = 0
    errors: int = 0
    requests_per_second: float = 0.0
    seconds_median: float = 0.0
    seconds_p99: float = 0.0
    added_ms_median: float = 0.0
    leaked_tasks: int = 0
    rss_mb: float = 0.0
    rss_growth_mb: float = 0.0
    running_after_disconnects: int = 0


@contextmanager
def process(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the end."""
    running = subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield running
    finally:
        running.terminate()
        running.wait(60)


@contextmanager
def agents(folder: Path) -> Iterator[Path]:
    """Run the agents' server; the value is the file of the pool."""
    with process("tests/servers/latency_server.py") as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        pool = folder / "pool.toml"
        pool.write_text("".join(AGENT.format(name=name, port=port) for name in "abc"))
        yield pool


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        number: int = listener.getsockname()[1]
        return number


def resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) / 1024


def left_sockets(port: int) -> int:
    """Return the server's sockets of clients, except those that only wait for the kernel."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = f":{port:04X}"
    return sum(row[1].endswith(ends) and row[3] not in ("0A", "06") for row in rows)


class Server:
    """The server that is loaded."""

    def __init__(self, port: int, pid: int) -> None:
        self.port, self.pid = port, pid
        self.url = f"http://127.0.0.1:{port}"

    async def ready(self, session: aiohttp.ClientSession) -> None:
        for _ in range(600):
            try:
                async with session.get(f"{self.url}/health") as answered:
                    if answered.status == 200:
                        return
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
        raise RuntimeError("The server did not start.")

    async def gauge(self, session: aiohttp.ClientSession, name: str) -> int:
        async with session.get(f"{self.url}/metrics") as answered:
            text = await answered.text()
        return int(float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0]))

    async def ask(self, session: aiohttp.ClientSession, text: str) -> bool:
        """Ask once and read the stream; return whether it came to its end."""
        body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": text}]}
        async with session.post(f"{self.url}/v1/chat/completions", json=body) as answered:
            content = await answered.read()
            return answered.status == 200 and ENDED in content and content.count(b"data:") > 5


async def added_ms(server: Server, session: aiohttp.ClientSession, pool_file: Path) -> float:
    """Return how much longer one client waits than a caller in this process."""
    from moa_dspy.calls.calls import Calls
    from moa_dspy.dspy_internals import lm15
    from moa_dspy.pool import Pool
    from moa_dspy.serve.chat import ChatMixture
    from moa_dspy.serve.limits import BoundedCalls

    mixture = ChatMixture.of(MODEL, Pool.read(pool_file, calls=Calls(BoundedCalls())))
    inside, outside = [], []
    for n in range(45):
        message = lm15.Message.user(f"Question {n}?")
        request = lm15.Request(model="x", messages=(message,))
        started = time.perf_counter()
        async for _ in mixture.astream(request, rollout=n + 1):
            pass
        middle = time.perf_counter()
        assert await server.ask(session, f"Question {n}?")
        if n >= 5:
            inside.append(middle - started)
            outside.append(time.perf_counter() - middle)
    return 1_000 * (statistics.median(outside) - statistics.median(inside))


async def load(server: Server, session: aiohttp.ClientSession, made: Result) -> None:
    """Have all clients ask, each again when it has its answer, until the time is over."""
    until = time.monotonic() + made.seconds
    times: list[float] = []
    resident: list[float] = []

    async def client(number: int) -> None:
        n = 0
        while time.monotonic() < until:
            started = time.monotonic()
            try:
                is_whole = await server.ask(session, f"Client {number} asks {n}.")
            except aiohttp.ClientError:
                is_whole = False
            made.errors += not is_whole
            times.append(time.monotonic() - started)
            n += 1

    async def watch() -> None:
        while time.monotonic() < until:
            resident.append(resident_mb(server.pid))
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *map(client, range(made.clients)))
    made.requests = len(times)
    made.requests_per_second = len(times) / made.seconds
    made.seconds_median = statistics.median(times)
    made.seconds_p99 = sorted(times)[int(0.99 * (len(times) - 1))]
    # Buffers of the first third are there to stay; after it memory is to be flat.
    third = len(resident) // 3
    made.rss_mb = resident[-1]
    made.rss_growth_mb = statistics.median(resident[-5:]) - statistics.median(
        resident[third : third + 5]
    )


async def disconnects(server: Server, session: aiohttp.ClientSession) -> int:
    """Hang up in the middle of streams; return how many requests are still being answered."""

    async def leaving(number: int) -> None:
        task = asyncio.create_task(server.ask(session, f"Gone {number}"))
        await asyncio.sleep(0.02 + 0.01 * (number % 20))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await asyncio.gather(*map(leaving, range(100)))
    for _ in range(50):
        left = await server.gauge(session, "moa_answering")
        left += await server.gauge(session, "moa_waiting")
        if not left:
            break
        await asyncio.sleep(0.1)
    return left


async def run(made: Result, server: Server, pool_file: Path) -> None:
    """Measure all of it."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await server.ready(session)
        made.added_ms_median = await added_ms(server, session, pool_file)
        tasks = await server.gauge(session, "moa_tasks")
        await load(server, session, made)
        made.running_after_disconnects = await disconnects(server, session)
    await asyncio.sleep(7)  # longer than the server keeps an idle connection
    sockets = left_sockets(server.port)
    async with aiohttp.ClientSession() as session:
        left = await server.gauge(session, "moa_tasks") - tasks
    made.leaked_tasks = max(0, left) + sockets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    given = parser.parse_args()
    made, port = Result(given.clients, given.seconds), free_port()
    os.environ["BENCH_KEY"] = "bench-key"
    with tempfile.TemporaryDirectory() as folder, agents(Path(folder)) as pool_file:
        command = ["-m", "moa_dspy", "serve", "--pool", str(pool_file), "--port", str(port)]
        with process(*command) as running:
            asyncio.run(run(made, Server(port, running.pid), pool_file))
    rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(made).items()}
    if given.json:
        print(json.dumps(rounded))
    else:
        print("\n".join(f"{name:<28}{value}" for name, value in rounded.items()))


if __name__ == "__main__":
    main()
