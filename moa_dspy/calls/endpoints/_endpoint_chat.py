"""Engines for an OpenAI-compatible server, of DSPy's own protocol code and connections.

DSPy's router would look up the route of every request, in a thread if asynchronous, and its
connections would read the proxy variables for each: a third of a call's work on a fast server.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from dspy import lm15
from dspy._vendor.lm15.transports import ReadTimeout, StdlibAsyncTransport, WriteTimeout
from dspy.clients.engines.base import validate_request
from dspy.clients.engines.lifecycle import aclosing_stream, closing_stream
from dspy.clients.engines.stream_guard import achecked_stream, checked_stream

from moa_dspy.calls.endpoints._endpoint import Endpoint
from moa_dspy.calls.endpoints._endpoint_time import TimedTransport

NO_KEY = "EMPTY"
"""What servers without keys are sent: the header must hold something."""


class ChatEngine:
    """One attempt per request over kept connections; safe for threads.

    The endpoint's seconds are those of a whole attempt, waiting for a connection apart.
    """

    keeps_time = True
    """Whether an attempt ends by itself in time: nobody needs a thread to leave it."""

    def __init__(self, endpoint: Endpoint) -> None:
        transport = TimedTransport(seconds=endpoint.timeout_seconds, **_limits(endpoint))
        self._chat: Any = lm15.OpenAIChatLM(transport=transport, **_dialect(endpoint))
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
        self._transport = StdlibAsyncTransport(**_limits(endpoint))
        self._chat = lm15.AsyncOpenAIChatLM(transport=self._transport, **_dialect(endpoint))
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
    # A provider of our own keeps the right token field, and no name matches a vendor's price.
    digest = hashlib.sha256(str(endpoint.api_base).encode()).hexdigest()[:8]
    access = lm15.AccessPolicy(
        provider=f"moa{digest}",
        supports=lm15.EndpointSupport(complete=True, stream=True),
        auth_modes=("bearer",),
        base_url=endpoint.api_base,
    )
    compat = lm15.OpenAIChatCompat.preset("vllm")
    return {"api_key": endpoint.api_key or NO_KEY, "access": access, "compat": compat}


def _limits(endpoint: Endpoint) -> dict[str, Any]:
    timeouts = {f"{name}_timeout": seconds for name, seconds in endpoint.timeouts.items()}
    # Waiting for a free connection is waiting for our own calls, not for the endpoint.
    return {"pool_timeout": None, "trust_env": _has_proxy(str(endpoint.api_base)), **timeouts}


def _has_proxy(url: str) -> bool:
    """Return whether the environment names a proxy for ``url``; it is read once per engine."""
    target, proxies = urlsplit(url), getproxies()
    named = proxies.get(target.scheme) or proxies.get("all")
    return bool(named) and not proxy_bypass(target.hostname or "")
