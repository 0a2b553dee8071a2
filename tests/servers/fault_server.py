"""An OpenAI-compatible server that answers by content, fails as it is told, and keeps count.

Usage: python tests/servers/fault_server.py [PORT]

It prints its port, serves 127.0.0.1 until its standard input closes, and runs as a process of its
own. The path says how: http://127.0.0.1:PORT/200/30/v1 answers after 200 ms, and 30 % of the
attempts fail. Which attempts fail, and how, is drawn from the request and the number of times it
was asked before; what is answered depends on the request alone: model ``e1`` is wrong where the
number of the question modulo 3 is 1, and so on, and who reads references repeats the first.
GET /stats returns what was asked, and answered completely, for whom and when (on the clock that
all processes of a machine share), and whether the asker had hung up before: the bearer token says
who asks. GET /gate/0 makes everybody wait, GET /gate/1 lets them through.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import sys
import time
from typing import Any

FAULTS = ("busy", "down", "dropped", "hanging", "half", "other_json", "empty")
_ROUTE = re.compile(r"POST /(\d+)/(\d+)/v1/chat/completions ")
_NUMBER = re.compile(r"(\d+)\s*$")
_REFERENCES = "Responses from models:"


def name_of(model: str, texts: list[str]) -> str:
    """Return what names a request by model and content, here and in a call store."""
    return hashlib.sha256("\0".join([model, *texts]).encode()).hexdigest()[:24]


def answer_to(model: str, texts: list[str]) -> str:
    """Return what the model answers: a number, or a wrong one."""
    text = texts[-1]
    if _REFERENCES in "".join(texts) or "numbered responses" in "".join(texts):
        number = sum(map(ord, "".join(texts))) % 7
        return f"{number}" if number == 0 else _first_number(text)
    question = _first_number(text)
    return f"no {question}x" if int(question) % 3 == int(model[-1]) else question


def _first_number(text: str) -> str:
    found = re.search(r"\d+", text)
    return found[0] if found else "0"


class Books:
    """What was asked and answered."""

    def __init__(self) -> None:
        self.asked: dict[str, list[str]] = {}
        self.answered: dict[str, list[dict[str, Any]]] = {}
        self.faults: dict[str, int] = {}
        self.first = self.last = 0.0
        self.n_now = self.n_most = 0
        self.gate = asyncio.Event()
        self.gate.set()


BOOKS: Books


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection, a request at a time."""
    try:
        while head := await _head(reader):
            if head.startswith("GET "):
                await _tell(head, writer)
            elif not await _chat(head, reader, writer):
                break
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> str:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return ""


async def _tell(head: str, writer: asyncio.StreamWriter) -> None:
    path = head.split()[1]
    if path.startswith("/gate/"):
        (BOOKS.gate.set if path.endswith("1") else BOOKS.gate.clear)()
    stats = {name: value for name, value in vars(BOOKS).items() if name != "gate"}
    writer.write(_reply(200, json.dumps(stats).encode()))
    await writer.drain()


async def _chat(head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer, or fail; return whether the connection goes on."""
    found, length = _ROUTE.match(head), re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
    assert found is not None
    assert length is not None
    match = re.search(r"authorization: Bearer (\S+)", head, re.IGNORECASE)
    body = json.loads(await reader.readexactly(int(length[1])))
    texts = [_text(message["content"]) for message in body["messages"]]
    name, asked_at = name_of(body["model"], texts), time.monotonic()
    asker = match[1] if match else ""
    n_before = len(BOOKS.asked.setdefault(name, []))
    BOOKS.asked[name].append(asker)
    BOOKS.first = BOOKS.first or time.monotonic()
    BOOKS.n_now += 1
    BOOKS.n_most = max(BOOKS.n_most, BOOKS.n_now)
    try:
        await BOOKS.gate.wait()
        await asyncio.sleep(int(found[1]) / 1_000)
        fault = _fault(name, n_before, share=int(found[2]) / 100)
        if fault is not None:
            BOOKS.faults[fault] = BOOKS.faults.get(fault, 0) + 1
            return await _fail(fault, reader, writer)
        has_left = reader.at_eof() or writer.is_closing()
        writer.write(_reply(200, _content(answer_to(body["model"], texts))))
        await writer.drain()
    finally:
        BOOKS.n_now -= 1
    BOOKS.last = time.monotonic()
    answer = {"asker": asker, "asked": asked_at, "sent": BOOKS.last, "has_left": has_left}
    BOOKS.answered.setdefault(name, []).append(answer)
    return True


def _fault(name: str, n_before: int, *, share: float) -> str | None:
    rng = random.Random(f"{name}/{n_before}")
    return rng.choice(FAULTS) if rng.random() < share else None


async def _fail(fault: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    error = json.dumps({"error": {"message": fault, "type": "error"}}).encode()
    whole = _reply(200, _content("half of it is missing"))
    empty = json.dumps({"id": "x", "object": "chat.completion", "choices": []}).encode()
    replies = {
        "busy": _reply(429, error, "Retry-After: 1\r\n"),
        "down": _reply(500, error),
        "half": whole[: len(whole) // 2],
        "other_json": _reply(200, b'{"choices": "none today"}'),
        "empty": _reply(200, empty),
    }
    if fault == "hanging":
        await reader.read(1)  # until the other side has had enough
        return False
    writer.write(replies.get(fault, b""))
    await writer.drain()
    return fault not in ("dropped", "half")


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _content(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    choices = [{**choice, "finish_reason": "stop"}]
    head = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
    return json.dumps({**head, "choices": choices, "usage": usage}).encode()


def _reply(status: int, body: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def serve(port: int) -> None:
    """Serve until standard input closes; port 0 is a free one."""
    global BOOKS
    BOOKS = Books()
    server = await asyncio.start_server(serve_one, "127.0.0.1", port, backlog=1_024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)  # whoever still waits for an answer gets none, and no traceback is printed


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
