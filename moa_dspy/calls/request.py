"""The caller of a model (prices, keys, retries, slots of its endpoint), and its requests.

The policies decide which errors are retried, after what wait, and what is a model's failure.
"""

from __future__ import annotations

import errno
import math
import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeGuard

from moa_dspy.calls.scope import CallEstimate, Clock
from moa_dspy.errors import CallError, MoaError, OutageError, all_links, masked

_MAX_BACKOFF_SECONDS: Final = 60.0
_MAX_HINT_SECONDS: Final = 600.0
"""A longer ``Retry-After`` means a quota, not a short overload."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter, for errors that DSPy calls retryable.

    Waits a random time of up to 1, 2, 4, ... and at most 60 seconds before attempt 2, 3, 4, ..., so
    that calls which failed together are not retried together. A ``Retry-After`` is added to the
    wait; if it is longer than 600 seconds, there is no further attempt. The jitter is drawn from
    the call's key, so equal studies wait equally long.

    Attributes:
        num_retries: Attempts after the first; 0 means none.
    """

    num_retries: int = 0

    def wait_seconds(self, error: BaseException, *, attempt: int, key: str) -> float | None:
        """Return how long to wait after ``attempt`` (from 1) failed; None means no retry."""
        if not self.retries(error, attempt=attempt):
            return None
        return hinted_seconds(error) + backoff_seconds(attempt, key)

    def retries(self, error: BaseException, *, attempt: int) -> TypeGuard[Exception]:
        """Return whether there is a further attempt after ``attempt`` (from 1) failed."""
        if attempt > self.num_retries or not isinstance(error, Exception):
            return False
        return is_transient(error) and hinted_seconds(error) <= _MAX_HINT_SECONDS


Slot: TypeAlias = Future[None]
"""A slot of an endpoint, or a place in the queue; the future is done once the slot is granted."""


class Limiter:
    """Slots of one endpoint, granted in the order of the requests; for threads and event loops.

    Args:
        limit: Most requests at a time; None means no limit.
        endpoint: Name of the endpoint that processes share; "" means not shared.
    """

    def __init__(self, limit: int | None = None, *, endpoint: str = "") -> None:
        self._limit, self.endpoint = limit, endpoint
        self._n_granted = 0
        self._queue: deque[Slot] = deque()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Limiter({self._limit})"

    @property
    def limit(self) -> int | None:
        """Most requests at a time; None means no limit."""
        return self._limit

    def lower(self, limit: int | None) -> None:
        """Lower the limit to ``limit``, if that is smaller; slots already granted stay granted."""
        with self._lock:
            limits = [n for n in (self._limit, limit) if n is not None]
            self._limit = min(limits, default=None)

    def acquire(self) -> Slot:
        """Queue for a slot; ``release`` must be called exactly once afterwards, in all cases."""
        slot: Slot = Future()
        # A future marked as running cannot be cancelled by a task that waits for it.
        slot.set_running_or_notify_cancel()
        with self._lock:
            self._queue.append(slot)
            granted = self._grant()
        _finish(granted)
        return slot

    def release(self, slot: Slot) -> None:
        """Release the slot, or leave the queue."""
        with self._lock:
            if slot in self._queue:
                self._queue.remove(slot)
            else:
                self._n_granted -= 1
            granted = self._grant()
        _finish(granted)

    def _grant(self) -> list[Slot]:
        granted, limit = [], self.limit
        while self._queue and (limit is None or self._n_granted < limit):
            self._n_granted += 1
            granted.append(self._queue.popleft())
        return granted


