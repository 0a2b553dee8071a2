"""DSPy engines for a local model, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Literal, Self

from moa_dspy.dspy_internals import lm15, validate_request
from moa_dspy.errors import LocalModelError
from moa_dspy.local.server import (
    CATALOGUE,
    LocalServer,
    RefusedError,
    loading,
    shared_server,
)
from moa_dspy.local.weights import find, verify


def local_engine(
    name_or_path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    n_slots: int = 4,
    n_context: int = 2048,
    n_threads: int | None = None,
    asynchronous: bool = False,
) -> LocalEngine | AsyncLocalEngine:
    """Return an engine for this process's shared server; the model loads at the first request.

    Args:
        name_or_path: A catalogue name, or the path of a GGUF file.
        sha256: Required sha256 of the file; None takes the catalogue's for a name, and accepts any
            for a path.
        n_slots: Requests answered at once.
        n_context: Tokens of prompt and answer together, per request.
        n_threads: Threads of the model; None uses every core of this process.
        asynchronous: Return the engine for event loops.

    Raises:
        ChecksumError: If the file has another sha256.
        LocalModelError: If the file is missing or not GGUF; the message says which command to run.
    """
    catalogued = CATALOGUE.get(os.fspath(name_or_path))
    expected = sha256 or (catalogued.sha256 if catalogued else None)
    with loading():
        path = find(name_or_path)
        if expected is not None:
            verify(path, expected)
    server = shared_server(path, n_slots=n_slots, n_context=n_context, n_threads=n_threads)
    return AsyncLocalEngine(server) if asynchronous else LocalEngine(server)


def logprob_settings(n_alternatives: int | None) -> dict[str, Any]:
    """Return llama.cpp's settings for log-probabilities; empty if none are wanted."""
    if n_alternatives is None:
        return {}
    # At 0 llama.cpp returns none at all, not even that of the chosen token.
    return {"logprobs": True, "top_logprobs": max(n_alternatives, 1)}


def token_logprobs(
    choice: dict[str, Any], n_alternatives: int | None
) -> tuple[lm15.TokenLogprob, ...] | None:
    """Read the log-probabilities of an answer's tokens, natural and before sampling settings.

    Args:
        choice: llama.cpp's choice; its alternatives are sorted, likeliest first, and may include
            the chosen token.
        n_alternatives: As in the request.

    Returns:
        One entry per token, or None if none were requested or an answer has no token.
    """
    listed = (choice.get("logprobs") or {}).get("content") or ()
    if n_alternatives is None or not listed:
        return None
    return tuple(
        lm15.TokenLogprob(
            **_facts(entry),
            top=tuple(lm15.TopLogprob(**_facts(e)) for e in entry["top_logprobs"][:n_alternatives]),
        )
        for entry in listed
    )


def _facts(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "token": entry["token"],
        "logprob": float(entry["logprob"]),
        "bytes": tuple(entry["bytes"]),
        "token_id": entry["id"],
    }


_SAMPLING = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "frequency_penalty",
    "presence_penalty",
)
_UNSUPPORTED = ("tool_choice", "reasoning", "probabilities", "service_tier")
_ROLES = {"user": "user", "assistant": "assistant", "developer": "system"}


class _Uncopied:
    """Base of engines that copies of a program share, so that the model is in memory once."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class LocalEngine(_Uncopied):
    """Engine that answers DSPy requests by a local server: texts in, one text out; thread-safe.

    Pass it as ``dspy.LM("local/name", engine=LocalEngine(server))``. Tools, images and reasoning
    settings are refused with lm15.UnsupportedFeatureError.
    """

    def __init__(self, server: LocalServer) -> None:
        self.server = server

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Return the model's answer to one request, in one attempt.

        Raises:
            lm15.UnsupportedFeatureError: If the request has more than texts and sampling settings.
            lm15.ContextLengthError: If the prompt alone fills the server's ``n_context``.
            lm15.InvalidRequestError: If llama.cpp refused the request. lm15.ConfigurationError: If
            the model cannot be loaded on this machine. lm15.ServerError: If llama.cpp failed.
        """
        try:
            answer = self.server.chat(_body(request))
        except LocalModelError as error:
            raise _lm15_error(error) from error
        return _response(answer, request)

    def stream(self, request: lm15.Request) -> Generator[Any, None, None]:
        """Yield the answer's events token by token; raises as ``complete``."""
        finish, usage = None, None
        yield lm15.StreamStartEvent(model=request.model)
        try:
            with closing(self.server.stream(_body(request))) as chunks:
                for chunk in chunks:
                    usage = _usage(chunk["usage"]) if chunk.get("usage") else usage
                    for choice in chunk.get("choices") or ():
                        finish = choice.get("finish_reason") or finish
                        if (delta := _delta(choice, request)) is not None:
                            yield lm15.StreamDeltaEvent(delta=delta)
        except LocalModelError as error:
            raise _lm15_error(error) from error
        yield lm15.StreamEndEvent(finish_reason=_finish(finish), usage=usage)

    def close(self) -> None:
        """Do nothing, as the engine does not own the server."""


