"""Calls (one request to a language model with its response) and the backends that keep them."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was answered, or that failed; stored once and never paid for again.

    Attributes:
        key: ``call_key`` of the request.
        agent: Name of the agent, for people; it is not part of the key.
        identity: Model with its endpoint or weights.
        sample: Index of an independent sample; always 0 at temperature 0.
        request: Canonical JSON of the request, without the model's name.
        response: Canonical JSON of the response; None when the call failed.
        prompt_tokens: As the endpoint counted them.
        completion_tokens: As the endpoint counted them.
        usd: Price by the pool's list, not by the vendor's.
        seconds: Wall time of the one request when it was really made.
        failure: Error type and message without secrets; None when it was answered.
        attempt: Number of the attempt, from 1 on; 0 means that it was never sent.
        time: When it was made, in UTC seconds since 1970; 0.0 means unknown.
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
    """Return the one JSON text of ``value``: sorted keys, no spaces, Unicode kept.

    Half of a surrogate pair, with which a cut reply may end, is escaped: no file could hold it.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def call_key(identity: str, sample: int, request: str) -> str:
    """Return the sha256 that names a call by its content.

    The identity holds the endpoint, so two servers of one model name never
    share; a changed prompt or setting is a changed ``request`` and a new call.
    """
    text = "\x00".join((identity, str(sample), request))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class CallBackend(Protocol):
    """Something that may hold the call of a key: a store or a recording."""

    def get(self, key: str, /) -> Call | None:
        """Return the call, or None."""
        ...


class WritableBackend(CallBackend, Protocol):
    """A backend that also keeps new calls."""

    def put(self, call: Call, /) -> Call | None:
        """Keep ``call``, durably, before returning; a failure gives way to an answer.

        Returns:
            The call that is kept if that is not ``call``: the first answer to a key stays.
        """
        ...


@runtime_checkable
class SharedBackend(WritableBackend, Protocol):
    """A backend that several processes use: one at a time makes the call of a key."""

    def claim(self, key: str, /) -> bool:
        """Take the right to make the call of ``key``, and return whether it was free."""
        ...

    def release(self, key: str, /) -> None:
        """Give the claim back; ``put`` of an answer does so by itself."""
        ...


class MemoryCalls:
    """A backend in the memory of this process."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}

    def get(self, key: str, /) -> Call | None:
        """Return the call, or None."""
        return self._calls.get(key)

    def put(self, call: Call, /) -> Call:
        """Keep ``call`` unless its key has an answer; return the call that is kept."""
        kept = self._calls.get(call.key)
        if kept is None or kept.failure is not None:
            self._calls[call.key] = kept = call
        return kept


class NoStore:
    """A backend that keeps nothing: every request is sent again."""

    def get(self, key: str, /) -> Call | None:
        """Return None."""
        return None

    def put(self, call: Call, /) -> Call:
        """Return ``call``."""
        return call
