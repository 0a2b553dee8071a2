"""A server of this process that answers by rule, and study files that ask it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.chat import ChatServer, Reply

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


class Server:
    """Model ``e1`` is wrong where the number modulo 3 is 1, and so on; every request is logged.

    Attributes:
        asked: Model and messages of every request, in order.
        refusals: Status and body per model; {header} in a body is the Authorization header.
        finish_reason: Why each reply ended.
        holds_after: Number of requests after which no more replies are sent.
        is_holding: Set when a request is held.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.refusals: dict[str, tuple[int, str]] = {}
        self.finish_reason = "stop"
        self.holds_after: int | None = None
        self.is_holding, self._released = threading.Event(), threading.Event()
        self._chat = ChatServer(lambda body: self.reply(body))
        self.url = self._chat.url

    @property
    def answered(self) -> list[tuple[str, str]]:
        """The same of every request whose reply was sent."""
        return [_request(body) for body in self._chat.answered]

    @property
    def keys(self) -> set[str]:
        """The Authorization headers of all requests."""
        return {headers["Authorization"] for headers in self._chat.headers}

    def reply(self, body: dict[str, Any]) -> Reply:
        """Return the reply to a request."""
        self.asked.append(_request(body))
        if self.holds_after is not None and len(self.asked) > self.holds_after:
            self.is_holding.set()
            self._released.wait(60)
        if body["model"] in self.refusals:
            status, text = self.refusals[body["model"]]
            error = {"error": {"message": text.replace("{header}", "AUTHORIZATION")}}
            return Reply(status=status, body=json.dumps(error).encode())
        number = int(body["messages"][-1]["content"].splitlines()[0].split()[-1])
        is_wrong = number % 3 == int(body["model"][-1])
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        text = f"no {number}x" if is_wrong else f"{number}"
        return Reply(text, usage=usage, finish_reason=self.finish_reason)

    def release(self) -> None:
        """Reply again, also to what is held."""
        self.holds_after = None
        self._released.set()

    def stop(self) -> None:
        """Answer no more; may be called twice."""
        self.release()
        self._chat.server_close()


def _request(body: dict[str, Any]) -> tuple[str, str]:
    return body["model"], json.dumps(body["messages"])


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
