"""Where a model is reached, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

LONGEST_CONNECT_SECONDS: Final = 10.0
"""A host that does not take a connection in this time is down; answers may take far longer."""
NATIVE_PREFIXES: Final = frozenset(
    {"anthropic", "deepseek", "gemini", "groq", "hosted_vllm", "moonshot", "ollama"}
    | {"openai", "openrouter", "xai"}
)
"""Vendors that DSPy's own client reaches without LiteLLM (dspy 3.4)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is reached; the key is held in memory only and never shown.

    Attributes:
        model: ``vendor/NAME``.
        api_base: URL of an OpenAI-compatible server; None is the vendor's own.
        api_key: The key itself.
        client: ``litellm`` sends every request through LiteLLM.
        timeout_seconds: Longest wait to connect (never above 10 s), and for the next bytes of
            an answer; a stream that keeps arriving is not cut. None is the client's 600 s.
    """

    model: str
    api_base: str | None = None
    api_key: str | None = field(default=None, repr=False)
    client: Literal["auto", "litellm"] = "auto"
    timeout_seconds: float | None = None

    @property
    def is_native(self) -> bool:
        """Whether DSPy's own client is used."""
        vendor = self.model.partition("/")[0]
        return self.client == "auto" and vendor in NATIVE_PREFIXES

    @property
    def timeouts(self) -> dict[str, float]:
        """The limits by name, as far as one was set: connect, read, write."""
        if self.timeout_seconds is None:
            return {}
        wait = self.timeout_seconds
        return {"connect": min(wait, LONGEST_CONNECT_SECONDS), "read": wait, "write": wait}
