"""The choice of an engine for an endpoint, and DSPy's and LiteLLM's clients as engines.

A reply is brought into a regular form as its bytes arrive, so every client reads the same: error
messages with the server's text and the requested address, content and token counts of the expected
types, and a stream of events where a stream was requested.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from moa_dspy.calls.call import without_odd_usage
from moa_dspy.calls.lm.endpoint import (
    NO_KEY,
    AsyncChatEngine,
    AsyncRegularTransport,
    ChatEngine,
    Endpoint,
    RegularTransport,
    aregular_chunks,
    regular_chunks,
    wants_events,
    with_plain_zero,
)
from moa_dspy.calls.lm.response import RegularReply
from moa_dspy.calls.lm.stream import LiteLLMEvents
from moa_dspy.calls.reply import REFUSAL
from moa_dspy.dspy_internals import (
    AsyncLiteLLMEngine,
    AsyncLM15Engine,
    LiteLLMEngine,
    LM15Engine,
    aclosing_stream,
    closing_stream,
    litellm_errors,
    lm15,
    plain,
)
from moa_dspy.vendors import OWN_PROTOCOL, gateway_of


def endpoint_engine(endpoint: Endpoint, *, asynchronous: bool) -> Any:
    """Return an engine for ``endpoint`` that makes one attempt; the LM retries.

    It has ``complete``, ``stream`` and ``close``. An asynchronous engine works in any event loop;
    its ``aclose`` closes the connections of the running loop.
    """
    if not endpoint.is_native:
        return _Named(_litellm(endpoint, asynchronous=asynchronous), endpoint.model)
    if endpoint.api_base is None:
        return _Named(_vendor(endpoint, asynchronous=asynchronous), endpoint.model)
    return PerLoop(lambda: AsyncChatEngine(endpoint)) if asynchronous else ChatEngine(endpoint)


class _Named:
    """Replaces the agent's name on requests by the endpoint's model name."""

    def __init__(self, engine: Any, model: str) -> None:
        self._engine, self._model = engine, model

    def complete(self, request: Any) -> Any:
        """Ask the endpoint; returns a coroutine if its engine is asynchronous."""
        return self._engine.complete(replace(request, model=self._model))

    def stream(self, request: Any) -> Any:
        """Return an iterator of the events, which is asynchronous if the engine is."""
        return self._engine.stream(replace(request, model=self._model))

    def close(self) -> None:
        """Close the connections; those of every event loop if the engine is asynchronous."""
        if (close := getattr(self._engine, "close", None)) is not None:
            close()

    async def aclose(self) -> None:
        """Close the connections that the running event loop opened."""
        await self._engine.aclose()


class PerLoop:
    """One engine per event loop, made at its first request.

    A connection can only be awaited in the loop that opened it, but a pool outlives a loop: every
    ``asyncio.run`` starts a new loop, and each thread may have its own.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._engines: dict[asyncio.AbstractEventLoop, Any] = {}
        self._lock = threading.Lock()

    def complete(self, request: Any) -> Any:
        """Return a coroutine of the response."""
        return self._loop_engine().complete(request)

    def stream(self, request: Any) -> Any:
        """Return an asynchronous iterator of the events."""
        return self._loop_engine().stream(request)

    def _loop_engine(self) -> Any:
        loop = asyncio.get_running_loop()
        return self._engines.get(loop) or self._add(loop)

    def _add(self, loop: asyncio.AbstractEventLoop) -> Any:
        with self._lock:
            # Engines of closed loops close their idle connections when they are garbage-collected.
            alive = {
                event_loop: engine
                for event_loop, engine in self._engines.items()
                if not event_loop.is_closed()
            }
            self._engines = {**alive, loop: self._make()}
            return self._engines[loop]

    async def aclose(self) -> None:
        """Close the connections of this loop, and drop the engines of closed loops."""
        with self._lock:
            engine = self._engines.pop(asyncio.get_running_loop(), None)
            self._engines = {o: e for o, e in self._engines.items() if not o.is_closed()}
        if engine is not None:
            await engine.aclose()

    def close(self) -> None:
        """Drop the engines of all loops; calls in flight are not affected."""
        with self._lock:
            self._engines = {}


def _vendor(endpoint: Endpoint, *, asynchronous: bool) -> Any:
    vendor = endpoint.model.partition("/")[0]
    config = lm15.RouterConfig(
        api_keys={vendor: endpoint.api_key} if endpoint.api_key else None,
        timeouts=lm15.Timeouts(**endpoint.timeouts, pool=None),
    )
    return PerLoop(lambda: AsyncVendorEngine(config)) if asynchronous else VendorEngine(config)


