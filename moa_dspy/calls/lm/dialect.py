"""Clients that read replies as servers really send them: chat completions, vendors, LiteLLM.

The server's own words are looked for in every shape that servers use; log-probabilities that
are no number stand for probability 0; content may come as a list of parts.
On every way odd counts of tokens are left out, since the answer beside them is good.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from moa_dspy.calls.call import without_odd_usage
from moa_dspy.calls.lm.response import check_ended
from moa_dspy.dspy_internals import (
    AsyncLiteLLMEngine,
    AsyncLM15Engine,
    HttpResponse,
    LiteLLMEngine,
    LM15Engine,
    StdlibAsyncTransport,
    StdlibTransport,
    lm15,
    plain,
)

_IMPOSSIBLE: Final = -9999.0
"""Log-probability of a token that has probability 0, as vLLM writes it."""
_LONGEST_WORDS: Final = 500


class ChatDialect(lm15.OpenAIChatLM):
    """lm15's chat completions, tolerant of what other servers than OpenAI's send."""

    def build_request(self, request: Any, stream: bool) -> Any:
        """Return the wire request; a ``max_completion_tokens`` of the agent's is the only limit."""
        if "max_completion_tokens" in (request.config.extensions or {}):
            request = replace(request, config=replace(request.config, max_tokens=None))
        return super().build_request(request, stream)

    def _payload(self, request: Any, stream: bool) -> dict[str, Any]:
        return _with_plain_zero(super()._payload(request, stream))

    def normalize_error(self, status: int, body: str) -> Any:
        """Return the error of a reply of ``status``, with the server's words and the address."""
        error: Any = super().normalize_error(status, json.dumps({"error": _said(body)}))
        words = error.message if str(error.message).strip() else f"HTTP {status}"
        error.message = f"{words} (HTTP {status} from {_url(self)}{_hint(status, self.base_url)})"
        error.args = (error.message,)
        return error

    def parse_response(self, request: Any, response: HttpResponse) -> Any:
        """Return the response.

        Raises:
            InvalidRequestError: The server sends the client elsewhere.
            ServerError: The server broke off.
            ProviderError: The reply holds an error, or no answer.
        """
        if 300 <= response.status < 400:
            raise lm15.InvalidRequestError(_redirected(self, response))
        data = response.json()
        if not isinstance(data, dict):
            return super().parse_response(request, response)
        if isinstance(error := data.get("error"), str) and error:
            raise lm15.ProviderError(f"{error} (from {_url(self)})")
        check_ended(data)
        regular = without_odd_usage(_regular(data, "message"))
        body = json.dumps(regular).encode("utf-8", "surrogatepass")
        return super().parse_response(request, replace(response, body=body))

    def parse_stream_events(self, request: Any, raw_event: Any) -> Iterator[Any]:
        """Yield the events of one frame of a stream.

        Raises:
            ServerError: The server broke off.
        """
        if raw_event.data and raw_event.data != "[DONE]":
            frame = json.loads(raw_event.data)
            if isinstance(frame, dict):
                check_ended(frame)
                regular = without_odd_usage(_regular(frame, "delta"))
                raw_event = replace(raw_event, data=json.dumps(regular))
        yield from super().parse_stream_events(request, raw_event)


class AsyncChatDialect(lm15.AsyncOpenAIChatLM):
    """``ChatDialect`` for coroutines."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # It maps, and asks nothing itself: the transport is this object's.
        self._inner: Any = ChatDialect(
            api_key=self.api_key,
            transport=self._inner.transport,
            compat=self.compat,
            access=self.access,
        )


class VendorEngine(LM15Engine):
    """DSPy's client of vendors, tolerant of odd counts of tokens.

    Args:
        config: Of lm15's router, without a transport.
        model_type: ``chat`` or ``responses``.
    """

    def __init__(self, config: Any, *, model_type: str = "chat") -> None:
        self._transport = _Transport(**config.transport_kwargs())
        super().__init__(_over(config, self._transport), model_type=model_type)

    def close(self) -> None:
        """Close the engine and its connections."""
        super().close()
        self._transport.close()


class AsyncVendorEngine(AsyncLM15Engine):
    """``VendorEngine`` for the coroutines of one event loop."""

    def __init__(self, config: Any, *, model_type: str = "chat") -> None:
        self._transport = _AsyncTransport(**config.transport_kwargs())
        super().__init__(_over(config, self._transport), model_type=model_type)

    async def aclose(self) -> None:
        """Close the engine and its connections."""
        await super().aclose()
        await self._transport.aclose()


def _with_plain_zero(body: dict[str, Any]) -> dict[str, Any]:
    """Return a request's fields with temperature 0 as the paper's program writes it, not 0.0."""
    return {**body, "temperature": 0} if body.get("temperature") == 0 else body


def _over(config: Any, transport: Any) -> Any:
    return replace(config, transport=transport, timeouts=None, max_connections=None)


class _Transport(StdlibTransport):
    def stream(self, request: Any) -> Any:
        response: Any = super().stream(request)
        response._chunks = _regular_chunks(response._chunks)
        return response


class _AsyncTransport(StdlibAsyncTransport):
    async def _do_stream(self, request: Any) -> Any:
        response: Any = await super()._do_stream(request)
        response._chunks = _aregular_chunks(response._chunks)
        return response


def _regular_chunks(chunks: Iterator[bytes]) -> Iterator[bytes]:
    reading = _UsageFilter()
    for chunk in chunks:
        yield reading.take(chunk)
    yield reading.rest()


async def _aregular_chunks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    reading = _UsageFilter()
    async for chunk in chunks:
        yield reading.take(chunk)
    yield reading.rest()


class _UsageFilter:
    """Reads a body as it arrives: JSON as a whole, a stream of events line by line."""

    def __init__(self) -> None:
        self._held = b""

    def take(self, chunk: bytes) -> bytes:
        """Return what can be passed on after ``chunk``."""
        self._held += chunk
        if self._held.lstrip()[:1] in (b"", b"{", b"["):
            return b""
        lines, newline, self._held = self._held.rpartition(b"\n")
        return b"\n".join(map(_regular_line, lines.split(b"\n"))) + newline

    def rest(self) -> bytes:
        """Return what was held back, at the end of the body."""
        return _regular_line(self._held)


def _regular_line(line: bytes) -> bytes:
    head, colon, rest = line.partition(b"data:") if line.startswith(b"data:") else (b"", b"", line)
    if b"sage" not in rest:
        return line
    try:
        data = json.loads(rest)
    except ValueError:
        return line
    regular = without_odd_usage(data) if isinstance(data, dict) else data
    return line if regular == data else head + colon + json.dumps(regular).encode()


class _Regular:
    """Writes temperature 0 as 0, and reads a whole reply of LiteLLM's without odd counts."""

    def _arguments(self, request: Any, *, streaming: bool = False) -> dict[str, Any]:
        parent: Any = super()
        arguments: dict[str, Any] = parent._arguments(request, streaming=streaming)
        return _with_plain_zero(arguments)

    def _response(self, raw: Any, request: Any) -> Any:
        parent: Any = super()
        return parent._response(without_odd_usage(plain(raw)), request)


