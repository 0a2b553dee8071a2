"""Tokens of a call: those that the endpoint counted, or an estimate where it counted none."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

_logger = logging.getLogger(__name__)

_MAX_TOKENS: Final = 2**53
"""A larger count is no count, and no database column would take it."""
_BYTES_PER_TOKEN: Final = 3
"""English has about 4 bytes per token, German 3, Chinese 3 to 5: rather too many than too few."""
_TOKENS_PER_MESSAGE: Final = 8
_TEXT_FIELDS: Final = frozenset({"arguments", "content", "input", "system", "text", "thinking"})


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of one call.

    Attributes:
        prompt: Of the request.
        completion: Of the response.
        is_estimated: Whether one of them is an estimate.
    """

    prompt: int
    completion: int
    is_estimated: bool


def token_counts(request: str, response: Mapping[str, Any]) -> TokenCount:
    """Return the tokens of a call; an estimate where the endpoint's count is none.

    Absent, null, zero, negative, fractional and absurdly large counts are none, and so is text.
    An empty answer may have no tokens.

    Args:
        request: Canonical JSON.
        response: Plain data.
    """
    usage = response.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    prompt, completion = usage.get("input_tokens"), usage.get("output_tokens")
    answer = response.get("message", {"text": response.get("text")})
    if not is_count(prompt) or prompt == 0:
        prompt = None
    if not is_count(completion) or (completion == 0 and _n_bytes(answer)):
        completion = None
    return TokenCount(
        _estimate(json.loads(request)) if prompt is None else prompt,
        _estimate(answer, n_messages=0) if completion is None else completion,
        is_estimated=prompt is None or completion is None,
    )


def is_count(value: object) -> TypeGuard[int]:
    """Whether ``value`` may be a number of tokens."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_TOKENS


_USAGES: Final = ("usage", "usageMetadata")
_ENVELOPES: Final = ("message", "response")
"""Fields in which events of Anthropic's and OpenAI's streams carry a reply, usage included."""


def without_odd_usage(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Return a reply, or an event of a stream, without counts that a parser would raise at.

    The answer beside them is good, and paid for.
    """
    kept = dict(reply)
    for name in _USAGES:
        if name in kept:
            kept[name] = _sane_counts(kept[name])
    for name in _ENVELOPES:
        if isinstance(inner := kept.get(name), Mapping):
            kept[name] = without_odd_usage(inner)
    return kept


def _sane_counts(usage: Any) -> dict[str, Any] | None:
    if not isinstance(usage, Mapping):
        return None
    kept = {}
    for name, value in usage.items():
        if isinstance(value, Mapping):
            kept[name] = _sane_counts(value)
        # Prices, tiers and lists of modalities stand there too.
        elif "token" not in name.lower() or value is None or is_count(value) or _is_list(value):
            kept[name] = value
    return kept


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def has_counts(response: str) -> bool:
    """Whether the canonical JSON of a response holds both counts."""
    # Inside a text these quotes are escaped, so they are those of the fields.
    return '"input_tokens":' in response and '"output_tokens":' in response


def _estimate(content: Any, *, n_messages: int | None = None) -> int:
    if n_messages is None:
        messages = content.get("messages") if isinstance(content, Mapping) else None
        n_messages = len(messages) if isinstance(messages, list) else 1
    return -(-_n_bytes(content) // _BYTES_PER_TOKEN) + _TOKENS_PER_MESSAGE * n_messages


def _n_bytes(content: Any) -> int:
    return sum(len(text.encode("utf-8", "replace")) for text in _texts(content))


def _texts(content: Any, name: str = "") -> Iterator[str]:
    if isinstance(content, str):
        if name in _TEXT_FIELDS:
            yield content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _texts(value, key)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _texts(value, name)


class UsageWarnings:
    """Warnings that an agent's endpoint counts no tokens: one per agent and process."""

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def warn(self, agent: str) -> None:
        """Warn, unless this agent was warned of before."""
        with self._lock:
            if agent in self._warned:
                return
            self._warned.add(agent)
        _logger.warning(
            "Agent %r: its endpoint does not say how many tokens a call took, so tokens and usd "
            "are estimates (a token per %d bytes of text).",
            agent,
            _BYTES_PER_TOKEN,
        )
