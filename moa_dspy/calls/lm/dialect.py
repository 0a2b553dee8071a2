"""Clients that read replies as servers really send them: chat completions, vendors, LiteLLM.

A reply is made regular where its bytes arrive, so every client gets the same: the server's own
words with the address that was asked, content and counts in the form that clients take, and a
stream of events where one was asked for.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Final

from moa_dspy.calls.call import without_odd_usage
from moa_dspy.calls.lm.response import LiteLLMEvents, RegularReply, check_ended
from moa_dspy.calls.reply import REFUSAL
from moa_dspy.dspy_internals import (
    AsyncLiteLLMEngine,
    AsyncLM15Engine,
    HttpResponse,
    LiteLLMEngine,
    LM15Engine,
    StdlibAsyncTransport,
    StdlibTransport,
    aclosing_stream,
    closing_stream,
    litellm_errors,
    lm15,
    plain,
)
from moa_dspy.vendors import OWN_PROTOCOL, gateway_of, server_words, shown_body

_EVENTS_ASKED: Final = re.compile(rb'"stream":\s*true')
NO_KEY: Final = "EMPTY"
"""Sent to servers without keys: the header must hold something."""


class ChatDialect(lm15.OpenAIChatLM):
    """lm15's chat completions, tolerant of what other servers than OpenAI's send."""

    def build_request(self, request: Any, stream: bool) -> Any:
        """Return the wire request; a ``max_completion_tokens`` of the agent's is the only limit."""
        if "max_completion_tokens" in (request.config.extensions or {}):
            request = replace(request, config=replace(request.config, max_tokens=None))
        return super().build_request(request, stream)

    def _payload(self, request: Any, stream: bool) -> dict[str, Any]:
        return _with_plain_zero(super()._payload(request, stream))

    def parse_response(self, request: Any, response: HttpResponse) -> Any:
        """Return the response.

        Raises:
            ServerError: The server broke off.
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
        self._transport = RegularTransport(**config.transport_kwargs())
        super().__init__(_over(config, self._transport), model_type=model_type)

    def close(self) -> None:
        """Close the engine and its connections."""
        super().close()
        self._transport.close()


class AsyncVendorEngine(AsyncLM15Engine):
    """``VendorEngine`` for the coroutines of one event loop."""

    def __init__(self, config: Any, *, model_type: str = "chat") -> None:
        self._transport = AsyncRegularTransport(**config.transport_kwargs())
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


def _wants_events(body: bytes, url: str) -> bool:
    return bool(_EVENTS_ASKED.search(body)) or "streamGenerateContent" in url


def _reply_of(request: Any, response: Any) -> RegularReply:
    wants, location = _wants_events(request.body, request.url), response.header("location")
    reply = RegularReply(response.status, request.url, location=location, wants_events=wants)
    response.status = reply.status
    return reply


class RegularTransport(StdlibTransport):
    """lm15's connections, whose replies are made regular."""

    def stream(self, request: Any) -> Any:
        """Return the response to ``request``, whose body arrives."""
        response: Any = super().stream(request)
        response._chunks = _regular_chunks(_reply_of(request, response), response._chunks)
        return response


class AsyncRegularTransport(StdlibAsyncTransport):
    """``RegularTransport`` for coroutines."""

    async def _do_stream(self, request: Any) -> Any:
        response: Any = await super()._do_stream(request)
        response._chunks = _aregular_chunks(_reply_of(request, response), response._chunks)
        return response


