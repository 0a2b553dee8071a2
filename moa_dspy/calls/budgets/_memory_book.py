from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from moa_dspy.calls.budgets._budget import Estimate, Spending, Totals


class MemoryBook:
    """A book of one process; time runs from its first reservation on.

    Args:
        spent: What was spent before.
    """

    def __init__(self, spent: Spending | None = None) -> None:
        self._spent = spent or Spending()
        self._open: dict[str, Estimate] = {}
        self._n_tickets = 0
        self._started: float | None = None
        self._lock = threading.Lock()

    def spending(self) -> Spending:
        """Return what was spent, calls in flight not included."""
        with self._lock:
            s = self._spent
            return Spending(s.made, s.reused, s.tokens, s.usd, self._seconds())

    def totals(self) -> Totals:
        """Return what counts against a budget, calls in flight included."""
        with self._lock:
            return self._totals(Estimate())

    def _seconds(self) -> float:
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return self._spent.seconds + running

    def _totals(self, one_more: Estimate) -> Totals:
        every = [*self._open.values(), one_more]
        return Totals(
            self._spent.made + len(self._open),
            self._spent.tokens + sum(estimate.tokens for estimate in every),
            self._spent.usd + sum(estimate.usd for estimate in every),
            self._seconds(),
        )

    def reserve(
        self, estimate: Estimate, *, limits: Mapping[str, float], key: str | None
    ) -> str | None:
        """Reserve room for one call, or return None if it goes beyond a limit."""
        with self._lock:
            if self._started is None:
                self._started = time.monotonic()
            after = self._totals(estimate)
            if any(getattr(after, name) + (name == "calls") > limits[name] for name in limits):
                return None
            self._n_tickets += 1
            ticket = str(self._n_tickets)
            self._open[ticket] = estimate
            return ticket

    def settle(self, ticket: str, spent: Spending) -> None:
        """Replace a reservation by what was spent."""
        with self._lock:
            if self._open.pop(ticket, None) is not None:
                self._add(spent)

    def add(self, spent: Spending) -> None:
        """Count what was spent elsewhere."""
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
