"""A server of this process that answers by rule, and study files that ask it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SIZES = {"train": 4, "val": 12, "test": 15}

STUDY = """
name = "toy"
seed = 1
[task]
signature = "question -> answer"
adapter = "plain"
metric = "answer_match"
[data]
path = "rows.jsonl"
inputs = ["question"]
split_column = "split"
[space]
combines = ["vote", "synthesize"]
max_depth = 1
[search]
n_trials = 8
"""


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # of connections at once; at 5 the next ones were dropped


class Server:
    """Model ``e1`` is wrong where the number modulo 3 is 1, and so on; every request is logged.

    Attributes:
        asked: Model and messages of every request, in order.
        answered: The same of every request whose reply was sent.
        refusals: Status and body per model; {header} in a body is the Authorization header.
        holds_after: Number of requests after which no more replies are sent.
        is_holding: Set when a request is held.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answered: list[tuple[str, str]] = []
        self.refusals: dict[str, tuple[int, str]] = {}
        self.holds_after: int | None = None
        self.is_holding, self._released = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def reply(self, body: dict[str, Any], header: str) -> tuple[int, str, tuple[str, str]]:
        """Return status, payload and the logged request."""
        request = (body["model"], json.dumps(body["messages"]))
        with self._lock:
            self.asked.append(request)
            is_held = self.holds_after is not None and len(self.asked) > self.holds_after
        if is_held:
            self.is_holding.set()
            self._released.wait(60)
        if body["model"] in self.refusals:
            status, text = self.refusals[body["model"]]
            return status, json.dumps({"error": {"message": text.format(header=header)}}), request
        number = int(body["messages"][-1]["content"].splitlines()[0].split()[-1])
        is_wrong = number % 3 == int(body["model"][-1])
        message = {"role": "assistant", "content": f"no {number}x" if is_wrong else f"{number}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        reply = {"id": "1", "object": "chat.completion", "model": "m", "choices": [choice]}
        return 200, json.dumps({**reply, "usage": usage}), request

    def release(self) -> None:
        """Reply again, also to what is held."""
        self.holds_after = None
        self._released.set()

    def stop(self) -> None:
        """Answer no more; may be called twice."""
        self.release()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, payload, request = server.reply(body, str(self.headers["Authorization"]))
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload.encode())
            except OSError:
                return  # whoever asked is gone
            server.answered.append(request)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def write_study(tmp_path: Path, server: Server) -> Callable[..., Path]:
    """Return what writes data and a study of three agents; pairs replace text of the study."""

    def write(
        *changes: tuple[str, str],
        rows: list[dict[str, Any]] | None = None,
        name: str = "study.toml",
        agent: str = "",
    ) -> Path:
        listed = rows if rows is not None else all_rows()
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, listed)), "utf-8")
        text = STUDY
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        for i in range(3):
            text += f'\n[[agents]]\nname = "e{i}"\nmodel = "openai/e{i}"\ntemperature = 0.0\n'
            text += f'api_base = "{server.url}"\n{agent}\n'
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return write


def all_rows() -> list[dict[str, Any]]:
    return [
        {"id": f"{split}-{i}", "split": split, "question": f"{split} {i}", "answer": f"{i}"}
        for split, n in SIZES.items()
        for i in range(n)
    ]


@pytest.fixture
def data() -> list[dict[str, Any]]:
    """Return the rows of the study, to be changed."""
    return all_rows()


@pytest.fixture
def said() -> Callable[[Any], dict[str, Any]]:
    """Return what reduces a result to what a study decides, without what a run paid."""

    def without_seconds(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
        return [without_seconds(v) for v in value] if isinstance(value, list) else value

    def reduce(result: Any) -> dict[str, Any]:
        found: dict[str, Any] = without_seconds(result.to_json())
        return {name: value for name, value in found.items() if name not in ("calls", "usd")}

    return reduce