class AsyncLocalEngine(_Uncopied):
    """LocalEngine for event loops, with as many parallel requests as the server has slots."""

    def __init__(self, server: LocalServer) -> None:
        self.server = server
        self._engine = LocalEngine(server)
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """Return the model's answer; raises as LocalEngine does."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor(), self._engine.complete, request)

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        """Yield the answer's events token by token; raises as LocalEngine does."""
        loop, events = asyncio.get_running_loop(), self._engine.stream(request)
        step = None
        try:
            while True:
                step = loop.run_in_executor(self._executor(), next, events, None)
                # A cancelled task must not leave a thread inside the generator.
                if (event := await asyncio.shield(step)) is None:
                    return
                yield event
        finally:
            if step is not None:
                step.add_done_callback(lambda _: events.close())

    async def aclose(self) -> None:
        """Stop the threads; the server stays open."""
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)

    def _executor(self) -> ThreadPoolExecutor:
        # Not asyncio's own executor: it has few threads, and other work would wait for the model.
        with self._lock:
            if self._threads is None:
                n_slots = self.server.n_slots
                self._threads = ThreadPoolExecutor(n_slots, thread_name_prefix="local-model")
            return self._threads


def _body(request: lm15.Request) -> dict[str, Any]:
    validate_request(request)
    return {"messages": _messages(request), **_settings(request)}


def _messages(request: lm15.Request) -> list[dict[str, str]]:
    if request.tools:
        raise lm15.UnsupportedFeatureError("Local models cannot use tools.", feature="tools")
    messages = []
    if request.system is not None:
        parts = request.system
        system = parts if isinstance(parts, str) else _text(parts)
        messages.append({"role": "system", "content": system})
    for message in request.messages:
        if message.role not in _ROLES:
            text = f"Local models cannot read {message.role} messages."
            raise lm15.UnsupportedFeatureError(text, feature=message.role)
        messages.append({"role": _ROLES[message.role], "content": _text(message.parts)})
    return messages


def _text(parts: tuple[Any, ...]) -> str:
    for part in parts:
        if not isinstance(part, lm15.TextPart):
            text = f"Local models read text only, but the request has a {part.type} part."
            raise lm15.UnsupportedFeatureError(text, feature=part.type)
    return "".join(part.text for part in parts)


def _settings(request: lm15.Request) -> dict[str, Any]:
    """Return the given sampling settings under llama.cpp's names."""
    config = request.config
    for name in _UNSUPPORTED:
        if getattr(config, name) is not None:
            raise lm15.UnsupportedFeatureError(
                f"Local models do not have the setting `{name}`.", feature=name
            )
    settings = {name: getattr(config, name) for name in _SAMPLING}
    settings = {name: value for name, value in settings.items() if value is not None}
    if config.stop:
        settings["stop"] = list(config.stop)
    if config.response_format is not None:
        settings["response_format"] = _response_format(config.response_format)
    return settings | logprob_settings(config.logprobs) | dict(config.extensions or {})


def _response_format(shape: dict[str, Any]) -> dict[str, Any]:
    if shape["type"] != "json_schema":
        return shape
    # lm15's schema is flat, that of OpenAI's protocol is nested.
    nested = {"name": "answer"} | {key: value for key, value in shape.items() if key != "type"}
    return {"type": "json_schema", "json_schema": nested}


def _response(answer: dict[str, Any], request: lm15.Request) -> lm15.Response:
    choice = answer["choices"][0]
    return lm15.Response(
        id=answer.get("id"),
        model=request.model,
        message=lm15.Message.assistant([lm15.TextPart(choice["message"].get("content") or "")]),
        finish_reason=_finish(choice["finish_reason"]),
        usage=_usage(answer["usage"]),
        logprobs=token_logprobs(choice, request.config.logprobs),
    )


def _finish(reason: str | None) -> Literal["length", "stop"]:
    return "length" if reason == "length" else "stop"


def _usage(usage: dict[str, Any]) -> lm15.Usage:
    return lm15.Usage(
        input_tokens=usage["prompt_tokens"],
        output_tokens=usage["completion_tokens"],
        total_tokens=usage["total_tokens"],
    )


def _delta(choice: dict[str, Any], request: lm15.Request) -> lm15.TextDelta | None:
    text = (choice.get("delta") or {}).get("content")
    if not text:
        return None
    return lm15.TextDelta(text=text, logprobs=token_logprobs(choice, request.config.logprobs) or ())


def _lm15_error(error: LocalModelError) -> Exception:
    """Return the failure as an lm15 error; only lm15.ServerError is retried."""
    message = str(error)
    if not isinstance(error, RefusedError):
        failure: Exception = lm15.ConfigurationError(message)
    elif error.kind == "exceed_context_size_error":
        failure = lm15.ContextLengthError(message, status=error.status)
    elif 400 <= error.status < 500:
        failure = lm15.InvalidRequestError(message, status=error.status)
    else:
        failure = lm15.ServerError(message, status=error.status)
    return failure
