"""The call store of a run, which is made only once the study has proved to be one."""

from __future__ import annotations

from pathlib import Path

from moa_dspy.calls import Budget, Call, CallStore, Ledger, SharedLimits, Spending


class StagedStore:
    """A call store that makes nothing before it is opened: a refused study writes nothing.

    Calls made before are kept in memory and written when it is opened. Where the study's
    book is in the store, no crash makes the study spend more than its budget.

    Args:
        place: A file, or the URL of a database, which is opened at once.
        study: Whose book it keeps.
    """

    def __init__(self, place: Path | str, *, study: str) -> None:
        self._place, self._study = place, study
        self._waiting: dict[str, Call] = {}
        is_absent = isinstance(place, Path) and not place.exists()
        self._store = None if is_absent else CallStore(place)
        self._ledger = Ledger()
        self._is_booked = False

    def ledger(self, budget: Budget, *, spent: Spending | None) -> Ledger:
        """Return the ledger of a run.

        Args:
            budget: Of the study.
            spent: By earlier runs, as far as is known without the store; None begins anew.
        """
        if self._store is not None and spent is not None:
            self._is_booked = True
            self._ledger = Ledger(budget, book=self._store.book(self._study, spent=spent))
        else:
            self._ledger = Ledger(budget, spent=spent)
        return self._ledger

    def get(self, key: str, /) -> Call | None:
        """Return a stored or waiting call, or None."""
        waiting = self._waiting.get(key)
        return waiting or (self._store.get(key) if self._store else None)

    def put(self, call: Call, /) -> Call:
        """Keep a call, and return what is kept under its key."""
        if self._store is not None:
            return self._store.put(call)
        self._waiting[call.key] = call
        return call

    def claim(self, key: str, /) -> bool:
        """Take the right to make the call of ``key``; before it is opened, nobody else can."""
        return self._store is None or self._store.claim(key)

    def release(self, key: str, /) -> None:
        """Give it back."""
        if self._store is not None:
            self._store.release(key)

    @property
    def limits(self) -> SharedLimits | None:
        """What all processes on the store keep to; None before it is opened."""
        return self._store.limits if self._store is not None else None

    def open(self) -> None:
        """Make the store, and write down what was answered and spent until now."""
        if self._store is None:
            self._store = CallStore(self._place)
        for call in self._waiting.values():
            self._store.put(call)
        self._waiting.clear()
        if not self._is_booked:
            self._is_booked = True
            book = self._store.book(self._study)
            book.restart()
            self._ledger.keep_in(book)

    def close(self) -> None:
        """Close the store if there is one.

        Raises:
            StoreError: If an answer that was paid for could not be written.
        """
        if self._store is not None:
            if self._is_booked:
                self._ledger.flush()
            self._store.close()
