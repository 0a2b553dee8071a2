"""Budgets (upper limits of spending), and ledgers that count calls and refuse further ones.

Also one attempt at a request, and what it used.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from moa_dspy.calls.call import Call, UsageWarnings, canonical_json, token_counts
from moa_dspy.calls.request import CallRequest
from moa_dspy.calls.scope import CallEstimate, Clock, current_scope, entered
from moa_dspy.errors import BudgetReachedError, StudyError
from moa_dspy.files import check_limits

LIMITS = ("calls", "tokens", "usd", "seconds")


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper limits of a study; None means no limit.

    Attributes:
        calls: Calls sent to an endpoint; stored answers are free.
        tokens: Prompt and completion tokens of the calls made.
        usd: Cost by the pool's prices.
        seconds: Wall time from the first call on, of all workers together and of earlier runs
            of the study too; it does not run while no process works on the study.

    Raises:
        StudyError: If a limit is not positive, or infinite.
    """

    calls: int | None = None
    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        check_limits(self, LIMITS, table="budget")


@dataclass(frozen=True, slots=True)
class Spending:
    """Calls, tokens, usd and seconds spent; ``reused`` counts stored answers, which are free."""

    made: int = 0
    reused: int = 0
    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0

    def since(self, before: Spending, *, seconds: float) -> Spending:
        """Return the spending since ``before``, with ``seconds`` as its wall time."""
        return Spending(
            made=self.made - before.made,
            reused=self.reused - before.reused,
            tokens=self.tokens - before.tokens,
            usd=self.usd - before.usd,
            seconds=seconds,
        )


@dataclass(frozen=True, slots=True)
class Totals:
    """Spending plus the upper bounds of calls in flight, those of dead processes included."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0

    @classmethod
    def in_flight(cls, estimates: Collection[CallEstimate]) -> Totals:
        """Return the tokens and usd of open calls; they stay calls, whatever they will cost."""
        return cls(tokens=sum(e.tokens for e in estimates), usd=sum(e.usd for e in estimates))


class Ledger:
    """Counts spending and refuses a call that might exceed the budget before it is made.

    The ledger reserves an upper bound before a call and replaces it by the real cost after the
    call, so calls in flight count too. The ledger of ``Calls`` counts every call of that object;
    ``spending_under`` adds a further ledger for a part of the program. Safe for threads.

    Args:
        budget: The limits; None means no limit.
        spent: Earlier spending, if the ledger is kept in memory.
        backend: Storage of the ledger; default: the memory of this process.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        spent: Spending | None = None,
        backend: BudgetBackend | None = None,
    ) -> None:
        self.budget = budget or Budget()
        self.backend: BudgetBackend = backend or MemoryBudget(spent)
        self._reused = 0
        self._slowest = 0.0
        self._lock = threading.Lock()

    @property
    def spending(self) -> Spending:
        """The spending up to now of all processes that share the backend."""
        s = self.backend.spending()
        return Spending(s.made, s.reused + self._reused, s.tokens, s.usd, s.seconds)

    def reserve(self, estimate: CallEstimate, *, key: str | None = None, share: float = 1.0) -> str:
        """Reserve room for one call.

        Args:
            estimate: Upper bound of the call's usage.
            key: Key of the call. If this process dies, the cost is read from the stored answer.
            share: Part of every limit that this call may use; a search reserves the rest for its
                final test.

        Returns:
            The number of the reservation, for ``settle``.

        Raises:
            BudgetReachedError: If the call might exceed a limit; the message names the limit.
            StudyError: If the call's usage has no upper bound, and tokens or usd are limited.
        """
        self._check_bound(estimate)
        while True:
            number = self.backend.reserve(estimate, limits=self._limits(share), key=key)
            if number is not None:
                return number
            self._refuse(estimate, share)

    def _limits(self, share: float) -> dict[str, float]:
        amounts = {name: getattr(self.budget, name) for name in LIMITS}
        limits = {name: value * share for name, value in amounts.items() if value is not None}
        if "seconds" in limits:
            # The next call may take as long as the slowest call so far.
            limits["seconds"] -= self._slowest
        return limits

    def _check_bound(self, estimate: CallEstimate) -> None:
        if estimate.is_bounded:
            return
        for name in ("tokens", "usd"):
            if getattr(self.budget, name) is not None:
                raise StudyError(
                    f"`budget.{name}` needs an upper bound of every call, but one was asked for "
                    "without `max_tokens`; set `max_tokens` on the agent, or on its LM."
                )

    def _refuse(self, estimate: CallEstimate, share: float) -> None:
        """Raise for the first limit exceeded; there is none if a call was settled meanwhile."""
        totals, in_flight = self.backend.totals_and_in_flight()
        asked = {"calls": 1, "tokens": estimate.tokens, "usd": estimate.usd, "seconds": 0.0}
        needed = {name: getattr(totals, name) + amount for name, amount in asked.items()}
        limits = self._limits(share)
        exceeded = [name for name, limit in limits.items() if needed[name] > limit]
        final = [n for n in exceeded if needed[n] - getattr(in_flight, n) > limits[n]]
        for name in final or exceeded:
            kept = "" if share == 1 else f" (this stage may use {share:.0%} of it)"
            message = f"The budget of {getattr(self.budget, name):g} {name} is reached{kept}."
            raise BudgetReachedError(message, may_fit_later=not final)

    def settle(self, number: str, *, tokens: int, usd: float, seconds: float) -> None:
        """Replace a reservation by the call's real usage, also for a failed call."""
        with self._lock:
            self._slowest = max(self._slowest, seconds)
            reused, self._reused = self._reused, 0
        self.backend.settle(number, Spending(made=1, reused=reused, tokens=tokens, usd=usd))

    def cancel(self, number: str) -> None:
        """Cancel the reservation of a call that was not made."""
        self.backend.settle(number, Spending())

    def count_reuse(self, n: int = 1) -> None:
        """Count answers that were read from the store."""
        # Kept in memory until the next call is settled: a stored answer must not cost a write.
        with self._lock:
            self._reused += n

    def flush(self) -> None:
        """Write the reused answers counted since the last call was settled."""
        with self._lock:
            reused, self._reused = self._reused, 0
        self.backend.add(Spending(reused=reused))