def _litellm(endpoint: Endpoint, *, asynchronous: bool) -> Any:
    options = {
        "api_key": endpoint.api_key,
        "api_base": endpoint.api_base,
        "timeout": endpoint.timeout_seconds,
        "extra_headers": dict(endpoint.headers) or None,
    }
    arguments = {name: value for name, value in options.items() if value is not None}
    return (
        PerLoop(lambda: AsyncLiteLLMClient(**arguments))
        if asynchronous
        else LiteLLMClient(**arguments)
    )


class VendorEngine(LM15Engine):
    """DSPy's client of vendors, tolerant of invalid token counts.

    Args:
        config: Configuration of lm15's router, without a transport.
        model_type: ``chat`` or ``responses``.
    """

    def __init__(self, config: Any, *, model_type: str = "chat") -> None:
        self._transport = RegularTransport(**config.transport_kwargs())
        super().__init__(_with_transport(config, self._transport), model_type=model_type)

    def close(self) -> None:
        """Close the engine and its connections."""
        super().close()
        self._transport.close()


class AsyncVendorEngine(AsyncLM15Engine):
    """``VendorEngine`` for the coroutines of one event loop."""

    def __init__(self, config: Any, *, model_type: str = "chat") -> None:
        self._transport = AsyncRegularTransport(**config.transport_kwargs())
        super().__init__(_with_transport(config, self._transport), model_type=model_type)

    async def aclose(self) -> None:
        """Close the engine and its connections."""
        await super().aclose()
        await self._transport.aclose()


def _with_transport(config: Any, transport: Any) -> Any:
    return replace(config, transport=transport, timeouts=None, max_connections=None)


class _Regular:
    """Reads LiteLLM's replies through ``RegularReply``, and sends temperature 0 as 0, not 0.0."""

    is_async = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._handler: Any = None
        self._sender: Any = None
        self._lock = threading.Lock()

    def _arguments(self, request: Any, *, streaming: bool = False) -> dict[str, Any]:
        parent: Any = super()
        arguments: dict[str, Any] = parent._arguments(request, streaming=streaming)
        with self._lock:
            if self._handler is None:
                self._handler = _connections(is_async=self.is_async)
                self._sender = _litellm_sender(arguments, self._handler, is_async=self.is_async)
                if not self.is_async:
                    # Connections are closed when the engine is garbage-collected.
                    weakref.finalize(self, self._handler.client.close)
        sender = {} if self._sender is None else {"client": self._sender}
        return {**with_plain_zero(arguments), **sender}

    def _response(self, raw: Any, request: Any) -> Any:
        parent: Any = super()
        return parent._response(_with_refusal(without_odd_usage(plain(raw))), request)


class LiteLLMClient(_Regular, LiteLLMEngine):
    """LiteLLM's client, on connections that make replies regular."""

    def stream(self, request: Any) -> Generator[Any, None, None]:
        """Yield the events of the response."""
        arguments, chunks = self._arguments(request, streaming=True), LiteLLMEvents(request)
        import litellm

        with litellm_errors(model=request.model):
            source: Any = litellm.completion(**arguments)
        with closing_stream(source):
            while True:
                with litellm_errors(model=request.model):
                    chunk = next(source, None)
                if chunk is None:
                    break
                yield from chunks.feed(chunk)
            yield chunks.finish(litellm)

    def close(self) -> None:
        """Close the engine and its connections."""
        super().close()
        if self._handler is not None:
            self._handler.close()


class AsyncLiteLLMClient(_Regular, AsyncLiteLLMEngine):
    """``LiteLLMClient`` for the coroutines of one event loop."""

    is_async = True

    async def stream(self, request: Any) -> AsyncGenerator[Any, None]:
        """Yield the events of the response."""
        arguments, chunks = self._arguments(request, streaming=True), LiteLLMEvents(request)
        import litellm

        with litellm_errors(model=request.model):
            source: Any = await litellm.acompletion(**arguments)
        async with aclosing_stream(source):
            while True:
                with litellm_errors(model=request.model):
                    chunk = await anext(source, None)
                if chunk is None:
                    break
                for event in chunks.feed(chunk):
                    yield event
            yield chunks.finish(litellm)

    async def aclose(self) -> None:
        """Close the engine and its connections."""
        await super().aclose()
        if self._handler is not None:
            await self._handler.close()


def _connections(*, is_async: bool) -> Any:
    """Return LiteLLM's connections, extended to make replies regular."""
    import httpx
    from litellm.llms.custom_httpx.http_handler import (
        AsyncHTTPHandler,
        HTTPHandler,
        get_ssl_configuration,
    )

    handler: Any = AsyncHTTPHandler() if is_async else HTTPHandler()
    if is_async:
        # LiteLLM's own connections stay open, with a warning, when an event loop ends.
        limits = httpx.Limits(max_keepalive_connections=0)
        handler.client = httpx.AsyncClient(verify=get_ssl_configuration(), limits=limits)
    handler.client.event_hooks = {"response": [_amake_regular if is_async else _make_regular]}
    handler.client.follow_redirects = False
    # A stream is read line by line as it arrives, which compressed bytes do not allow.
    handler.client.headers["accept-encoding"] = "identity"
    return handler


