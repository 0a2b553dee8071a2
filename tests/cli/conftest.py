"""A server of this process that answers by rule, and a folder to run commands in."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from moa_dspy.cli import app

# Agent `good` knows every answer, `bad` none: the best single agent is never in doubt.
STUDY = """
name = "tiny"
seed = 1
pool = "pool.toml"
[task]
signature = "question -> answer"
adapter = "plain"
metric = "answer_match"
[data]
path = "rows.jsonl"
inputs = ["question"]
split_column = "split"
[space]
combines = ["synthesize"]
max_depth = 1
[search]
n_trials = 3
"""


class Rule(BaseHTTPRequestHandler):
    """Answers the number in the question; `bad` adds one, `third-i` where number % 3 is i."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"].split("Responses from models:")[0]
        number = int(question.split()[-1]) + (body["model"] == "bad")
        if (model := body["model"]).startswith("third-"):
            wrong = number % 3 == int(model[-1])
            # Each errs in its own way: two that err alike would outvote the third.
            number += wrong * (100 + int(model[-1]))
        message = {"role": "assistant", "content": f"{number}"}
        reply = {
            "id": "1",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
        }
        payload = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Rule) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/v1"
        running.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with a pool called `local` and a study of the same agents."""
    agents = [
        f'[[agents]]\nname = "{name}"\nmodel = "openai/{name}"\napi_base = "{server}"\n'
        "temperature = 0.0\nusd_per_million_prompt_tokens = 1.0\n"
        for name in ("good", "bad")
    ]
    pools = tmp_path / "optimize" / "pools"
    pools.mkdir(parents=True)
    for path in (pools / "local.toml", tmp_path / "pool.toml"):
        path.write_text("\n".join(agents), "utf-8")
    rows = [
        {"split": split, "question": f"Repeat {split} {i}", "answer": str(i)}
        for split in ("train", "val", "test")
        for i in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "study.toml").write_text(STUDY, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run() -> Callable[..., Result]:
    """Return what runs the command with some arguments; a bug comes out as it is."""
    return lambda *arguments: CliRunner().invoke(app, arguments, catch_exceptions=False)