@contextmanager
def spending_under(ledger: Ledger, *, share: float = 1.0) -> Iterator[None]:
    """Count and limit every call made inside with ``ledger`` too, beside the ledger of ``Calls``.

    A call is made only if all ledgers allow it, and is counted in each of them. This applies to
    threads and tasks started inside with a copied context, not to others.

    Args:
        ledger: A ledger; it may be that of ``Calls`` itself, to restrict it to a share.
        share: Part of its limits that the calls inside may use. For nested scopes of one ledger,
            the smallest share applies.
    """
    outer = current_scope()
    share = min(share, outer.ledgers.get(ledger, 1.0))
    others = {other: part for other, part in outer.ledgers.items() if other is not ledger}
    # The innermost ledger comes first: a call that it refuses is not reserved in the others.
    with entered(replace(outer, ledgers={ledger: share, **others})):
        yield


def budget_share(ledger: Ledger) -> float:
    """Return the part of the limits of ``ledger`` that a call made here may use."""
    return current_scope().ledgers.get(ledger, 1.0)


@dataclass(frozen=True, slots=True)
class Reservation:
    """A reservation for one call in every ledger that counts it.

    Attributes:
        numbers: The reservation's number in each ledger.
    """

    numbers: Mapping[Ledger, str]

    @classmethod
    def make(
        cls, ledgers: Mapping[Ledger, float], estimate: CallEstimate, *, key: str
    ) -> Reservation:
        """Reserve in all ledgers, or in none if one refuses.

        Args:
            ledgers: Each ledger with the share of its limits that the call may use.
            estimate: Upper bound of the call's usage.
            key: Key of the call.

        Raises:
            BudgetReachedError: If the call might exceed a limit.
            StudyError: If the call's usage has no upper bound, and tokens or usd are limited.
        """
        numbers: dict[Ledger, str] = {}
        try:
            for ledger, share in ledgers.items():
                numbers[ledger] = ledger.reserve(estimate, key=key, share=share)
        except BaseException:
            cls(numbers).cancel()
            raise
        return cls(numbers)

    def settle(self, *, tokens: int, usd: float, seconds: float) -> None:
        """Replace the reservation by the call's real usage, also for a failed call."""
        for ledger, number in self.numbers.items():
            ledger.settle(number, tokens=tokens, usd=usd, seconds=seconds)

    def cancel(self) -> None:
        """Cancel the reservation: the call was not made."""
        for ledger, number in self.numbers.items():
            ledger.cancel(number)


class BudgetBackend(Protocol):
    """Storage of a ledger: the memory of one process, or a store that several workers share.

    Safe for threads. A reservation is charged until it is settled.
    """

    def spending(self) -> Spending:
        """Return the spending without calls in flight."""
        ...

    def totals(self) -> Totals:
        """Return the spending that counts against a budget, with calls in flight."""
        ...

    def totals_and_in_flight(self) -> tuple[Totals, Totals]:
        """Return ``totals``, and the tokens and usd in them of open calls of living processes."""
        ...

    def reserve(
        self, estimate: CallEstimate, *, limits: Mapping[str, float], key: str | None
    ) -> str | None:
        """Reserve one call and return the reservation's number, or None if it exceeds a limit.

        Args:
            estimate: Upper bound of the call's usage.
            limits: Upper limits of ``totals`` by name, with this call included.
            key: Key of the call, by which its cost is found if this process dies.
        """
        ...

    def settle(self, number: str, spent: Spending) -> None:
        """Replace a reservation by the real spending; has no effect if it is settled already."""
        ...

    def add(self, spent: Spending) -> None:
        """Add earlier spending, or that of another process."""
        ...


