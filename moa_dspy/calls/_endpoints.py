"""Builds the engine that really asks an endpoint: DSPy's own client, or else LiteLLM's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dspy import lm15
from dspy.clients.engines import AsyncLiteLLMEngine, AsyncLM15Engine, LiteLLMEngine, LM15Engine

NATIVE_PREFIXES = frozenset(
    {"anthropic", "deepseek", "gemini", "groq", "hosted_vllm", "moonshot", "ollama"}
    | {"openai", "openrouter", "xai"}
)
"""Vendors that DSPy's own client reaches without LiteLLM (dspy 3.4)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is reached; the key is held in memory only and never shown."""

    model: str
    api_base: str | None = None
    api_key: str | None = field(default=None, repr=False)
    client: Literal["auto", "litellm"] = "auto"

    @property
    def is_native(self) -> bool:
        """Whether DSPy's own client is used."""
        vendor = self.model.partition("/")[0]
        return self.client == "auto" and vendor in NATIVE_PREFIXES


class _Named:
    """Puts the endpoint's model name on requests that carry an agent's name."""

    def __init__(self, engine: Any, model: str) -> None:
        self._engine, self._model = engine, model

    def complete(self, request: Any) -> Any:
        """Ask the endpoint; a coroutine where its engine is asynchronous."""
        return self._engine.complete(replace(request, model=self._model))


def endpoint_engine(endpoint: Endpoint, *, asynchronous: bool) -> Any:
    """Return a one-attempt engine for ``endpoint``; retries are the LM's."""
    if not endpoint.is_native:
        return _Named(_litellm(endpoint, asynchronous=asynchronous), endpoint.model)
    if endpoint.api_base is None:
        vendor = endpoint.model.partition("/")[0]
        keys = {vendor: endpoint.api_key} if endpoint.api_key else None
        config = lm15.RouterConfig(api_keys=keys)
        return _Named(_native(config, asynchronous=asynchronous), endpoint.model)
    return _declared(endpoint, asynchronous=asynchronous)


def _declared(endpoint: Endpoint, *, asynchronous: bool) -> _Named:
    # A declared provider keeps the right token field, and no name ever matches a vendor's price.
    digest = hashlib.sha256(str(endpoint.api_base).encode()).hexdigest()[:8]
    provider = f"moa{digest}"
    access = lm15.AccessPolicy(
        provider=provider,
        supports=lm15.EndpointSupport(complete=True, stream=True),
        auth_modes=("bearer",),
        base_url=endpoint.api_base,
    )
    compat = lm15.OpenAIChatCompat.preset("vllm")
    definition = lm15.ProviderDefinition.chat(access, compat=compat, placeholder_key="EMPTY")
    keys = {provider: endpoint.api_key} if endpoint.api_key else None
    config = lm15.RouterConfig(api_keys=keys, providers=(definition,))
    name = endpoint.model.partition("/")[2]
    return _Named(_native(config, asynchronous=asynchronous), f"{provider}/{name}")


def _native(config: Any, *, asynchronous: bool) -> Any:
    return AsyncLM15Engine(config) if asynchronous else LM15Engine(config)


def _litellm(endpoint: Endpoint, *, asynchronous: bool) -> Any:
    options = {"api_key": endpoint.api_key, "api_base": endpoint.api_base}
    given = {name: value for name, value in options.items() if value is not None}
    return AsyncLiteLLMEngine(**given) if asynchronous else LiteLLMEngine(**given)
