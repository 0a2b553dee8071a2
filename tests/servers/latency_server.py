"""An OpenAI-compatible server that answers every chat after a fixed time, for benchmarks.

Usage: python tests/servers/latency_server.py

It prints its port, serves 127.0.0.1 until its standard input closes, and runs as a process of
its own: a server in the client's interpreter would be counted as the client's work. The path
says the latency: http://127.0.0.1:PORT/200/v1 answers after 200 ms, /0/v1 at once. The answer is
always the same, in the layout that DSPy's ChatAdapter asks for, whole or as a stream. One protocol
object per connection and no parsing beyond the length of the body and whether a stream is asked
for: about 30 microseconds per request.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

ANSWER = "[[ ## answer ## ]]\nParis is the capital of France.\n\n[[ ## completed ## ]]"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_LATENCY = re.compile(rb"POST /(\d+)/")


def _reply() -> bytes:
    message = {"role": "assistant", "content": ANSWER}
    content = {
        "id": "fixed",
        "object": "chat.completion",
        "created": 1,
        "model": "fixed",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


REPLY = _reply()


def _stream() -> bytes:
    """Return the answer as a stream of chunks, word by word."""
    head = {"id": "fixed", "object": "chat.completion.chunk", "created": 1, "model": "fixed"}
    words = re.findall(r"\S+\s*", ANSWER)
    deltas = [*({"content": word} for word in words), {}]
    chunks = [
        {
            **head,
            "choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}],
        }
        for delta in deltas
    ]
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    chunks.append({**head, "choices": [], "usage": usage})
    lines = [*map(json.dumps, chunks), "[DONE]"]
    pieces = [f"data: {line}\n\n".encode() for line in lines]
    sent = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    top = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return top.encode() + sent + b"0\r\n\r\n"


STREAM = _stream()
_IS_STREAM = re.compile(rb'"stream": *true')


class Chat(asyncio.Protocol):
    """One connection: a request at a time, as clients without pipelining send them."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, blank, body = self.received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not blank or (length is not None and len(body) < int(length[1])):
            return
        self.received = b""
        reply = STREAM if _IS_STREAM.search(body) else REPLY
        latency = _LATENCY.match(head)
        if latency is None or latency[1] == b"0":
            self.answer(reply)
        else:
            asyncio.get_running_loop().call_later(int(latency[1]) / 1_000, self.answer, reply)

    def answer(self, reply: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(reply)


async def serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Chat, "127.0.0.1", 0, backlog=1_024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve())
