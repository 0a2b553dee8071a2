from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Mapping
from functools import partial

from moa_dspy.calls.budgets._budget import Estimate, Spending, Totals
from moa_dspy.calls.budgets._reservations import Reservations
from moa_dspy.calls.store._database import Session
from moa_dspy.calls.store._owner import Owner
from moa_dspy.errors import StoreError


class DatabaseBook:
    """A book in the store, which all workers of a study share, and which outlives them.

    What a worker reserved and never settled, because it died, stays charged by its upper
    bound; once the answer of its call is in the store, by what that cost. Time runs while a
    worker lives: every reservation, settlement and beat adds the time since the last one of
    anybody, unless that is longer than a lease, which is a pause, or the clock went back.

    Args:
        owner: Of this process.
        study: Whose book it is.
        spent: Where a new book starts.

    Raises:
        StoreError: If the store cannot be used.
    """

    def __init__(self, owner: Owner, study: str, *, spent: Spending | None = None) -> None:
        self.owner, self.database, self.study = owner, owner.database, study
        self._rows = Reservations(owner, study)
        self._unsettled: dict[str, Spending] = {}
        self._is_at_work = False
        self._lock = threading.Lock()
        start = spent or Spending()
        self.database.transact(lambda session: self._open(session, start))

    def _open(self, session: Session, start: Spending) -> None:
        session.execute(
            "INSERT INTO spending (study, made, reused, tokens, usd, seconds, open_calls, "
            "open_tokens, open_usd) VALUES (?, ?, ?, ?, ?, ?, 0, 0, 0) ON CONFLICT DO NOTHING",
            (self.study, start.made, start.reused, start.tokens, start.usd, start.seconds),
        )

    def restart(self) -> None:
        """Begin anew: nothing is spent or reserved, whatever was before."""

        def begin(session: Session) -> None:
            session.execute("DELETE FROM reservations WHERE study = ?", (self.study,))
            session.execute("DELETE FROM spending WHERE study = ?", (self.study,))
            self._open(session, Spending())

        self.database.transact(begin)

    def spending(self) -> Spending:
        """Return what was spent, calls in flight not included."""
        columns = f"made, reused, tokens, usd, seconds + {self._rows.running}"
        query = f"SELECT {columns} FROM spending WHERE study = ?"
        return Spending(*self.database.rows(query, (self.study,))[0])

    def totals(self) -> Totals:
        """Return what counts against a budget, calls in flight included."""
        columns = "made + open_calls, tokens + open_tokens, usd + open_usd"
        query = f"SELECT {columns}, seconds + {self._rows.running} FROM spending WHERE study = ?"
        return Totals(*self.database.rows(query, (self.study,))[0])

    def reserve(
        self, estimate: Estimate, *, limits: Mapping[str, float], key: str | None
    ) -> str | None:
        """Reserve room for one call, or return None if it goes beyond a limit."""
        self._work()
        self.flush()
        ticket = uuid.uuid4().hex

        def work(session: Session) -> bool:
            return self._rows.reserve(session, ticket, estimate, limits=limits, key=key)

        is_reserved = self.database.transact(work, is_durable=False)
        if not is_reserved and self.resolve():
            is_reserved = self.database.transact(work, is_durable=False)
        return ticket if is_reserved else None

    def _work(self) -> None:
        self.owner.enlist()
        with self._lock:
            if not self._is_at_work:
                self._is_at_work = True
                # The thread that beats must not keep a book alive that everybody forgot.
                self.owner.on_beat.append(partial(_beat, weakref.ref(self)))

    def settle(self, ticket: str, spent: Spending) -> None:
        """Replace a reservation by what was spent; what cannot be written is written later."""
        try:
            self._settle(ticket, spent)
        except StoreError:
            # The answer that was paid for must be handed out: who reserves next is told.
            with self._lock:
                self._unsettled[ticket] = spent

    def _settle(self, ticket: str, spent: Spending) -> None:
        # What a server that crashes forgets of this, the stored answer tells.
        work = partial(self._rows.settle, ticket=ticket, spent=spent)
        self.database.transact(work, is_durable=False)

    def flush(self) -> None:
        """Write the settlements that could not be written.

        Raises:
            StoreError: If they still cannot be.
        """
        for ticket, spent in list(self._unsettled.items()):
            self._settle(ticket, spent)
            with self._lock:
                self._unsettled.pop(ticket, None)

    def resolve(self) -> int:
        """Charge calls of dead workers what their stored answers cost; return how many."""
        dead = self._rows.of_the_dead()
        for ticket, spent in dead:
            self.settle(ticket, spent)
        return len(dead)

    def add(self, spent: Spending) -> None:
        """Count what was spent elsewhere."""
        change = (
            "UPDATE spending SET made = made + ?, reused = reused + ?, tokens = tokens + ?, "
            "usd = usd + ?, seconds = seconds + ? WHERE study = ?"
        )
        values = (spent.made, spent.reused, spent.tokens, spent.usd, spent.seconds, self.study)
        self.database.transact(lambda session: session.execute(change, values))

    def tick(self) -> None:
        """Note that somebody is at work: time runs."""
        change = f"UPDATE spending SET {self._rows.tick} WHERE study = ? AND ticked_at IS NOT NULL"
        self.database.transact(
            lambda session: session.execute(change, (self.study,)), is_durable=False
        )


def _beat(forgettable: weakref.ref[DatabaseBook]) -> None:
    book = forgettable()
    if book is not None:
        book.flush()
        book.tick()
