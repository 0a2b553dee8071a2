"""Counts what a study spends, and refuses a call before it would go beyond the budget."""

from __future__ import annotations

import threading

from moa_dspy.calls.budgets._budget import LIMITS, Book, Budget, Estimate, Spending
from moa_dspy.calls.budgets._memory_book import MemoryBook
from moa_dspy.errors import BudgetReachedError, StudyError


class Ledger:
    """Counts what is spent and refuses a call before it would go beyond the budget.

    A call is reserved before it is made, by an upper bound, and settled after it,
    so that calls in flight count too. ``share`` keeps a part of every limit back:
    a search leaves what its final test will need. Safe for threads.

    Args:
        budget: None limits nothing.
        spent: What was spent before, for a book in memory.
        book: Where it is written; default: the memory of this process.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        spent: Spending | None = None,
        book: Book | None = None,
    ) -> None:
        self.budget = budget or Budget()
        self.share = 1.0
        self.book: Book = book or MemoryBook(spent)
        self._reused = 0
        self._slowest = 0.0
        self._lock = threading.Lock()

    @property
    def spending(self) -> Spending:
        """What was spent up to now, by everybody who writes in the same book."""
        s = self.book.spending()
        return Spending(s.made, s.reused + self._reused, s.tokens, s.usd, s.seconds)

    def reserve(self, estimate: Estimate, *, key: str | None = None) -> str:
        """Claim room for one call.

        Args:
            estimate: Its upper bound.
            key: Of the call: if this process dies, its stored answer says what it cost.

        Returns:
            A ticket for ``settle``.

        Raises:
            BudgetReachedError: If the call might go beyond a limit, naming the limit.
            StudyError: If nothing bounds what the call may use, and tokens or usd are limited.
        """
        self._check_bound(estimate)
        while True:
            ticket = self.book.reserve(estimate, limits=self._limits(), key=key)
            if ticket is not None:
                return ticket
            self._refuse(estimate)

    def _limits(self) -> dict[str, float]:
        given = {name: getattr(self.budget, name) for name in LIMITS}
        limits = {name: value * self.share for name, value in given.items() if value is not None}
        if "seconds" in limits:
            # The next call may well take as long as the slowest one did.
            limits["seconds"] -= self._slowest
        return limits

    def _check_bound(self, estimate: Estimate) -> None:
        if estimate.is_bounded:
            return
        for name in ("tokens", "usd"):
            if getattr(self.budget, name) is not None:
                raise StudyError(
                    f"`budget.{name}` needs an upper bound of every call, but one was asked for "
                    "without `max_tokens`; set it on the agent, or on its LM."
                )

    def _refuse(self, estimate: Estimate) -> None:
        """Raise for the first limit that is in the way; none is if one was just settled."""
        totals = self.book.totals()
        needed = {
            "calls": totals.calls + 1,
            "tokens": totals.tokens + estimate.tokens,
            "usd": totals.usd + estimate.usd,
            "seconds": totals.seconds,
        }
        for name, limit in self._limits().items():
            if needed[name] > limit:
                kept = "" if self.share == 1 else f" (this stage may use {self.share:.0%} of it)"
                whole = getattr(self.budget, name)
                raise BudgetReachedError(f"The budget of {whole:g} {name} is reached{kept}.")

    def settle(self, ticket: str, *, tokens: int, usd: float, seconds: float) -> None:
        """Replace a reservation by what the call really used, failed calls included."""
        with self._lock:
            self._slowest = max(self._slowest, seconds)
            reused, self._reused = self._reused, 0
        self.book.settle(ticket, Spending(made=1, reused=reused, tokens=tokens, usd=usd))

    def cancel(self, ticket: str) -> None:
        """Take back a reservation of a call that was not made."""
        self.book.settle(ticket, Spending())

    def count_reuse(self) -> None:
        """Count one answer that came from the store."""
        # In memory until the next call is settled: a hit must not cost a write.
        with self._lock:
            self._reused += 1

    def flush(self) -> None:
        """Write down the reuses that were counted since the last call was settled."""
        with self._lock:
            reused, self._reused = self._reused, 0
        self.book.add(Spending(reused=reused))

    def keep_in(self, book: Book) -> None:
        """Go on in ``book``; what this ledger's own book has counted is added to it.

        Between calls only: nothing may be reserved at this moment.
        """
        with self._lock:
            reused, self._reused = self._reused, 0
            s = self.book.spending()
            book.add(Spending(s.made, s.reused + reused, s.tokens, s.usd, s.seconds))
            self.book = book
