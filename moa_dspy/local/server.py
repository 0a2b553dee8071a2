"""A GGUF model inside this process: llama.cpp's own server, through xllamacpp."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Generator
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any

from moa_dspy.errors import LocalModelError
from moa_dspy.local.weights import require_gguf

PROMPT_CACHE_MIB = 1024
_SILENT = -1


class RefusedError(LocalModelError):
    """A request that llama.cpp would not answer; ``kind`` is its own word for why."""

    def __init__(self, message: str, *, kind: str, status: int) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status


class LocalServer:
    """A language model on this machine, loaded at the first chat and safe to use from threads.

    At most ``n_slots`` chats are answered at once, in one batch; more wait in line. A slot keeps
    the tokens of its last chat, so chats that begin alike read only what differs.

    Args:
        weights: A GGUF file.
        n_slots: How many chats are answered at once, at least 1.
        n_context: Tokens of prompt and answer together, per chat.
        n_threads: None takes ``usable_cores()`` at loading time.
    """

    def __init__(
        self,
        weights: Path,
        *,
        n_slots: int = 4,
        n_context: int = 1024,
        n_threads: int | None = None,
    ) -> None:
        for name, value in (("n_slots", n_slots), ("n_context", n_context)):
            if value < 1:
                raise LocalModelError(f"`{name}` must be at least 1, but got {value}.")
        if n_threads is not None and n_threads < 1:
            raise LocalModelError(f"`n_threads` must be at least 1, but got {n_threads}.")
        self.weights = weights
        self.n_slots = n_slots
        self.n_context = n_context
        self.n_threads = n_threads
        self._lock = threading.Lock()
        self._loaded: Any = None

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer one OpenAI-style chat completion request; blocks until the answer is whole.

        Raises:
            LocalModelError: the model cannot be loaded, or llama.cpp refused the request.
        """
        server = self._server()
        try:
            answer: dict[str, Any] = server.handle_chat_completions(body)
        except (ValueError, TypeError, RuntimeError) as error:
            raise _refused(error) from error
        if "error" in answer:
            raise _refusal(answer["error"])
        return answer

    def stream(self, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Yield the chunks of a chat completion as they are made; leaving early stops the model.

        Raises:
            LocalModelError: as ``chat``.
        """
        server = self._server()
        chunks: SimpleQueue[dict[str, Any] | Exception | None] = SimpleQueue()
        left = threading.Event()

        def take(chunk: dict[str, Any]) -> bool:
            chunks.put(chunk)
            return left.is_set()  # True ends the generation

        def work() -> None:
            settings = {"stream": True, "stream_options": {"include_usage": True}}
            try:
                server.handle_chat_completions({**body, **settings}, take)
            except Exception as error:
                chunks.put(_refused(error))
            else:
                chunks.put(None)

        # No daemon: llama.cpp would abort the process if it called into an ended interpreter.
        threading.Thread(target=work, name="local-model-stream").start()
        try:
            while (chunk := chunks.get()) is not None:
                if isinstance(chunk, Exception):
                    raise chunk
                if "error" in chunk:
                    raise _refusal(chunk["error"])
                yield chunk
        finally:
            left.set()

    @property
    def url(self) -> str:
        """Address of the same model as an OpenAI-compatible HTTP server on this machine; loads."""
        return str(self._server().listening_address)

    def close(self) -> None:
        """Give the memory back once running chats have ended; a later chat loads again."""
        with self._lock:
            self._loaded = None

    def _server(self) -> Any:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> Any:
        require_gguf(self.weights)
        xllamacpp = _xllamacpp()
        try:
            server = xllamacpp.Server(self._parameters(xllamacpp))
            # A server that is let go before its loop has started never ends (xllamacpp 2026.10);
            # once one token is answered, the loop runs.
            server.handle_completions({"prompt": "a", "n_predict": 1})
        except RuntimeError as error:
            raise LocalModelError(
                f"llama.cpp cannot load {self.weights} ({_megabytes(self.weights)} MB) with "
                f"{self.n_slots} slots of {self.n_context} tokens: the file is damaged or of a "
                f"kind it does not know, or memory is short ({_free_memory()})."
            ) from error
        return server

    def _parameters(self, xllamacpp: ModuleType) -> Any:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(self.weights)
        parameters.n_parallel = self.n_slots
        parameters.n_ctx = self.n_slots * self.n_context  # llama.cpp shares it out over the slots
        n_threads = usable_cores() if self.n_threads is None else self.n_threads
        parameters.cpuparams.n_threads = n_threads
        parameters.cpuparams_batch.n_threads = n_threads
        parameters.verbosity = _SILENT
        # Prompts that fell out of a slot are kept in memory; llama.cpp would take 8 GB for them.
        parameters.cache_ram_mib = PROMPT_CACHE_MIB
        # The wheel for x86 is built for AVX2, where repacked weights read a Q4_K_M prompt 18 %
        # slower and load three times slower, because they cannot be mapped from the file.
        parameters.no_extra_bufts = platform.machine().lower() in {"x86_64", "amd64"}
        # The HTTP side is for this user's programs: no page to browse, no listing of prompts.
        parameters.ui = False
        parameters.endpoint_slots = False
        return parameters


_SERVERS: dict[tuple[Path, int, int, int | None], LocalServer] = {}
_SERVERS_LOCK = threading.Lock()


def shared_server(
    weights: Path, *, n_slots: int = 4, n_context: int = 1024, n_threads: int | None = None
) -> LocalServer:
    """Return this process's one server for these weights and settings; see LocalServer."""
    key = (weights.resolve(), n_slots, n_context, n_threads)
    with _SERVERS_LOCK:
        if key not in _SERVERS:
            _SERVERS[key] = LocalServer(
                weights, n_slots=n_slots, n_context=n_context, n_threads=n_threads
            )
        return _SERVERS[key]


def usable_cores() -> int:
    """Return the cores that this process may run on.

    Busy ones too: idle threads sleep (see ``_xllamacpp``), so a thread more than there
    are free cores costs nothing, while the load at one moment says little of the next.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _xllamacpp() -> ModuleType:
    """Import the runtime with threads that sleep while they wait.

    OpenMP reads its environment once, when it is loaded. Left to spin, two threads on two cores
    take twice as long as one as soon as another process is busy; asleep they never do.
    """
    before = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import xllamacpp
    except ModuleNotFoundError as error:
        message = 'xllamacpp is missing; install it with `pip install "moa-dspy[local]"`.'
        raise LocalModelError(message) from error
    except ImportError as error:  # for example no libgomp on this system
        raise LocalModelError(f"xllamacpp cannot be loaded: {error}.") from error
    finally:
        if before is None:
            os.environ.pop("OMP_WAIT_POLICY", None)
    module: ModuleType = xllamacpp
    return module


def _refused(error: Exception) -> RefusedError:
    if isinstance(error, ValueError | TypeError):
        return RefusedError(str(error), kind="invalid_request_error", status=400)
    return RefusedError(str(error), kind="server_error", status=500)


def _refusal(error: Any) -> RefusedError:
    facts = error if isinstance(error, dict) else {"message": str(error)}
    return RefusedError(
        str(facts.get("message", facts)),
        kind=str(facts.get("type", "server_error")),
        status=int(facts.get("code", 500)),
    )


def _megabytes(path: Path) -> int:
    return path.stat().st_size // 10**6


def _free_memory() -> str:
    try:
        n_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return "how much is free is unknown"
    return f"{n_bytes // 10**6} MB free"
