"""A study for several processes, and the server that it asks: shared by tests and benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moa_dspy.calls import Call, CallStore
from tests.servers.fault_server import name_of

ROOT = Path(__file__).parent.parent.parent
STUDY = """
name = "{name}"
seed = {seed}
[task]
signature = "question -> answer"
adapter = "plain"
metric = "answer_match"
[data]
path = "rows.jsonl"
inputs = ["question"]
split_column = "split"
[space]
combines = ["synthesize", "vote"]
max_depth = {max_depth}
[search]
n_trials = {n_trials}
num_threads = {num_threads}
"""
AGENT = """
[[agents]]
name = "e{n}"
model = "openai/e{n}"
temperature = 0.0
max_tokens = 64
api_base = "{base}"
"""


@dataclass(frozen=True)
class FaultServer:
    """A running server.

    Attributes:
        port: On this machine.
        process: The server.
    """

    port: int
    process: subprocess.Popen[str]

    def kill(self) -> None:
        """Let nobody answer any more."""
        self.process.kill()
        self.process.wait()

    def base(self, *, latency_ms: int = 0, fault_percent: int = 0) -> str:
        return f"http://127.0.0.1:{self.port}/{latency_ms}/{fault_percent}/v1"

    def get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as reply:
            found: dict[str, Any] = json.load(reply)
            return found

    def stats(self) -> dict[str, Any]:
        """Return what was asked and answered, and for whom, by name of the request."""
        return self.get("/stats")


@contextmanager
def fault_server(port: int = 0) -> Iterator[FaultServer]:
    """Run the server in a process of its own; port 0 is a free one."""
    command = [sys.executable, str(ROOT / "tests" / "servers" / "fault_server.py"), str(port)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        yield FaultServer(int(process.stdout.readline()), process)
        process.stdin.close()


def write_study(
    folder: Path,
    base: str,
    *,
    name: str = "shared",
    seed: int = 1,
    sizes: tuple[int, int] = (12, 15),
    n_trials: int = 8,
    num_threads: int = 4,
    n_agents: int = 3,
    max_depth: int = 1,
    agent: str = "",
    more: str = "",
) -> Path:
    """Write rows and a study of agents at ``base``; ``sizes`` are those of val and test."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"{split}-{i}", "split": split, "question": f"{split} {i}", "answer": f"{i}"}
        for split, n in (("train", 4), ("val", sizes[0]), ("test", sizes[1]))
        for i in range(n)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    text = STUDY.format(
        name=name, seed=seed, n_trials=n_trials, num_threads=num_threads, max_depth=max_depth
    )
    agents = "".join(AGENT.format(n=n, base=base) + agent for n in range(n_agents))
    path = folder / "study.toml"
    path.write_text(text + more + agents, "utf-8")
    return path


def decided(result: Any) -> dict[str, Any]:
    """Return what a study decided, without what a run paid and how long it took."""
    left_out = ("calls", "usd", "seconds")
    plain = {k: v for k, v in dict(result).items() if k not in left_out}
    if "answers" in plain:  # a row of a shared study has them beside the result
        paid = ("calls", "study")  # what each process asked, and a digest of addresses
        plain["answers"] = {k: v for k, v in plain["answers"].items() if k not in paid}
    cleaned: dict[str, Any] = _without_seconds(plain)
    return cleaned


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_seconds(v) for k, v in value.items() if k != "seconds"}
    return [_without_seconds(v) for v in value] if isinstance(value, list) else value


def stored_names(storage: str) -> set[str]:
    """Return the names, as the server knows them, of all requests whose answers are stored."""
    store = CallStore(storage)
    try:
        return {_name(call) for call in store if call.response is not None}
    finally:
        store.close()


def _name(call: Call) -> str:
    request = json.loads(call.request)
    system = request.get("system")
    texts = [] if not system else [system if isinstance(system, str) else _joined(system)]
    texts += [_joined(message["parts"]) for message in request["messages"]]
    return name_of(call.identity.partition("@")[0].partition("/")[2], texts)


def _joined(parts: list[dict[str, Any]]) -> str:
    return "".join(part["text"] for part in parts)