class MemoryBudget:
    """Spending of one process, in memory; time counts from the first reservation.

    Args:
        spent: Earlier spending.
    """

    def __init__(self, spent: Spending | None = None) -> None:
        self._spent = spent or Spending()
        self._open: dict[str, CallEstimate] = {}
        self._n_reserved = 0
        self._started: float | None = None
        self._lock = threading.Lock()

    def spending(self) -> Spending:
        """Return the spending without calls in flight."""
        with self._lock:
            s = self._spent
            return Spending(s.made, s.reused, s.tokens, s.usd, self._seconds())

    def totals(self) -> Totals:
        """Return the spending that counts against a budget, with calls in flight."""
        return self.totals_and_in_flight()[0]

    def totals_and_in_flight(self) -> tuple[Totals, Totals]:
        """Return ``totals``, and the tokens and usd in them of open calls."""
        with self._lock:
            return self._totals(CallEstimate()), Totals.in_flight(self._open.values())

    def _seconds(self) -> float:
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return self._spent.seconds + running

    def _totals(self, one_more: CallEstimate) -> Totals:
        every = [*self._open.values(), one_more]
        return Totals(
            self._spent.made + len(self._open),
            self._spent.tokens + sum(estimate.tokens for estimate in every),
            self._spent.usd + sum(estimate.usd for estimate in every),
            self._seconds(),
        )

    def reserve(
        self, estimate: CallEstimate, *, limits: Mapping[str, float], key: str | None
    ) -> str | None:
        """Reserve one call and return its number, or None if it exceeds a limit."""
        with self._lock:
            if self._started is None:
                self._started = time.monotonic()
            after = self._totals(estimate)
            if any(getattr(after, name) + (name == "calls") > limits[name] for name in limits):
                return None
            self._n_reserved += 1
            number = str(self._n_reserved)
            self._open[number] = estimate
            return number

    def settle(self, number: str, spent: Spending) -> None:
        """Replace a reservation by the real spending."""
        with self._lock:
            if self._open.pop(number, None) is not None:
                self._add(spent)

    def add(self, spent: Spending) -> None:
        """Add earlier spending, or that of another process."""
        with self._lock:
            self._add(spent)

    def _add(self, more: Spending) -> None:
        s = self._spent
        self._spent = Spending(
            s.made + more.made,
            s.reused + more.reused,
            s.tokens + more.tokens,
            s.usd + more.usd,
            s.seconds + more.seconds,
        )


_ENDED_BY: Final = {asyncio.CancelledError: "Cancelled", GeneratorExit: "Abandoned"}
_USAGE_WARNINGS: Final = UsageWarnings()


@dataclass(slots=True)
class Attempt:
    """One attempt at a request, while it is under way.

    Attributes:
        request: The request.
        number: Number of the attempt, from 1; 0 means that the request is not sent.
        clock, started, loaded: Source of time; ``monotonic`` and ``loading`` at the start.
        seconds: Duration of the attempt, without loading of weights; 0 until it ends.
    """

    request: CallRequest
    number: int
    clock: Clock
    started: float
    loaded: float = 0.0
    seconds: float = 0.0

    def answered(self, response: dict[str, Any]) -> Call:
        """Return the call with its response (plain data)."""
        self._end()
        tokens = token_counts(self.request.content, response)
        if tokens.is_estimated:
            _USAGE_WARNINGS.warn(self.request.caller.agent)
        usd = self.request.caller.usd(tokens.prompt, tokens.completion, tokens.cached)
        return self._call(canonical_json(response), tokens.prompt, tokens.completion, usd=usd)

    def failed(self, error: BaseException) -> Call:
        """Return the call with the reason why there is no response, without secrets."""
        self._end()
        reason = f"{type(error).__name__}: {error}"
        if not isinstance(error, Exception):
            ended = _ENDED_BY.get(type(error), type(error).__name__)
            reason = f"{ended} after {self.seconds:.2f} s."
        return self._call(None, failure=self.request.caller.without_secrets(reason))

    def _end(self) -> None:
        loading = self.request.caller.loading() - self.loaded
        self.seconds = max(0.0, self.clock.monotonic() - self.started - loading)

    def _call(
        self,
        response: str | None,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        *,
        usd: float = 0.0,
        failure: str | None = None,
    ) -> Call:
        return Call(
            key=self.request.key,
            agent=self.request.caller.agent,
            identity=self.request.caller.identity,
            sample=self.request.sample,
            request=self.request.content,
            response=response,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            usd=usd,
            seconds=self.seconds,
            failure=failure,
            attempt=self.number,
            time=self.clock.time() - self.seconds,
        )
