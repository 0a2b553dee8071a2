"""Engines that ask an OpenAI-compatible server, over connections that this library keeps open.

They use lm15, DSPy's client library, directly for the protocol and the connections. DSPy's router
would look up the route of every request (in a thread if asynchronous), and its connections would
read the proxy variables for each request: a third of a call's work on a fast server.
``moa_dspy.calls.lm.clients`` has the engines of all other endpoints.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from moa_dspy.calls.lm.response import RegularReply, check_ended
from moa_dspy.calls.request import most_open_files
from moa_dspy.dspy_internals import (
    HttpResponse,
    ReadTimeout,
    StdlibAsyncTransport,
    StdlibTransport,
    WriteTimeout,
    achecked_stream,
    aclosing_stream,
    checked_stream,
    closing_stream,
    lm15,
    validate_request,
)
from moa_dspy.vendors import NATIVE_VENDORS, is_reasoning_model, server_words, shown_body, vendor_of

LONGEST_CONNECT_SECONDS: Final = 10.0
"""A host that accepts no connection in this time is down; answers may take far longer."""


_EVENTS_ASKED: Final = re.compile(rb'"stream":\s*true')
NO_KEY: Final = "EMPTY"
"""Sent to servers without keys, as the header must not be empty."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address, key and time limit of a model; the key is held in memory only and never shown.

    Attributes:
        model: ``vendor/NAME``.
        api_base: URL of an OpenAI-compatible server; None is that of the vendor.
        api_key: The key itself.
        client: ``litellm`` sends every request through LiteLLM.
        timeout_seconds: Longest wait to connect (never above 10 s), and for the next bytes of an
            answer; a stream that keeps arriving is not cut. None takes the client's default, 600 s.
        headers: Sent with every request; not shown, as a header may hold a credential.
    """

    model: str
    api_base: str | None = None
    api_key: str | None = field(default=None, repr=False)
    client: Literal["auto", "litellm"] = "auto"
    timeout_seconds: float | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def is_native(self) -> bool:
        """True if DSPy's own client is used; it sends a vendor's own endpoint no headers."""
        takes_headers = self.api_base is not None or not self.headers
        return self.client == "auto" and vendor_of(self.model) in NATIVE_VENDORS and takes_headers

    @property
    def chat_base(self) -> str:
        """URL before ``/chat/completions``; Ollama's documentation gives only the root."""
        url = str(self.api_base).rstrip("/")
        is_root = urlsplit(url).path == ""
        return f"{url}/v1" if is_root and vendor_of(self.model).startswith("ollama") else url

    @property
    def timeouts(self) -> dict[str, float]:
        """The time limits that were set, by name: connect, read, write."""
        if self.timeout_seconds is None:
            return {}
        wait = self.timeout_seconds
        return {"connect": min(wait, LONGEST_CONNECT_SECONDS), "read": wait, "write": wait}


class ChatDialect(lm15.OpenAIChatLM):
    """lm15's chat completions, tolerant of deviations of servers other than OpenAI's."""

    def build_request(self, request: Any, stream: bool) -> Any:
        """Return the wire request; ``max_completion_tokens`` replaces any other limit."""
        if "max_completion_tokens" in (request.config.extensions or {}):
            request = replace(request, config=replace(request.config, max_tokens=None))
        return super().build_request(request, stream)

    def _payload(self, request: Any, stream: bool) -> dict[str, Any]:
        return with_plain_zero(super()._payload(request, stream))

    def parse_response(self, request: Any, response: HttpResponse) -> Any:
        """Return the response.

        Raises:
            ServerError: The server ended the reply early because of a failure.
            ProviderError: The reply holds an error, or no answer.
        """
        try:
            data = response.json()
            if isinstance(data, dict):
                check_ended(data)
                _check_chosen(data, response.text())
            return super().parse_response(request, response)
        except lm15.ProviderError as error:
            _name_address(error, _url(self))
            raise


