"""Limits of the server: keys, sizes, times, values, queue and daily spending; and its errors."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import math
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from moa_dspy.calls.budget import Budget, Ledger, spending_under
from moa_dspy.calls.call import Call
from moa_dspy.calls.store.store import RecentCalls
from moa_dspy.errors import BudgetReachedError, PoolError
from moa_dspy.pool import Pool

if TYPE_CHECKING:
    from starlette.requests import Request

MOST_COMPLETIONS: Final = 16
"""Answers to one request, ``n``."""

DETAILS: Final = "moa_details"
"""Body flag, and ``X-Moa-Details`` the header, that asks for each agent's response."""

ANONYMOUS: Final = "anonymous"
"""Name of every client of a server without keys."""


class ApiError(Exception):
    """An error in OpenAI's shape.

    Args:
        message: For people.
        status: HTTP status.
        param: The key of the body that is wrong.
        code: Identifies the error, for programs.
        kind: OpenAI's ``type``; default: by the status.
        headers: Headers of the response.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.error = {"message": message, "type": kind, "param": param, "code": code}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        return {"error": self.error}


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Upper limits of a server; None means no limit.

    Attributes:
        body_bytes: Bytes of the body of a request, images included.
        body_seconds: Longest time in which a body may arrive.
        body_depth: Most levels of nested objects and lists.
        concurrent: Requests that are answered at the same time.
        queued: Requests that wait; further ones are refused.
        deadline_seconds: Longest time for an answer, including the wait.
        calls_per_answer: Most calls to agents of an architecture that is sent as a model's name.
        usd_per_key_per_day: By the pool's prices; days are in UTC.
        usd_per_day: For all keys together.
        calls_per_key_per_day: Calls to agents.

    Raises:
        PoolError: A limit is not positive.
    """

    body_bytes: int = 8_000_000
    body_seconds: float = 20.0
    body_depth: int = 64
    concurrent: int = 64
    queued: int = 1000
    deadline_seconds: float = 300.0
    calls_per_answer: int = 32
    usd_per_key_per_day: float | None = None
    usd_per_day: float | None = None
    calls_per_key_per_day: int | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and not (value > 0 or (each.name == "queued" and value == 0)):
                raise PoolError(f"`{each.name}` must be positive, but is {value}.")


class ServerKeys:
    """The bearer keys that a server accepts, kept as hashes only.

    Args:
        keys: By name; logs and metrics show the names. None admits every client.

    Raises:
        PoolError: A key is shorter than 8 characters.
    """

    def __init__(self, keys: Mapping[str, str] | None = None) -> None:
        for name, key in (keys or {}).items():
            if len(key) < 8:
                raise PoolError(f"The key {name!r} must have at least 8 characters.")
        self._hashes = {name: _digest(key) for name, key in (keys or {}).items()}

    @classmethod
    def from_environment(cls, names: Sequence[str]) -> ServerKeys:
        """Return the keys in environment variables, named like the variables.

        Raises:
            PoolError: A variable is absent or empty.
        """
        if absent := [name for name in names if not os.environ.get(name)]:
            raise PoolError(f"The environment has no variable {', '.join(absent)}.")
        return cls({name: os.environ[name] for name in names})

    @property
    def are_needed(self) -> bool:
        """True if clients need a key."""
        return bool(self._hashes)

    def name_of(self, authorization: str | None) -> str:
        """Return the name of the key in an ``Authorization`` header.

        Every key is compared, each in constant time, so the time reveals nothing.

        Raises:
            ApiError: If it has no key, or an unknown one.
        """
        if not self._hashes:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        digest, matched_name = _digest(key.strip()), None
        for name, expected in self._hashes.items():
            if hmac.compare_digest(digest, expected):
                matched_name = name
        if matched_name is None or scheme.lower() != "bearer":
            raise ApiError(
                "The request needs a header `Authorization: Bearer KEY` with a key of this server.",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return matched_name


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Places:
    """Slots for requests that are answered at the same time, and the queue for them."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(limits.concurrent)
        self.n_answering = self.n_waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it.

        Raises:
            ApiError: If the queue is full.
        """
        if self._free.locked() and self.n_waiting >= self._limits.queued:
            raise ApiError(
                "The server is busy; try again.",
                status=429,
                code="server_busy",
                kind="rate_limit_error",
                headers={"Retry-After": "1"},
            )
        self.n_waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.n_waiting -= 1
        self.n_answering += 1
        try:
            yield
        finally:
            self.n_answering -= 1
            self._free.release()


class DailySpending:
    """Ledgers of each key and of all keys together, new every day (UTC), in memory only.

    Args:
        limits: Limits of the server.
        pool: Has the prices.

    Raises:
        PoolError: If usd are limited and the price of an agent is unknown.
    """

    def __init__(self, limits: ServerLimits, pool: Pool) -> None:
        is_limited = limits.usd_per_day is not None or limits.usd_per_key_per_day is not None
        if is_limited and pool.unpriced:
            raise PoolError(
                "A limit in usd needs the price of every agent, but the price of "
                f"{', '.join(pool.unpriced)} is unknown."
            )
        self._limits = limits
        self._day = ""
        self._ledgers: dict[str | None, Ledger] = {}
        self._lock = threading.Lock()

    def ledger(self, key: str | None) -> Ledger:
        """Return today's ledger of a key; None means that of all keys."""
        today = datetime.now(UTC).date().isoformat()
        limits = self._limits
        with self._lock:
            if today != self._day:
                self._day, self._ledgers = today, {}
            if key not in self._ledgers:
                budget = (
                    Budget(usd=limits.usd_per_day)
                    if key is None
                    else Budget(usd=limits.usd_per_key_per_day, calls=limits.calls_per_key_per_day)
                )
                self._ledgers[key] = Ledger(budget)
            return self._ledgers[key]

    @contextmanager
    def of(self, key: str) -> Iterator[None]:
        """Count and limit the calls that are made inside."""
        with spending_under(self.ledger(None)), spending_under(self.ledger(key)):
            yield

    def refusal(self, error: BudgetReachedError) -> ApiError:
        """Return the error of a request that would spend too much."""
        limits = self._limits
        named = {
            "calls for a key": limits.calls_per_key_per_day,
            "usd for a key": limits.usd_per_key_per_day,
            "usd for all keys": limits.usd_per_day,
        }
        most = ", ".join(f"{value:g} {name}" for name, value in named.items() if value is not None)
        left = f"is left of today's spending limit ({most})" if most else f"is allowed: {error}"
        return ApiError(
            f"This answer might take more than {left.rstrip('.')}; a smaller `max_tokens` reserves "
            "less.",
            status=429,
            code="insufficient_quota",
            kind="insufficient_quota",
            headers={"x-should-retry": "false"},
        )


class BoundedCalls(RecentCalls):
    """The latest calls, in memory, so that equal requests to a greedy agent share one answer."""

    def __init__(self, max_bytes: int = 16_000_000) -> None:
        super().__init__(max_bytes)

    def put(self, call: Call, /) -> Call:
        """Keep an answer, unless it is a further sample, which is never asked for again."""
        if call.failure is None and call.sample == 0:
            self.add(call)
        return call


async def read_body(request: Request, limits: ServerLimits) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: If it is of another type than JSON, too long, or comes too slowly.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # From a browser, pages of other sites can send other types without a preflight request.
        raise ApiError("The body must be sent as application/json.", status=415)
    too_long = ApiError(
        f"The body must be at most {limits.body_bytes} bytes.", status=413, code="too_large"
    )
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced[:20]) > limits.body_bytes:
        raise too_long
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise too_long
                parts.append(part)
    except TimeoutError:
        raise ApiError(
            f"The body did not arrive within {limits.body_seconds:g} s.", status=408
        ) from None
    return b"".join(parts)


