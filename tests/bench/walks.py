"""The files that a reader passes on two walks through the library.

    uv run python tests/bench/house.py --walks [--json]

``forward``: a mixture is asked, until a request reaches a server on this machine.
``study``: ``moa-dspy optimize optimize/quickstart.toml``, from its first line to the verdict.
A file counts if one of its functions runs; what only runs at import does not. A hop is a call from
one file into another that was not made before.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import moa_dspy

PACKAGE = Path(moa_dspy.__file__).parent
STUDY = Path(__file__).parent.parent.parent / "optimize" / "quickstart.toml"


class Walk:
    """Files in the order in which they were entered, and hops between them."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}
        self.hops: set[tuple[str, str]] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or frame.f_code.co_name == "<module>":
            return
        if (here := file_of(frame.f_code.co_filename)) is None:
            return
        self.files[here] = None
        caller, before = frame.f_back, None
        while caller is not None and (before := file_of(caller.f_code.co_filename)) is None:
            caller = caller.f_back
        if before is not None and before != here:
            self.hops.add((before, here))

    @contextmanager
    def walking(self) -> Iterator[None]:
        threading.setprofile(self)
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def shown(self) -> dict[str, Any]:
        return {"n_files": len(self.files), "n_hops": len(self.hops), "files": list(self.files)}


@cache  # asked at every call of a function
def file_of(name: str) -> str | None:
    """Return a file of the library as seen from there; None for all others."""
    path = Path(name)
    is_ours = path.suffix == ".py" and path.is_relative_to(PACKAGE)  # a template has functions too
    return str(path.relative_to(PACKAGE)) if is_ours else None


class _Paris(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "Paris"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        body = json.dumps({**reply, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


def forward() -> Walk:
    """Ask a mixture of two agents of a local server."""
    from moa_dspy.adapters import PlainChat
    from moa_dspy.agent import Agent
    from moa_dspy.mixture import MixtureOfAgents
    from moa_dspy.pool import Pool

    walk = Walk()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Paris) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        pool = Pool([Agent(name=name, model=f"openai/{name}", api_base=url) for name in "ab"])
        program = MixtureOfAgents(
            "question -> answer", "a + b > synthesize(a)", pool=pool, adapter=PlainChat()
        )
        program(question="What is the capital of Spain?")  # connections are open from here on
        with walk.walking():
            program(question="What is the capital of France?")
        server.shutdown()
        thread.join()
    return walk


def study() -> Walk:
    """Run the quickstart from its stored calls."""
    from moa_dspy.cli import app

    walk = Walk()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), walk.walking():
        app(["optimize", str(STUDY), "--json", "--out", folder], standalone_mode=False)
    return walk


def walks() -> dict[str, dict[str, Any]]:
    """Return both walks: the number of files and of hops, and the files."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "moa_dspy."):
        # An import on the way would count: bodies of classes run then.
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return {"forward": forward().shown(), "study": study().shown()}
