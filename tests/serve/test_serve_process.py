"""The command ``serve`` as a process: its keys, its models, its logs and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from moa_dspy.mixture import MixtureOfAgents
from moa_dspy.pool import Pool
from tests.servers.chat import ChatServer, Reply, serving

pytestmark = pytest.mark.slow

KEY, SECRET = "key-of-a-client", "sk-of-the-vendor"


def pool_file(server: ChatServer, folder: Path) -> Path:
    agent = (
        '[[agents]]\nname = "{0}"\nmodel = "openai/{0}"\napi_base = "{1}"\n'
        'api_key_env = "VENDOR_KEY"\ntemperature = 0.5\n'
    )
    path = folder / "pool.toml"
    path.write_text("".join(agent.format(name, server.url) for name in "ac"))
    return path


@contextmanager
def served(pool: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "moa_dspy",
            "serve",
            *arguments,
            "--pool",
            str(pool),
            "--port",
            str(port),
            "--key-env",
            "CLIENT_KEY",
        ],
        env={**os.environ, "CLIENT_KEY": KEY, "VENDOR_KEY": SECRET},
        stderr=subprocess.PIPE,
        text=True,
    )
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"http://127.0.0.1:{port}/v1"
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    client.get(url.replace("/v1", "/health"))
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield process, client
    finally:
        process.kill()
        process.wait(10)


def test_a_saved_program_is_served_and_a_running_answer_is_finished(tmp_path: Path) -> None:
    go_on = threading.Event()
    asked = {"model": "best", "messages": [{"role": "user", "content": "A private question"}]}
    with serving(Reply("Paris", wait=go_on)) as server, ThreadPoolExecutor() as threads:
        path = pool_file(server, tmp_path)
        pool = Pool.read(path)
        MixtureOfAgents("question -> answer", "a > synthesize(c)", pool=pool).save(
            tmp_path / "best.json"
        )
        with served(path, str(tmp_path / "best.json")) as (process, client):
            names = [model["id"] for model in client.get("models").json()["data"]]
            assert names == ["a", "c", "best"]
            answer = threads.submit(client.post, "chat/completions", json=asked)
            server.await_request()
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert process.poll() is None
            go_on.set()
            answered = answer.result(30)
            assert answered.json()["choices"][0]["message"]["content"] == "Paris"
            log = process.communicate(timeout=40)[1]
        assert "CLIENT_KEY best 200" in log
        assert [text in log for text in (KEY, SECRET, "private", "Paris")] == [False] * 4
        assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"


def test_the_log_on_a_terminal_has_no_control_characters_of_an_endpoint(tmp_path: Path) -> None:
    said = json.dumps({"error": {"message": "no \x1b[31mmodel \u202ehere"}}).encode()
    asked = {"model": "a", "messages": [{"role": "user", "content": "Where?"}]}
    with serving(Reply(status=400, body=said)) as server:
        path = pool_file(server, tmp_path)
        with served(path, "--log-content") as (process, client):
            assert client.post("chat/completions", json=asked).status_code == 502
            process.send_signal(signal.SIGTERM)
            log = process.communicate(timeout=40)[1]
    assert "no [31mmodel here" in log
    assert not {"\x1b", "\u202e"} & set(log)
