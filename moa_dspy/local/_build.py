"""From a model's name, or a file, to the DSPy engine that answers with it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from moa_dspy.local._catalogue import CATALOGUE
from moa_dspy.local._checksums import verify
from moa_dspy.local._server import shared_server
from moa_dspy.local._weights import find

if TYPE_CHECKING:
    from moa_dspy.local._engine import AsyncLocalEngine, LocalEngine


def local_engine(
    name_or_path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    n_slots: int = 4,
    n_context: int = 2048,
    n_threads: int | None = None,
    asynchronous: bool = False,
) -> LocalEngine | AsyncLocalEngine:
    """Return an engine over this process's shared server; the model loads at the first request.

    Args:
        name_or_path: A catalogue name, or the path of a GGUF file.
        sha256: What the file must have; None takes the catalogue's for a name, and anything for a
            path.
        n_slots: Requests answered at once.
        n_context: Tokens of prompt and answer together, per request.
        n_threads: None takes every core of this process.
        asynchronous: Return the engine for event loops.

    Raises:
        ChecksumError: the file has another sha256.
        LocalModelError: the file is absent or no GGUF; the message says what to run.
    """
    from moa_dspy.local._engine import AsyncLocalEngine, LocalEngine

    path = find(name_or_path)
    known = CATALOGUE.get(os.fspath(name_or_path))
    expected = sha256 or (known.sha256 if known else None)
    if expected is not None:
        verify(path, expected)
    server = shared_server(path, n_slots=n_slots, n_context=n_context, n_threads=n_threads)
    return AsyncLocalEngine(server) if asynchronous else LocalEngine(server)