class LiteLLMClient(_Regular, LiteLLMEngine):
    """LiteLLM's client, tolerant of odd counts as far as LiteLLM itself is."""


class AsyncLiteLLMClient(_Regular, AsyncLiteLLMEngine):
    """``LiteLLMClient`` for coroutines."""


def _url(dialect: Any) -> str:
    return f"{dialect.base_url.rstrip('/')}/chat/completions"


def _hint(status: int, base_url: str) -> str:
    path = urlsplit(base_url).path.rstrip("/")
    if status not in (301, 302, 303, 307, 308, 404, 405):
        return ""
    if path.endswith("/chat/completions"):
        return "; `api_base` ends before /chat/completions"
    if "/v1" not in path:
        return "; does `api_base` lack /v1?"
    return ""


def _redirected(dialect: Any, response: HttpResponse) -> str:
    target = response.header("location") or "an address that it does not name"
    hint = _hint(response.status, dialect.base_url)
    return (
        f"{_url(dialect)} redirects to {target} (HTTP {response.status}{hint}); "
        "write the address that answers as `api_base`"
    )


def _said(body: str) -> dict[str, Any]:
    """Return what the server says as OpenAI would: message, and code and type if it has them."""
    try:
        data = json.loads(body)
    except ValueError:
        return {"message": " ".join(body.split())[:_LONGEST_WORDS]}
    if not isinstance(data, Mapping):
        return {"message": str(data)[:_LONGEST_WORDS]}
    inner = data.get("error")
    source = inner if isinstance(inner, Mapping) else data
    found = (source.get(name) for name in ("message", "detail", "msg", "error"))
    words = next((word for word in found if word), "")
    # FastAPI lists what is wrong, field by field.
    told = words if isinstance(words, str) else json.dumps(words, ensure_ascii=False)
    named = {name: source[name] for name in ("code", "type", "param") if source.get(name)}
    return {**named, "message": told[:_LONGEST_WORDS]}


def _regular(data: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a reply or frame whose choices have text and numbers where lm15 wants them."""
    choices = data.get("choices")
    if not isinstance(choices, list):
        return data
    return {**data, "choices": [_regular_choice(choice, kind) for choice in choices]}


def _regular_choice(choice: Any, kind: str) -> Any:
    if not isinstance(choice, dict):
        return choice
    message = choice.get(kind)
    if isinstance(message, dict) and isinstance(message.get("content"), list):
        choice = {**choice, kind: _with_text(message)}
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict) and isinstance(logprobs.get("content"), list):
        entries = [_possible(entry) for entry in logprobs["content"]]
        choice = {**choice, "logprobs": {**logprobs, "content": entries}}
    return choice


def _with_text(message: dict[str, Any]) -> dict[str, Any]:
    parts = [part for part in message["content"] if isinstance(part, dict)]
    text = "".join(str(part.get("text") or "") for part in parts if part.get("type") == "text")
    thought = "".join(_thought(part) for part in parts if part.get("type") == "thinking")
    given = message.get("reasoning_content") or message.get("reasoning") or ""
    return {**message, "content": text, "reasoning_content": f"{given}{thought}" or None}


def _thought(part: dict[str, Any]) -> str:
    inner = part.get("thinking")
    if isinstance(inner, list):
        return "".join(str(one.get("text") or "") for one in inner if isinstance(one, dict))
    return str(inner or "")


def _possible(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    value = entry.get("logprob")
    is_number = isinstance(value, int | float) and math.isfinite(value)
    plain = {**entry, "logprob": value if is_number else _IMPOSSIBLE}
    if isinstance(entry.get("top_logprobs"), list):
        plain["top_logprobs"] = [_possible(other) for other in entry["top_logprobs"]]
    return plain