def _litellm_sender(arguments: Mapping[str, Any], handler: Any, *, is_async: bool) -> Any:
    """Return the client or connections through which LiteLLM sends a request.

    That is OpenAI's client, the connections, or an object that is both; see
    ``_with_openai_client``. None means that LiteLLM needs another kind of client: then it reads
    replies as they arrive.
    """
    import litellm
    import openai

    model, key = arguments["model"], arguments.get("api_key")
    url = arguments.get("api_base") or arguments.get("base_url")
    try:
        _, vendor, vendor_key, base = litellm.get_llm_provider(
            model, arguments.get("custom_llm_provider"), url, key
        )
    except litellm.exceptions.BadRequestError:
        return None  # LiteLLM reports it itself when it is called
    if vendor in OWN_PROTOCOL:
        return handler
    openai_vendors = {"mistral", *vars(litellm)["openai_compatible_providers"]}
    url = url or (gateway_of(model) if vendor == "openai" else None)
    key = key or vendor_key or (os.environ.get("OPENAI_API_KEY") if vendor == "openai" else None)
    is_openai = vendor == "openai" or (vendor in openai_vendors and not vendor.startswith("azure"))
    if not is_openai or not (key or url):
        return None
    kind: Any = openai.AsyncOpenAI if is_async else openai.OpenAI
    client = kind(
        api_key=key or NO_KEY,
        base_url=url or base,
        organization=arguments.get("organization"),
        http_client=handler.client,
        max_retries=0,
    )
    return client if vendor == "openai" else _with_openai_client(handler, client)


def _with_openai_client(handler: Any, client: Any) -> Any:
    """Return connections that are also OpenAI's client; LiteLLM uses either, by vendor."""
    send = handler.post

    def post(*args: Any, **kwargs: Any) -> Any:
        return (client.post if "cast_to" in kwargs else send)(*args, **kwargs)

    handler.chat, handler.api_key, handler._base_url = client.chat, client.api_key, client._base_url
    handler.post = post
    return handler


def _with_refusal(reply: dict[str, Any]) -> dict[str, Any]:
    """Return LiteLLM's reply with the refusal in the field of the protocol."""
    for choice in reply.get("choices") or ():
        message = choice.get("message") or {}
        refusal = (message.get("provider_specific_fields") or {}).get(REFUSAL)
        if refusal and not message.get(REFUSAL):
            message[REFUSAL] = refusal
    return reply


def _http_reply(response: Any) -> RegularReply:
    request = response.request
    url = str(request.url)
    wants = wants_events(request.content, url)
    return RegularReply(
        response.status_code,
        url,
        location=response.headers.get("location"),
        wants_events=wants,
        tells_errors=not wants,
        is_for_litellm=True,
    )


def _make_regular(response: Any) -> None:
    """Make an httpx reply regular."""
    reply = _http_reply(response)
    if not _is_streamed(response, reply):
        response.read()
        _replace_body(response, reply)


async def _amake_regular(response: Any) -> None:
    reply = _http_reply(response)
    if not _is_streamed(response, reply):
        await response.aread()
        _replace_body(response, reply)


def _is_streamed(response: Any, reply: RegularReply) -> bool:
    """Make the events of a stream regular as they arrive; return False if it has no events."""
    if not reply.wants_events or reply.is_error:
        return False
    if response.headers.get("content-encoding", "identity") == "identity":
        response.stream = _stream_class()(response.stream, reply)
    return True


def _replace_body(response: Any, reply: RegularReply) -> None:
    response._content = reply.take(response.content) + reply.rest()
    response.status_code = reply.status
    for name in ("content-encoding", "content-length", "location"):
        response.headers.pop(name, None)


@cache
def _stream_class() -> Any:
    """Return the class of httpx's streams whose bytes are made regular as they arrive."""
    # Imported late: httpx loads a console, which a search without LiteLLM does not need.
    import httpx

    class RegularStream(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __init__(self, source: Any, reply: RegularReply) -> None:
            self._source, self._reply = source, reply

        def __iter__(self) -> Iterator[bytes]:
            return regular_chunks(self._reply, self._source)

        def __aiter__(self) -> AsyncIterator[bytes]:
            return aregular_chunks(self._reply, self._source)

        def close(self) -> None:
            self._source.close()

        async def aclose(self) -> None:
            await self._source.aclose()

    return RegularStream