class AsyncChatDialect(lm15.AsyncOpenAIChatLM):
    """``ChatDialect`` for coroutines."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # The inner object only maps requests and responses; the transport belongs to this object.
        self._inner: Any = ChatDialect(
            api_key=self.api_key,
            transport=self._inner.transport,
            compat=self.compat,
            access=self.access,
        )


def with_plain_zero(body: dict[str, Any]) -> dict[str, Any]:
    """Return a request's fields with temperature 0 instead of 0.0, as in the paper's program."""
    return {**body, "temperature": 0} if body.get("temperature") == 0 else body


def _url(dialect: Any) -> str:
    return f"{dialect.base_url.rstrip('/')}/chat/completions"


def _check_chosen(data: Mapping[str, Any], body: str) -> None:
    """Raise if a reply has neither choices nor an error that lm15 would raise."""
    if not isinstance(data.get("choices"), list) and not isinstance(data.get("error"), Mapping):
        words = server_words(body)["message"]
        shown = shown_body(body)
        nothing = f"The endpoint's reply holds no answer{f': {shown}' if shown else ''}"
        raise lm15.ProviderError(words or nothing)


def _name_address(error: Any, url: str) -> None:
    """Add the address to an error's message, unless it is there already."""
    if url not in str(error.message):
        error.message = f"{error.message} (from {url})"
        error.args = (error.message,)


class RegularTransport(StdlibTransport):
    """lm15's connections, extended to make replies regular."""

    def stream(self, request: Any) -> Any:
        """Return the response to ``request``; its body may still be arriving."""
        response: Any = super().stream(request)
        response._chunks = regular_chunks(_reply_of(request, response), response._chunks)
        return response


class AsyncRegularTransport(StdlibAsyncTransport):
    """``RegularTransport`` for coroutines."""

    async def _do_stream(self, request: Any) -> Any:
        response: Any = await super()._do_stream(request)
        response._chunks = aregular_chunks(_reply_of(request, response), response._chunks)
        return response


def _reply_of(request: Any, response: Any) -> RegularReply:
    wants, location = wants_events(request.body, request.url), response.header("location")
    reply = RegularReply(response.status, request.url, location=location, wants_events=wants)
    response.status = reply.status
    return reply


def wants_events(body: bytes, url: str) -> bool:
    """Return whether a request wants a stream of events."""
    return bool(_EVENTS_ASKED.search(body)) or "streamGenerateContent" in url