def parsed_body(raw: bytes, limits: ServerLimits) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises:
        ApiError: If it is no JSON object, too deeply nested, or contains a lone surrogate.
    """
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
    except RecursionError:
        raise ApiError(_too_deep(limits)) from None
    except ValueError as error:
        raise ApiError(f"The body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError("The body must be a JSON object.")
    _check_depth(body, limits)
    if b"\\ud" in raw.lower():
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ApiError("The body holds half of a character (a lone surrogate).") from None
    return body


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _too_deep(limits: ServerLimits) -> str:
    return f"The body must be nested at most {limits.body_depth} levels deep."


def _check_depth(body: Any, limits: ServerLimits) -> None:
    level = [body]
    for _ in range(limits.body_depth):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise ApiError(_too_deep(limits))


def _is_number(value: Any, least: float, most: float) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and least <= value <= most


def _is_whole(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    return _is_number(value, least, most) and (isinstance(value, int) or value.is_integer())


def _are_texts(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) and text for text in texts)


_EFFORTS: Final = ("none", "off", "minimal", "low", "medium", "high", "xhigh", "max")
_ANY: Final = (lambda value: True, "anything")
_FLAG: Final = (lambda value: isinstance(value, bool), "true or false")
_PENALTY: Final = (lambda value: _is_number(value, -2, 2), "a number from -2 to 2")
_TOKENS: Final = (lambda value: _is_whole(value, 1), "a whole number of at least 1")
_RULES: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    DETAILS: _FLAG,
    "frequency_penalty": _PENALTY,
    "logit_bias": (lambda value: isinstance(value, dict), "an object"),
    "max_completion_tokens": _TOKENS,
    "max_output_tokens": _TOKENS,
    "max_tokens": _TOKENS,
    "modalities": (lambda value: value == ["text"], "['text']"),
    "n": (
        lambda value: isinstance(value, int) and _is_whole(value, 1, MOST_COMPLETIONS),
        f"a number from 1 to {MOST_COMPLETIONS}",
    ),
    "parallel_tool_calls": _FLAG,
    "presence_penalty": _PENALTY,
    "reasoning_effort": (lambda value: value in _EFFORTS, f"one of {', '.join(_EFFORTS)}"),
    "seed": (_is_whole, "a whole number"),
    "stop": (_are_texts, "a text or a list of texts, none of them empty"),
    "stream": _FLAG,
    "temperature": (lambda value: _is_number(value, 0, 2), "a number from 0 to 2"),
    "top_p": (lambda value: _is_number(value, 0, 1), "a number from 0 to 1"),
}
"""For a key of a body, which values are right, and this in words."""


def check_values(fields: Mapping[str, Any]) -> None:
    """Check the values of all keys that have a rule.

    Raises:
        ApiError: If one is wrong.
    """
    for key, value in fields.items():
        is_right, right = _RULES.get(key, _ANY)
        if not is_right(value):
            raise ApiError(f"`{key}` must be {right}, but is {value!r:.100}.", param=key)


def unknown_key(key: str, known: Iterable[str]) -> ApiError:
    """Return the error of a key that no request has."""
    names = ", ".join(sorted(known))
    return ApiError(
        f"Unknown parameter `{key:.100}`; known are {names}.",
        param=key[:100],
        code="unknown_parameter",
    )
