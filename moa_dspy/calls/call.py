"""Calls (one request to a language model with its response), their tokens, and their backends.

Also repairs of token counts and choices that a server sends in a form that clients cannot read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol, TypeAlias, TypeGuard, runtime_checkable

from moa_dspy.calls.reply import reply_facts
from moa_dspy.calls.scope import CallFacts

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Call:
    """A request with its response or its failure; it is stored and paid for once.

    Attributes:
        key: ``call_key`` of the request.
        agent: Name of the agent, for display; it is not part of the key.
        identity: Model with its endpoint or weights.
        sample: Index of an independent sample; always 0 at temperature 0.
        request: Canonical JSON of the request, without the model's name.
        response: Canonical JSON of the response; None when the call failed.
        prompt_tokens: As counted by the endpoint.
        completion_tokens: As counted by the endpoint.
        usd: Cost by the pool's prices, not by the vendor's bill.
        seconds: Wall time of the request when it was sent.
        failure: Error type and message without secrets; None when the request was answered.
        attempt: Number of the attempt, from 1; 0 means that the request was never sent.
        time: Time of the call in UTC seconds since 1970; 0.0 means unknown.
    """

    key: str
    agent: str
    identity: str
    sample: int
    request: str
    response: str | None
    prompt_tokens: int
    completion_tokens: int
    usd: float
    seconds: float
    failure: str | None = None
    attempt: int = 1
    time: float = 0.0


def canonical_json(value: Any) -> str:
    """Return the canonical JSON of ``value``: sorted keys, no spaces, Unicode not escaped.

    A lone surrogate, with which a cut reply may end, is escaped, as no file could hold it.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def call_key(identity: str, sample: int, request: str) -> str:
    """Return the sha256 of a call's content, its key in every store.

    The identity includes the endpoint, so two servers with the same model name never share answers;
    a changed prompt or setting is a changed ``request`` and a new call.
    """
    text = "\x00".join((identity, str(sample), request))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class CallBackend(Protocol):
    """A source of calls by key: a store or a recording."""

    def get(self, key: str, /) -> Call | None:
        """Return the call, or None."""
        ...


class WritableBackend(CallBackend, Protocol):
    """A backend that also stores new calls."""

    def put(self, call: Call, /) -> Call | None:
        """Store ``call`` durably before returning; an answer replaces a stored failure.

        Returns:
            The stored call if that is not ``call``: the first answer to a key is kept.
        """
        ...


@runtime_checkable
class SharedBackend(WritableBackend, Protocol):
    """A backend for several processes, of which only one at a time makes the call of a key."""

    def claim(self, key: str, /) -> bool:
        """Claim the right to make the call of ``key``; return whether the claim succeeded."""
        ...

    def release(self, key: str, /) -> None:
        """Release the claim; ``put`` of an answer releases it too."""
        ...


class MemoryCalls:
    """A backend in the memory of this process."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}

    def get(self, key: str, /) -> Call | None:
        """Return the call, or None."""
        return self._calls.get(key)

    def put(self, call: Call, /) -> Call:
        """Store ``call`` unless its key has an answer; return the stored call."""
        kept = self._calls.get(call.key)
        if kept is None or kept.failure is not None:
            self._calls[call.key] = kept = call
        return kept

    def answered_by(self, identity: str, *, limit: int) -> list[Call]:
        """Return at most ``limit`` answered calls of a model, in no particular order."""
        # Copied, as other threads may add calls meanwhile.
        answered = (c for c in list(self._calls.values()) if c.response is not None)
        return list(islice((c for c in answered if c.identity == identity), limit))


class NoStore:
    """A backend that stores nothing, so every request is sent."""

    def get(self, key: str, /) -> Call | None:
        """Return None."""
        return None

    def put(self, call: Call, /) -> Call:
        """Return ``call``."""
        return call


_logger = logging.getLogger(__name__)

_MAX_TOKENS: Final = 2**53
"""A larger count is treated as missing; no database column would accept it."""
_BYTES_PER_TOKEN: Final = 3
"""English has about 4 bytes per token, German 3, Chinese 3 to 5; 3 estimates too many tokens
rather than too few."""
_TOKENS_PER_MESSAGE: Final = 8
_TEXT_FIELDS: Final = frozenset({"arguments", "content", "input", "system", "text", "thinking"})


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens of one call.

    Attributes:
        prompt: Tokens of the request.
        completion: Tokens of the response.
        is_estimated: Whether either number is an estimate.
        cached: Prompt tokens that the vendor read from its cache.
    """

    prompt: int
    completion: int
    is_estimated: bool
    cached: int = 0