def regular_chunks(reply: RegularReply, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the regular form of a reply's body as its chunks arrive."""
    for chunk in chunks:
        yield reply.take(chunk)
    yield reply.rest()


async def aregular_chunks(
    reply: RegularReply, chunks: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    """Yield as ``regular_chunks``, in a coroutine."""
    async for chunk in chunks:
        yield reply.take(chunk)
    yield reply.rest()


class TimedTransport(RegularTransport):
    """``RegularTransport`` with a limit on the total waiting time per exchange.

    A server that sends a byte now and then never exceeds a limit per wait. Time that the caller
    spends between reads of a stream does not count.

    Args:
        seconds: Total time to connect, send and receive; None means no limit.
        limits: As for ``RegularTransport``.
    """

    def __init__(self, *, seconds: float | None, **limits: Any) -> None:
        super().__init__(**limits)
        self._seconds, self._limits = seconds, limits

    def copy(self) -> TimedTransport:
        """Return an open transport with the same settings; lm15 calls this after a close."""
        return TimedTransport(seconds=self._seconds, **self._limits)

    def _open(self, *where: Any, **how: Any) -> Any:
        started = time.monotonic()
        connection: Any = super()._open(*where, **how)
        if self._seconds is not None:
            connection.sock = _TimedSocket(connection.sock, time.monotonic() - started)
        return connection

    def _make_release(self, conn: Any, keep_alive: bool) -> Any:
        # An idle connection to one server must not prevent a connection to another.
        return super()._make_release(conn, keep_alive and not is_crowded())

    def _send_request(self, conn: Any, *args: Any, **kwargs: Any) -> None:
        if self._seconds is not None:
            # The time to connect counts for the first exchange only.
            conn.sock.left, conn.sock.spent = self._seconds - conn.sock.spent, 0.0
        super()._send_request(conn, *args, **kwargs)


class _AsyncTransport(AsyncRegularTransport):
    def _make_release(self, conn: Any, keep_alive: bool) -> Any:
        return super()._make_release(conn, keep_alive and not is_crowded())


class _TimedSocket:
    """A socket with a time limit per exchange; ``left`` is the remaining wait in seconds."""

    def __init__(self, sock: Any, spent: float) -> None:
        self._sock = sock
        self.left, self.spent = 0.0, spent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def settimeout(self, seconds: float | None) -> None:
        """Ignore the limit per wait: the time left for the exchange is never longer."""

    def sendall(self, data: bytes) -> None:
        """Send all bytes within the time left."""
        self._timed(self._sock.sendall, data)

    def recv(self, size: int) -> bytes:
        """Return the next bytes that arrive within the time left."""
        received: bytes = self._timed(self._sock.recv, size)
        return received

    def _timed(self, do: Any, argument: Any) -> Any:
        if self.left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(self.left)
        started = time.monotonic()
        try:
            return do(argument)
        finally:
            self.left -= time.monotonic() - started


class ChatEngine:
    """Engine that makes one attempt per request over kept connections; safe for threads.

    The endpoint's timeout is that of a whole attempt, without the wait for a free connection.
    """

    keeps_time = True
    """True if an attempt ends in time by itself, so that no thread is needed to abandon it."""

    def __init__(self, endpoint: Endpoint) -> None:
        transport = TimedTransport(seconds=endpoint.timeout_seconds, **_limits(endpoint))
        self._chat: Any = ChatDialect(transport=transport, **_dialect(endpoint))
        self._name, self._seconds = endpoint.model.partition("/")[2], endpoint.timeout_seconds

    def complete(self, request: Any) -> Any:
        """Return the response.

        Raises:
            TimeoutError: lm15's, after the endpoint's seconds.
        """
        validate_request(request)
        try:
            return self._chat.complete(replace(request, model=self._name))
        except lm15.TransportError as error:
            if self._seconds is None or not isinstance(error.__cause__, ReadTimeout | WriteTimeout):
                raise
            late = f"There was no complete answer after {self._seconds:g} s."
            raise lm15.TimeoutError(late) from error

    def stream(self, request: Any) -> Iterator[Any]:
        """Yield the events as they arrive; leaving early closes the connection."""
        validate_request(request)
        source = self._chat.stream(replace(request, model=self._name))
        with closing_stream(checked_stream(source, provider=self._chat.provider)) as events:
            yield from events

    def close(self) -> None:
        """Close every connection; a further request opens a new one."""
        self._chat.transport.close()


class AsyncChatEngine:
    """``ChatEngine`` for the coroutines of one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._transport = _AsyncTransport(**_limits(endpoint))
        self._chat = AsyncChatDialect(transport=self._transport, **_dialect(endpoint))
        self._name = endpoint.model.partition("/")[2]

    async def complete(self, request: Any) -> Any:
        """Return the response."""
        validate_request(request)
        return await self._chat.complete(replace(request, model=self._name))

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        """Yield the events as they arrive; leaving early closes the connection."""
        validate_request(request)
        source = self._chat.stream(replace(request, model=self._name))
        checked = achecked_stream(source, provider=self._chat.provider)
        async with aclosing_stream(checked) as events:
            async for event in events:
                yield event

    async def aclose(self) -> None:
        """Close every connection; further requests fail."""
        await self._transport.aclose()


def _dialect(endpoint: Endpoint) -> dict[str, Any]:
    # A provider name of our own selects the right token field and matches no vendor's price.
    digest = hashlib.sha256(str(endpoint.api_base).encode()).hexdigest()[:8]
    access = lm15.AccessPolicy(
        provider=f"moa{digest}",
        supports=lm15.EndpointSupport(complete=True, stream=True),
        auth_modes=("bearer",),
        base_url=endpoint.chat_base,
        headers=endpoint.headers,
    )
    compat = lm15.OpenAIChatCompat.preset("vllm")
    if is_reasoning_model(endpoint.model):
        compat = replace(compat, max_tokens_field="max_completion_tokens")
    return {"api_key": endpoint.api_key or NO_KEY, "access": access, "compat": compat}


def _limits(endpoint: Endpoint) -> dict[str, Any]:
    timeouts = {f"{name}_timeout": seconds for name, seconds in endpoint.timeouts.items()}
    # The wait for a free connection is a wait for our own calls, not for the endpoint.
    return {"pool_timeout": None, "trust_env": _has_proxy(endpoint.chat_base), **timeouts}


def _has_proxy(url: str) -> bool:
    """Return whether the environment names a proxy for ``url``; it is read once per engine."""
    target, proxies = urlsplit(url), getproxies()
    named = proxies.get(target.scheme) or proxies.get("all")
    return bool(named) and not proxy_bypass(target.hostname or "")


def is_crowded() -> bool:
    """Return whether this process has opened three quarters of the files that it may open."""
    most = most_open_files()
    if most is None:
        return False
    try:
        return 4 * len(os.listdir(_OPEN_FILES)) > 3 * most
    except OSError:
        return False


_OPEN_FILES: Final = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