def _regular_chunks(reply: RegularReply, chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        yield reply.take(chunk)
    yield reply.rest()


async def _aregular_chunks(
    reply: RegularReply, chunks: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield reply.take(chunk)
    yield reply.rest()


class _Regular:
    """Reads LiteLLM's replies through ``RegularReply``, and writes temperature 0 as 0."""

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
                    # An engine that is used no more leaves nothing open.
                    weakref.finalize(self, self._handler.client.close)
        sender = {} if self._sender is None else {"client": self._sender}
        return {**_with_plain_zero(arguments), **sender}

    def _response(self, raw: Any, request: Any) -> Any:
        parent: Any = super()
        return parent._response(_with_refusal(without_odd_usage(plain(raw))), request)


class LiteLLMClient(_Regular, LiteLLMEngine):
    """LiteLLM's client, which gets regular replies to read."""

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
    """Return connections as LiteLLM makes them, whose replies are made regular."""
    import httpx
    from litellm.llms.custom_httpx.http_handler import (
        AsyncHTTPHandler,
        HTTPHandler,
        get_ssl_configuration,
    )

    handler: Any = AsyncHTTPHandler() if is_async else HTTPHandler()
    if is_async:
        # LiteLLM's own would be left open, with a warning, where an event loop ends.
        limits = httpx.Limits(max_keepalive_connections=0)
        handler.client = httpx.AsyncClient(verify=get_ssl_configuration(), limits=limits)
    handler.client.event_hooks = {"response": [_amake_regular if is_async else _make_regular]}
    handler.client.follow_redirects = False
    # A stream is read as it arrives, and compressed bytes have no lines.
    handler.client.headers["accept-encoding"] = "identity"
    return handler


def _litellm_sender(arguments: Mapping[str, Any], handler: Any, *, is_async: bool) -> Any:
    """Return what LiteLLM is to send a request through.

    That is OpenAI's client, the connections, or what is both; see ``_both``. It is None where
    LiteLLM needs another kind: then it reads replies as they come.
    """
    import litellm
    import openai

    model, key = arguments["model"], arguments.get("api_key")
    url = arguments.get("api_base") or arguments.get("base_url")
    try:
        _, vendor, found, base = litellm.get_llm_provider(
            model, arguments.get("custom_llm_provider"), url, key
        )
    except litellm.exceptions.BadRequestError:
        return None  # it says so itself when it is asked
    if vendor in OWN_PROTOCOL:
        return handler
    known = {"mistral", *vars(litellm)["openai_compatible_providers"]}
    url = url or (gateway_of(model) if vendor == "openai" else None)
    key = key or found or (os.environ.get("OPENAI_API_KEY") if vendor == "openai" else None)
    is_openai = vendor == "openai" or (vendor in known and not vendor.startswith("azure"))
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
    return client if vendor == "openai" else _both(handler, client)


def _both(handler: Any, client: Any) -> Any:
    """Return connections that are OpenAI's client too: LiteLLM takes one or the other by vendor."""
    send = handler.post

    def post(*args: Any, **given: Any) -> Any:
        return (client.post if "cast_to" in given else send)(*args, **given)

    handler.chat, handler.api_key, handler._base_url = client.chat, client.api_key, client._base_url
    handler.post = post
    return handler


def _with_refusal(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a reply of LiteLLM's with the refusal where the protocol has it."""
    for choice in reply.get("choices") or ():
        message = choice.get("message") or {}
        refusal = (message.get("provider_specific_fields") or {}).get(REFUSAL)
        if refusal and not message.get(REFUSAL):
            message[REFUSAL] = refusal
    return reply


def _http_reply(response: Any) -> RegularReply:
    request = response.request
    url = str(request.url)
    wants = _wants_events(request.content, url)
    return RegularReply(
        response.status_code,
        url,
        location=response.headers.get("location"),
        wants_events=wants,
        tells_errors=not wants,
        is_for_litellm=True,
    )


def _make_regular(response: Any) -> None:
    """Make a reply of httpx's regular."""
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
    """Have the events of a stream made regular as they arrive; False for a reply without any."""
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
    # Late: httpx loads a console, which a search without LiteLLM does not need.
    import httpx

    class RegularStream(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __init__(self, source: Any, reply: RegularReply) -> None:
            self._source, self._reply = source, reply

        def __iter__(self) -> Iterator[bytes]:
            return _regular_chunks(self._reply, self._source)

        def __aiter__(self) -> AsyncIterator[bytes]:
            return _aregular_chunks(self._reply, self._source)

        def close(self) -> None:
            self._source.close()

        async def aclose(self) -> None:
            await self._source.aclose()

    return RegularStream


def _url(dialect: Any) -> str:
    return f"{dialect.base_url.rstrip('/')}/chat/completions"


def _check_chosen(data: Mapping[str, Any], body: str) -> None:
    """Raise if a reply has neither choices nor an error that lm15 would tell of."""
    if not isinstance(data.get("choices"), list) and not isinstance(data.get("error"), Mapping):
        words = server_words(body)["message"]
        shown = shown_body(body)
        nothing = f"The endpoint's reply holds no answer{f': {shown}' if shown else ''}"
        raise lm15.ProviderError(words or nothing)


def _name_address(error: Any, url: str) -> None:
    """Add the address to what an error says, unless it is there."""
    if url not in str(error.message):
        error.message = f"{error.message} (from {url})"
        error.args = (error.message,)