def token_counts(request: str, response: Mapping[str, Any]) -> TokenCount:
    """Return the tokens of a call, estimated if the endpoint's count is not valid.

    A count is not valid if it is absent, null, zero, negative, fractional, absurdly large or a
    text. Only an empty answer may have 0 tokens.

    Args:
        request: Canonical JSON.
        response: The response as plain data.
    """
    usage = response.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    prompt, completion = usage.get("input_tokens"), usage.get("output_tokens")
    answer = response.get("message", {"text": response.get("text")})
    cached = usage.get("cache_read_tokens")
    if not is_count(prompt) or prompt == 0:
        prompt = None
    if not is_count(completion) or (completion == 0 and _n_bytes(answer)):
        completion = None
    return TokenCount(
        _estimate(json.loads(request)) if prompt is None else prompt,
        _estimate(answer, n_messages=0) if completion is None else completion,
        is_estimated=prompt is None or completion is None,
        cached=min(cached, prompt or 0) if is_count(cached) else 0,
    )


def is_count(value: object) -> TypeGuard[int]:
    """Return whether ``value`` may be a number of tokens."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_TOKENS


_USAGES: Final = ("usage", "usageMetadata")
_ENVELOPES: Final = ("message", "response")
"""Fields in which events of Anthropic's and OpenAI's streams carry a reply, usage included."""


def without_odd_usage(reply: Mapping[str, Any]) -> dict[str, Any]:
    """Return a reply or stream event without token counts at which a client's parser would raise.

    The answer in such a reply is valid and paid for.
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
        # The same object also holds prices, tiers and lists of modalities.
        elif "token" not in name.lower() or value is None or is_count(value) or _is_list(value):
            kept[name] = value
    return kept


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def has_counts(response: str) -> bool:
    """Return whether the canonical JSON of a response holds both counts."""
    # Quotes inside a text are escaped, so these can only be field names.
    return '"input_tokens":' in response and '"output_tokens":' in response


def facts_of(call: Call, *, is_reused: bool) -> CallFacts:
    """Return the cost and end of a call, for the log of a scope."""
    reply = reply_facts(call.response, call.request)
    return CallFacts(
        agent=call.agent,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        usd=call.usd,
        seconds=call.seconds,
        is_reused=is_reused,
        failure=call.failure,
        attempt=call.attempt,
        finish_reason=reply.finish_reason,
        no_answer=reply.no_answer,
        is_estimated=call.response is not None and not has_counts(call.response),
        key=call.key,
        time=call.time,
    )


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


_IMPOSSIBLE: Final = -9999.0
"""Log-probability of a token of probability 0, as vLLM writes it."""


def regular_choices(data: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a reply or event whose choices have the types that clients expect.

    Args:
        data: The reply as sent by the server; its content may be a list of parts, and the
            log-probability of an impossible token null, infinite or NaN.
        kind: Key of a choice's content: ``message`` or ``delta``.
    """
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
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    return {**message, "content": text, "reasoning_content": f"{reasoning}{thought}" or None}


def _thought(part: dict[str, Any]) -> str:
    inner = part.get("thinking")
    if isinstance(inner, list):
        return "".join(str(piece.get("text") or "") for piece in inner if isinstance(piece, dict))
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


class UsageWarnings:
    """Warnings about endpoints that count no tokens, one per agent and process."""

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def warn(self, agent: str) -> None:
        """Warn about this agent, but only once."""
        with self._lock:
            if agent in self._warned:
                return
            self._warned.add(agent)
        _logger.warning(
            "Agent %r: its endpoint does not report token counts, so tokens and usd are "
            "estimates (one token per %d bytes of text).",
            agent,
            _BYTES_PER_TOKEN,
        )


InFlight: TypeAlias = Future[None]
"""Done when the call of a key has ended, answered or failed; its result is read from the store."""


class SingleFlight:
    """Keys whose calls are being made in this process."""

    def __init__(self) -> None:
        self._flights: dict[str, InFlight] = {}
        self._lock = threading.Lock()

    def join(self, key: str) -> tuple[InFlight, bool]:
        """Return the future of ``key``, and whether it is new: then the caller must finish it."""
        with self._lock:
            if (flight := self._flights.get(key)) is not None:
                return flight, False
            flight = self._flights[key] = Future()
            # A future marked as running cannot be cancelled by a task that waits for it.
            flight.set_running_or_notify_cancel()
        return flight, True

    def finish(self, key: str, flight: InFlight) -> None:
        """Wake all waiters for ``key``."""
        with self._lock:
            del self._flights[key]
        flight.set_result(None)
