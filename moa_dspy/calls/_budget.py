"""What a study may spend, and what it has spent."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from moa_dspy.errors import BudgetReachedError, StudyError


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper limits of a study; None is no limit.

    Attributes:
        calls: Calls really made; stored answers are free.
        tokens: Prompt and completion tokens of the calls made.
        usd: By the pool's prices.
        seconds: Wall time from the first call on, runs before a resume included.

    Raises:
        StudyError: If a limit is not positive.
    """

    calls: int | None = None
    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("calls", "tokens", "usd", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise StudyError(f"`budget.{name}` must be positive, but got {value}.")


@dataclass(frozen=True, slots=True)
class Spending:
    """What was really spent: ``made`` calls were paid for, ``reused`` ones were not."""

    made: int = 0
    reused: int = 0
    tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """An upper bound of what one call may use."""

    tokens: int = 0
    usd: float = 0.0


class Ledger:
    """Counts what is spent and refuses a call before it would go beyond the budget.

    A call is reserved before it is made, by an upper bound, and settled after it,
    so that calls in flight count too. ``share`` keeps a part of every limit back:
    a search leaves what its final test will need. Safe for threads.
    """

    def __init__(self, budget: Budget | None = None, *, spent: Spending | None = None) -> None:
        self.budget = budget or Budget()
        self.share = 1.0
        self._spent = spent or Spending()
        self._open: dict[int, Estimate] = {}
        self._next = 0
        self._slowest = 0.0
        self._started: float | None = None
        self._lock = threading.Lock()

    @property
    def spending(self) -> Spending:
        """What was spent up to now, earlier runs included."""
        with self._lock:
            return self._now()

    def _now(self) -> Spending:
        s = self._spent
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return Spending(s.made, s.reused, s.tokens, s.usd, s.seconds + running)

    def reserve(self, estimate: Estimate) -> int:
        """Claim room for one call.

        Returns:
            A ticket for ``settle``.

        Raises:
            BudgetReachedError: If the call might go beyond a limit, naming the limit.
        """
        with self._lock:
            if self._started is None:
                self._started = time.monotonic()
            now, open_ = self._now(), self._open.values()
            self._check("calls", now.made + len(self._open) + 1)
            self._check("tokens", now.tokens + sum(e.tokens for e in open_) + estimate.tokens)
            self._check("usd", now.usd + sum(e.usd for e in open_) + estimate.usd)
            self._check("seconds", now.seconds + self._slowest)
            self._next += 1
            self._open[self._next] = estimate
            return self._next

    def _check(self, name: str, value: float) -> None:
        limit = getattr(self.budget, name)
        if limit is None:
            return
        if value > limit * self.share:
            kept = "" if self.share == 1 else f" (this stage may use {self.share:.0%} of it)"
            raise BudgetReachedError(f"The budget of {limit:g} {name} is reached{kept}.")

    def settle(self, ticket: int, *, tokens: int, usd: float, seconds: float) -> None:
        """Replace a reservation by what the call really used, failed calls included."""
        with self._lock:
            self._open.pop(ticket)
            self._slowest = max(self._slowest, seconds)
            s = self._spent
            self._spent = Spending(s.made + 1, s.reused, s.tokens + tokens, s.usd + usd, s.seconds)

    def count_reuse(self) -> None:
        """Count one answer that came from the store."""
        with self._lock:
            s = self._spent
            self._spent = Spending(s.made, s.reused + 1, s.tokens, s.usd, s.seconds)
