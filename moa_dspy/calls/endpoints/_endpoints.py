"""Builds the engine that really asks an endpoint: DSPy's own client, or else LiteLLM's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dspy import lm15
from dspy.clients.engines import AsyncLiteLLMEngine, AsyncLM15Engine, LiteLLMEngine, LM15Engine

from moa_dspy.calls.endpoints._endpoint import NATIVE_PREFIXES, Endpoint
from moa_dspy.calls.endpoints._endpoint_chat import AsyncChatEngine, ChatEngine
from moa_dspy.calls.endpoints._endpoint_loops import PerLoop

__all__ = ["NATIVE_PREFIXES", "Endpoint", "endpoint_engine"]


def endpoint_engine(endpoint: Endpoint, *, asynchronous: bool) -> Any:
    """Return a one-attempt engine for ``endpoint``; retries are the LM's.

    It has ``complete``, ``stream`` and ``close``; an asynchronous one works in any event loop,
    and ``aclose`` closes what the running one opened.
    """
    if not endpoint.is_native:
        return _Named(_litellm(endpoint, asynchronous=asynchronous), endpoint.model)
    if endpoint.api_base is None:
        return _Named(_vendor(endpoint, asynchronous=asynchronous), endpoint.model)
    return PerLoop(lambda: AsyncChatEngine(endpoint)) if asynchronous else ChatEngine(endpoint)


class _Named:
    """Puts the endpoint's model name on requests that carry an agent's name."""

    def __init__(self, engine: Any, model: str) -> None:
        self._engine, self._model = engine, model

    def complete(self, request: Any) -> Any:
        """Ask the endpoint; a coroutine where its engine is asynchronous."""
        return self._engine.complete(replace(request, model=self._model))

    def stream(self, request: Any) -> Any:
        """Return the events as they arrive: an iterator, asynchronous where its engine is."""
        return self._engine.stream(replace(request, model=self._model))

    def close(self) -> None:
        """Close the connections, of every event loop where the engine is asynchronous."""
        if (close := getattr(self._engine, "close", None)) is not None:
            close()

    async def aclose(self) -> None:
        """Close what the running event loop opened."""
        await self._engine.aclose()


def _vendor(endpoint: Endpoint, *, asynchronous: bool) -> Any:
    vendor = endpoint.model.partition("/")[0]
    config = lm15.RouterConfig(
        api_keys={vendor: endpoint.api_key} if endpoint.api_key else None,
        timeouts=lm15.Timeouts(**endpoint.timeouts, pool=None),
    )
    return PerLoop(lambda: AsyncLM15Engine(config)) if asynchronous else LM15Engine(config)


def _litellm(endpoint: Endpoint, *, asynchronous: bool) -> Any:
    options = {
        "api_key": endpoint.api_key,
        "api_base": endpoint.api_base,
        "timeout": endpoint.timeout_seconds,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return AsyncLiteLLMEngine(**given) if asynchronous else LiteLLMEngine(**given)
