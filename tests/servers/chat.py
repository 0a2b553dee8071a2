"""A server on this machine that speaks the protocols of chat endpoints, also badly, on purpose.

The path says which: OpenAI's chat completions, and those of ``tests/servers/dialects.py``.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

from tests.servers.dialects import dialect_of

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
HEAD = {"id": "r1", "created": 1, "model": "x"}


@dataclass(frozen=True)
class Reply:
    """What the server sends for one request.

    Attributes:
        text: The answer; a request for a stream gets it in the pieces of ``split``.
        status: An HTTP status; from 300 on there is no answer.
        body: Sent as it is, instead of an answer, also to those who want a stream; AUTHORIZATION
            in it stands for the request's header.
        frames: Sent as they are instead of the pieces of a stream.
        retry_after: A header.
        location: A header.
        encoding: A header: how ``frames`` are compressed.
        thinking: What the model thought before.
        message: Further fields of the message, or of the first piece of a stream.
        choice: Further fields of the choice, or of the last piece of a stream.
        finish_reason: Why it ended.
        split: Cuts the text into the pieces of a stream.
        missing_bytes: How many bytes are announced and never sent.
        breaks_after: The connection ends after so many pieces of a stream.
        fails_after: The server says that it failed after so many pieces of a stream.
        wait: Before answering, or, in a stream, before the last piece; at most 10 seconds.
        drips: Whether the bytes come one by one, ten in a second.
        usage: The counted tokens; ``...`` sends none.
    """

    text: str = "Paris"
    status: int = 200
    body: bytes | None = None
    frames: Sequence[bytes] | None = None
    retry_after: str | None = None
    location: str | None = None
    encoding: str | None = None
    thinking: str | None = None
    message: Mapping[str, Any] = field(default_factory=dict)
    choice: Mapping[str, Any] = field(default_factory=dict)
    finish_reason: str | None = "stop"
    split: Callable[[str], Sequence[str]] = list
    missing_bytes: int = 0
    breaks_after: int | None = None
    fails_after: int | None = None
    wait: threading.Event | None = None
    drips: bool = False
    usage: Any = field(default_factory=lambda: USAGE)


Script: TypeAlias = Callable[[dict[str, Any]], Reply]
"""Says what to answer to the body of a request."""


class ChatServer(ThreadingHTTPServer):
    """Answers by a script and remembers what it was asked."""

    daemon_threads = True
    request_queue_size = 64  # of connections at once; at 5 the next ones are dropped

    def __init__(self, script: Script, models: Sequence[str] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.models = script, tuple(models)
        self.bodies: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self.headers: list[Message] = []  # found by name in any case, as HTTP has it
        self.paths: list[str] = []
        self.n_connections, self.left = 0, threading.Semaphore(0)
        self.answered: list[dict[str, Any]] = []
        self.asked = threading.Semaphore(0)
        self.n_now = self.n_most = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count who is being served."""
        with self.lock:
            self.n_now += 1
            self.n_most = max(self.n_most, self.n_now)
        yield
        with self.lock:
            self.n_now -= 1

    def await_request(self) -> None:
        """Wait until one more request has come."""
        assert self.asked.acquire(timeout=10)

    def server_close(self) -> None:
        # Closed while it serves, it would turn in a loop until the process ends.
        self.shutdown()
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests hang up as they like."""


@contextmanager
def serving(
    script: Script | Sequence[Reply] | Reply, *, models: Sequence[str] = ()
) -> Iterator[ChatServer]:
    """Run a server; it gives replies in order, the last one again and again.

    Args:
        script: What it answers.
        models: What it lists at ``/v1/models``.
    """
    if isinstance(script, Reply):
        script = [script]
    if not callable(script):
        script = _in_order(list(script))
    with ChatServer(script, models) as server:
        yield server


def _in_order(replies: list[Reply]) -> Script:
    lock = threading.Lock()

    def script(_: dict[str, Any]) -> Reply:
        with lock:
            return replies.pop(0) if len(replies) > 1 else replies[0]

    return script


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer  # pyright: ignore[reportIncompatibleVariableOverride]  # no other starts it

    def setup(self) -> None:
        super().setup()
        self.server.n_connections += 1

    def finish(self) -> None:
        super().finish()
        self.server.left.release()

    def do_GET(self) -> None:
        listed = [{"id": name, "object": "model"} for name in self.server.models]
        payload = json.dumps({"object": "list", "data": listed}).encode()
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def do_POST(self) -> None:  # the name that http.server calls
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        with self.server.busy():
            self.server.raw.append(raw)
            self.server.bodies.append(body)
            self.server.headers.append(self.headers)
            self.server.paths.append(self.path)
            self.server.asked.release()
            reply = self.server.script(body)
        # Not busy while it sends: who has the answer may ask the next before this returns.
        try:
            self._stream(reply) if self._is_streamed(reply, body) else self._whole(reply, body)
        except OSError:
            self.close_connection = True
        else:
            self.server.answered.append(body)

    def _is_streamed(self, reply: Reply, body: dict[str, Any]) -> bool:
        is_wanted = body.get("stream") or "streamGenerateContent" in self.path
        return bool(is_wanted) and reply.status < 300 and reply.body is None

    def _whole(self, reply: Reply, body: dict[str, Any]) -> None:
        if reply.wait is not None:
            reply.wait.wait(10)
        payload = reply.body
        if payload is None:
            payload = json.dumps(_content(reply, self.path, body)).encode()
        payload = payload.replace(b"AUTHORIZATION", str(self.headers["Authorization"]).encode())
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload) + reply.missing_bytes))
        if reply.retry_after is not None:
            self.send_header("Retry-After", reply.retry_after)
        if reply.location is not None:
            self.send_header("Location", reply.location)
        self.end_headers()
        for part in (payload[n : n + 1] for n in range(len(payload))) if reply.drips else [payload]:
            self.wfile.write(part)
            time.sleep(0.1 * reply.drips)
        self.close_connection = self.close_connection or reply.missing_bytes > 0

    def _stream(self, reply: Reply) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        if reply.encoding is not None:
            self.send_header("Content-Encoding", reply.encoding)
        self.end_headers()
        self.close_connection = True
        dialect = dialect_of(self.path)
        frames = reply.frames
        if frames is None and dialect is not None:
            frames = dialect.frames(reply)
        if frames is not None:
            for frame in frames:
                self.wfile.write(frame)
                self.wfile.flush()
            return
        pieces = list(reply.split(reply.text))
        if reply.thinking:
            self._event(delta={"reasoning_content": reply.thinking})
        for n, piece in enumerate(pieces):
            if n == reply.breaks_after:
                return
            if n == reply.fails_after:
                self._send({"error": {"message": "overloaded", "type": "server_error"}})
                return
            if n == len(pieces) - 1 and reply.wait is not None:
                reply.wait.wait(10)
            self._event(delta={"content": piece, **({} if n else reply.message)})
        self._event(delta={}, finish_reason=reply.finish_reason, **reply.choice)
        last = {**HEAD, "object": "chat.completion.chunk", "choices": []}
        self._send(last if reply.usage is ... else {**last, "usage": reply.usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(
        self, *, delta: dict[str, Any], finish_reason: str | None = None, **more: Any
    ) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, **more}
        self._send({**HEAD, "object": "chat.completion.chunk", "choices": [choice]})

    def _send(self, content: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        return


def _content(reply: Reply, path: str, body: dict[str, Any]) -> dict[str, Any]:
    if reply.status >= 300:
        return {"error": {"message": f"status {reply.status}", "type": "error"}}
    if (dialect := dialect_of(path)) is not None:
        return dialect.whole(reply)
    message = {"role": "assistant", "content": reply.text, "reasoning_content": reply.thinking}
    choice = {
        "index": 0,
        "message": {**message, **reply.message},
        "finish_reason": reply.finish_reason,
        **reply.choice,
    }
    head = {**HEAD, "object": "chat.completion", "model": body.get("model", "x")}
    content = {**head, "choices": [choice]}
    return content if reply.usage is ... else {**content, "usage": reply.usage}
