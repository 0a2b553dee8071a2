"""An exchange with a server ends in time, however the server spreads its bytes."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator

import pytest
from dspy import lm15

from moa_dspy.calls.lm.endpoint import ChatEngine, Endpoint

PATIENCE_SECONDS = 30
REQUEST = lm15.Request(model="agent/a", messages=(lm15.Message.user("France?"),))
CHOICE = b'{"index": 0, "message": {"role": "assistant", "content": "Paris"}}'
BODY = b'{"id": "r1", "model": "x", "choices": [' + CHOICE + b"]}"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY)


def _request(connection: socket.socket) -> bytes:
    """Return a whole request, which may come in parts; empty at the end of the connection."""
    found = b""
    while part := connection.recv(65_536):
        found += part
        head, ends, body = found.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if ends and len(body) >= (int(length[1]) if length else 0):
            return found
    return b""


class SlowServer:
    """Answers one connection: at once, or byte by byte until it is told to stop."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/v1"
        self.is_trickling, self.stopped = False, threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        with connection:
            while _request(connection):
                if not self.is_trickling:
                    connection.sendall(HEAD + BODY)
                    continue
                for byte in HEAD + BODY:
                    if self.stopped.wait(0.05):
                        return
                    connection.sendall(bytes([byte]))

    def close(self) -> None:
        self.stopped.set()
        self._thread.join(PATIENCE_SECONDS)
        self._listening.close()


@pytest.fixture
def server() -> Iterator[SlowServer]:
    running = SlowServer()
    yield running
    running.close()


def test_a_server_that_sends_a_byte_now_and_then_is_left_in_time(server: SlowServer) -> None:
    # 205 bytes, 20 a second: no single wait is as long as half a second, all are ten.
    server.is_trickling = True
    engine = ChatEngine(Endpoint("openai/x", server.url, timeout_seconds=0.5))
    with pytest.raises(lm15.TimeoutError, match=r"no complete answer after 0\.5 s"):
        engine.complete(REQUEST)
    engine.close()


def test_each_exchange_on_a_kept_connection_has_all_its_time(server: SlowServer) -> None:
    engine = ChatEngine(Endpoint("openai/x", server.url, timeout_seconds=PATIENCE_SECONDS))
    engine.complete(REQUEST)
    ((kept,),) = engine._chat.transport._pool._idle.values()
    kept.sock.left = 0.0
    assert engine.complete(REQUEST).message.parts[0].text == "Paris"
    assert engine._chat.transport.pool_stats()["total_opened"] == 1
    engine.close()


def test_a_closed_engine_opens_connections_again_when_it_is_asked(server: SlowServer) -> None:
    engine = ChatEngine(Endpoint("openai/x", server.url, timeout_seconds=PATIENCE_SECONDS))
    engine.close()
    assert engine.complete(REQUEST).message.parts[0].text == "Paris"
    engine.close()
    assert engine._chat.transport.pool_stats() == {"idle": 0, "in_use": 0, "total_opened": 1}