class ConnectionSlots(Limiter):
    """Slots for the connections of this process: at most half of the files that it may open.

    The other half is for idle connections, stores and everything else.
    """

    @property
    def limit(self) -> int | None:
        """Most connections in use at a time, by the present limit of files; None means no limit."""
        n_files = most_open_files()
        if n_files is None:
            return None
        return max(_FEWEST_CONNECTIONS, min(n_files // 2, n_files - _OTHER_FILES))


_FEWEST_CONNECTIONS: Final = 4
_OTHER_FILES: Final = 128
CONNECTIONS: Final = ConnectionSlots()


def _finish(slots: list[Slot]) -> None:
    # Outside the lock, as a callback of a waiter may run at once in this thread.
    for slot in slots:
        slot.set_result(None)


@dataclass(frozen=True, slots=True)
class AgentCalls:
    """The properties of an agent on which its calls depend.

    Attributes:
        agent: The agent's name, for display.
        identity: Model with its endpoint or weights; part of the key of a call.
        usd_per_prompt_token: Price of a prompt token.
        usd_per_completion_token: Price of a completion token.
        usd_per_cached_token: Price of a prompt token from the vendor's cache; None is that of any
            prompt token.
        secrets: API keys, which are masked in every failure.
        retries: Policy that decides whether a failed attempt is retried.
        limiter: The slots of its endpoint, shared with the endpoint's other agents.
        is_remote: Whether a request uses a connection, of which a process may have only so many.
        loading: Gives the seconds that this process has waited for local weights up to now.
    """

    agent: str
    identity: str
    usd_per_prompt_token: float = 0.0
    usd_per_completion_token: float = 0.0
    usd_per_cached_token: float | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    limiter: Limiter = field(default_factory=Limiter, compare=False, repr=False)
    is_remote: bool = False
    loading: Callable[[], float] = field(default=float, compare=False, repr=False)

    @property
    def endpoint(self) -> str:
        """Name of the endpoint for messages."""
        return self.limiter.endpoint or self.identity

    def usd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """Return the price of one call; ``cached_tokens`` are a part of its prompt tokens."""
        prompt, cached = self.usd_per_prompt_token, self.usd_per_cached_token
        less = 0.0 if cached is None else cached_tokens * (prompt - cached)
        return prompt_tokens * prompt - less + completion_tokens * self.usd_per_completion_token

    def without_secrets(self, text: str) -> str:
        """Return ``text`` with every key of this agent masked."""
        return masked(text, self.secrets)


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A request with its key, before it is known whether it must be sent.

    Attributes:
        caller: The agent that asks.
        key: ``call_key`` of the request.
        sample: Index of the independent sample.
        content: Canonical JSON of the request, without the model's name.
        estimate: Upper bound of the call's usage.
    """

    caller: AgentCalls
    key: str
    sample: int
    content: str
    estimate: CallEstimate


class Limiters:
    """Limiters by endpoint, each shared by all agents of the endpoint."""

    def __init__(self) -> None:
        self._limiters: dict[str, Limiter] = {}
        self._lock = threading.Lock()

    def of(self, endpoint: str, limit: int | None = None) -> Limiter:
        """Return the limiter of ``endpoint``, with the smallest limit given for it so far."""
        with self._lock:
            limiter = self._limiters.setdefault(endpoint, Limiter(endpoint=endpoint))
        limiter.lower(limit)
        return limiter


def backoff_seconds(attempt: int, key: str) -> float:
    """Return the wait after ``attempt`` (from 1), drawn with the call's key as the seed."""
    most = min(2.0 ** min(attempt - 1, 6), _MAX_BACKOFF_SECONDS)
    return random.Random(f"{key}/{attempt}").uniform(0.0, most)


def is_transient(error: Exception) -> bool:
    """Return whether DSPy retries ``error``: the endpoint is busy, down, slow or unreachable."""
    import dspy

    return not isinstance(error, MoaError) and dspy.is_retryable_lm_error(_as_dspy_error(error))


def is_unreadable(error: Exception) -> bool:
    """Return whether a server's reply held no answer: other JSON, no JSON, or no choice."""
    import dspy

    if isinstance(error, MoaError):
        return False
    shown = _as_dspy_error(error)
    has_succeeded = (getattr(shown, "status", None) or 200) < 400
    return type(shown) is dspy.LMProviderError and has_succeeded


def hinted_seconds(error: Exception) -> float:
    """Return the ``Retry-After`` of ``error``; 0 if it has none."""
    value = None if isinstance(error, MoaError) else _as_dspy_error(error)
    value = getattr(value, "retry_after", None)
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return max(0.0, float(value)) if is_number else 0.0  # type: ignore[arg-type]  # checked above


def _as_dspy_error(error: Exception) -> Exception:
    """Return the error in the form that DSPy raises to its users."""
    from moa_dspy.dspy_internals import to_lm15_error, wrap_error

    if type(error).__module__.partition(".")[0] == "litellm":
        error = to_lm15_error(error)
    shown: Exception = wrap_error(error, model="")
    return shown


_MANY_FAILURES: Final = 5
_MAX_FAILURES: Final = 10
_MOST_FAILURES: Final = 20
"""Failed attempts that are many, that end a request, and that end any; see ``OutagePolicy``."""

Sent: TypeAlias = tuple["CallRequest", Callable[[], Any]]
"""A request, and a function that sends it again."""


class AnsweredRequests:
    """Per model the number of its answers, and the shortest request that it answered."""

    def __init__(self) -> None:
        self.n_answers: Counter[str] = Counter()
        self.shortest: dict[str, Sent] = {}

    def add(self, request: CallRequest, send: Callable[[], Any] | None) -> None:
        """Count an answer; ``send`` is None if the request cannot be sent again."""
        model = request.caller.identity
        self.n_answers[model] += 1
        known = self.shortest.get(model)
        if send and (known is None or request.estimate.tokens < known[0].estimate.tokens):
            self.shortest[model] = request, send


@dataclass(slots=True)
class _Failing:
    """The failed attempts of one request, since its model was last known to be down.

    Attributes:
        n_failed: Their number.
        n_answers: Answers of the model up to the last of them.
        is_alone: Whether the model answered other requests between the last two of them.
    """

    n_failed: int = 0
    n_answers: int = 0
    is_alone: bool = False


class OutagePolicy:
    """Retries while an endpoint is busy, down, slow or unreachable.

    A request that goes on failing while its model answers others is given up: that is the model's
    failure, such as a question that always takes too long. It is given up after 10 failed attempts;
    once three requests failed five times, after more than twice as many as any answered request
    needed, at most 20. If the model answered nothing since the attempt before, the shortest request
    that it did answer is sent again, to see whether it is down. Safe for threads.

    Args:
        outage_seconds: How long an endpoint may fail, without an answer to any request, before the
            study ends.
        clock: Source of time.
        known: Requests that were answered before.
    """

    def __init__(
        self,
        outage_seconds: float,
        clock: Clock | None = None,
        *,
        known: AnsweredRequests | None = None,
    ) -> None:
        self.outage_seconds = outage_seconds
        self._clock = clock or Clock()
        self._known = known or AnsweredRequests()
        self._down_since: dict[str, float] = {}
        self._failing: dict[str, dict[str, _Failing]] = {}
        self._n_often_failed, self._most_needed = 0, 1
        self._lock = threading.Lock()

    def answered(self, request: CallRequest, send: Callable[[], Any] | None) -> None:
        """Record that the model works; ``send`` sends the request again."""
        with self._lock:
            self._known.add(request, send)
            self._down_since.pop(request.caller.endpoint, None)
            failing = self._failing.get(request.caller.identity, {}).pop(request.key, _Failing())
            self._most_needed = max(self._most_needed, failing.n_failed + 1)

    def failed(self, request: CallRequest) -> Sent | None:
        """Count a failed attempt; return a request whose answer tells whether the model works.

        Return None if this is known or makes no difference.
        """
        model = request.caller.identity
        with self._lock:
            n_answers = self._known.n_answers[model]
            failing = self._failing.setdefault(model, {}).setdefault(request.key, _Failing())
            failing.is_alone = failing.n_failed > 0 and n_answers > failing.n_answers
            failing.n_failed, failing.n_answers = failing.n_failed + 1, n_answers
            matters = failing.n_failed == _MANY_FAILURES or failing.n_failed >= self._limit
            return self._known.shortest.get(model) if matters and not failing.is_alone else None

    def checked(self, request: CallRequest, *, works: bool) -> None:
        """Record whether the model of a failed request answered another one."""
        model = request.caller.identity
        with self._lock:
            if not works:
                self._failing.pop(model, None)
            elif (failing := self._failing.get(model, {}).get(request.key)) is not None:
                failing.is_alone = True

    @property
    def _limit(self) -> int:
        """Failed attempts after which a request is given up."""
        limit = min(2 * self._most_needed + 1, _MOST_FAILURES)
        return limit if self._n_often_failed >= 3 else max(limit, _MAX_FAILURES)

    def wait_seconds(self, error: Exception, request: CallRequest, *, attempt: int) -> float | None:
        """Return the wait after ``attempt`` (from 1) failed; None means a failure of the model.

        Raises:
            OutageError: If the endpoint has been down for too long, or announces a longer outage.
        """
        is_passing = is_unreadable(error) and attempt < _MAX_FAILURES
        if not is_passing and not is_transient(error):
            return None
        caller, key = request.caller, request.key
        now, hint = self._clock.monotonic(), hinted_seconds(error)
        with self._lock:
            failing = self._failing.get(caller.identity, {}).get(key, _Failing())
            self._n_often_failed += failing.is_alone and failing.n_failed == _MANY_FAILURES
            if failing.is_alone and failing.n_failed >= self._limit:
                return None
            since = self._down_since.setdefault(caller.endpoint, now)
        if now - since > self.outage_seconds or hint > self.outage_seconds:
            # Some vendors' errors have several lines.
            reason = " ".join(caller.without_secrets(f"{type(error).__name__}: {error}").split())
            asked = f"asks to wait {hint:g} s" if hint > self.outage_seconds else "does not answer"
            raise OutageError(
                f"{caller.endpoint} {asked}, and the longest wait is {self.outage_seconds:g} s "
                f"(`outage_seconds`): {reason.rstrip('.')}. Every answer so far is kept; the same "
                "command continues."
            ) from error
        return hint + backoff_seconds(attempt, key)


class ProbePolicy:
    """Retries as often as the agent allows, as it is not known yet whether its endpoint works.

    Here too, an attempt that succeeds when retried does not count as a failed call: otherwise an
    agent that was busy when it was probed would seem to need two calls per question.
    """

    def __init__(self) -> None:
        self.known = AnsweredRequests()

    def answered(self, request: CallRequest, send: Callable[[], Any] | None) -> None:
        """Record that the model works; ``send`` sends the request again."""
        self.known.add(request, send)

    def failed(self, request: CallRequest) -> Sent | None:
        """Return None: no model is known to work before its probe."""
        return None

    def checked(self, request: CallRequest, *, works: bool) -> None:
        """Record nothing."""

    def wait_seconds(self, error: Exception, request: CallRequest, *, attempt: int) -> float | None:
        """Return the wait of the agent's own policy after ``attempt`` (from 1) failed, or None."""
        return request.caller.retries.wait_seconds(error, attempt=attempt, key=request.key)


def out_of_files(error: BaseException) -> CallError | None:
    """Return the error for a process that has no file left to open; None for other failures.

    This is not a failure of a model. A client needs a file for each connection; DSPy also needs a
    file for each module that it imports at its first reply.
    """
    numbers = {link.errno for link in all_links(error) if isinstance(link, OSError)}
    if not numbers & {errno.EMFILE, errno.ENFILE}:
        return None
    return CallError(
        "Too many open files: every request under way needs a connection, and this process may "
        f"open {most_open_files() or 'no more'} files. Raise the limit (`ulimit -n 4096`), or "
        "lower `max_concurrent` of the agents or the number of threads."
    )


def most_open_files() -> int | None:
    """Return the number of files that this process may have open; None means no limit."""
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
